"""Are the replicas still the same? A checksum of the weights that each device holds, compared over replicas.

Rule S11: every replica decodes the same codes and adds in the same order, so after any number of steps the weights are
equal bit for bit. What drifts apart silently would train a different model on every node.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from planners.plan import REPLICA_AXES


class Diverged(RuntimeError):
    """Weights that should be equal on all replicas are not."""


def checksums(model: Any, mesh: Mesh) -> np.ndarray:
    """uint32 [replicas, 2]: two sums over every bit of the weights of each replica, the same in every process.

    Each word is mixed with its place before it is added (fmix32 of MurmurHash3), in unsigned integers, so the order of
    addition does not matter. Only these numbers leave the devices.
    """
    return np.asarray(_program(mesh, jax.tree.structure(model), _specs(model))(model))


def require_identical(model: Any, mesh: Mesh, step: int) -> None:
    """Raises Diverged, naming the replicas, where the weights differ after `step` steps."""
    sums = checksums(model, mesh)
    if (sums == sums[0]).all():
        return
    sizes = tuple(mesh.shape[axis] for axis in REPLICA_AXES)
    wrong = [np.unravel_index(int(i), sizes) for i in np.flatnonzero((sums != sums[0]).any(axis=1))]
    named = ", ".join(" ".join(f"{axis} {int(at)}" for axis, at in zip(REPLICA_AXES, w, strict=True)) for w in wrong)
    raise Diverged(
        f"after step {step} the weights of {named} differ from those of the first replica: bits were lost in memory or "
        "on the way. Go on from a checkpoint before it"
    )


def _specs(model: Any) -> tuple[P, ...]:
    return tuple(leaf.sharding.spec for leaf in jax.tree.leaves(model))


@cache
def _program(mesh: Mesh, structure: Any, specs: tuple[P, ...]) -> Any:
    inner = tuple(axis for axis in mesh.axis_names if axis not in REPLICA_AXES)

    def here(model: Any) -> jax.Array:
        total = jnp.zeros((2,), jnp.uint32)
        for number, leaf in enumerate(jax.tree.leaves(model)):
            words = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32).reshape(-1), jnp.uint32)
            places = jnp.arange(words.size, dtype=jnp.uint32) + _mix(jnp.full((1,), number, jnp.uint32))
            lanes = [_mix(words ^ _mix(places ^ jnp.uint32(lane))) for lane in (0, 0x9E3779B9)]
            total = total + jnp.stack([jnp.sum(lane, dtype=jnp.uint32) for lane in lanes])
        # What is split inside a replica is added up, what is copied there is counted as often on every replica.
        together = jax.lax.psum(total, inner)
        return jax.lax.all_gather(together, REPLICA_AXES)

    tree = jax.tree.unflatten(structure, specs)
    mapped = jax.shard_map(here, mesh=mesh, in_specs=(tree,), out_specs=P(), check_vma=False)
    return jax.jit(mapped)


def _mix(h: jax.Array) -> jax.Array:
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)

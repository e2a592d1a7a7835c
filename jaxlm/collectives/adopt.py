"""What an exchange remembers when a run goes on with other workers, another mesh or another scheme (rule S14).

Residuals are in units of the mean gradient, so what is owed to the mean is the mean of what the workers owe. With
another number of workers each takes that mean over, and nothing that was owed is lost or invented.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.collectives.compressed import LEADS, Compressed
from jaxlm.sharding import shards
from planners.plan import PlanError

OTHER = {"momentum": "small", "small": "momentum"}
"""Where the momentum of a weight lies that was cut and now travels whole, or the other way round."""

Shapes = Mapping[str, tuple[tuple[int, ...], Any]]


def readable(sync: Compressed, saved: Shapes) -> dict[str, jax.ShapeDtypeStruct]:
    """What of a saved state the sync can take over, in the shapes in which it was saved, laid out on the sync's mesh.

    `saved` holds shape and dtype by name within the state: `error/blocks/attn/q`, `warmup`.
    """
    found: dict[str, jax.ShapeDtypeStruct] = {}
    ours = _named(sync.specs(), lambda x: isinstance(x, P))
    wanted = {**ours, **{f"owner/{each.name}": each.spec(*sync.axes.fast) for each in sync.cut if sync.scheme.feedback}}
    if sync.scheme.momentum:
        # The mesh decides which weights are cut; the momentum of the others has another name.
        wanted |= {f"small/{each.name}": each.spec(*sync.axes.fast) for each in sync.cut}
        wanted |= {f"momentum/{each.name}": each.spec() for each in sync.small}
    shapes = _named(jax.eval_shape(sync.init, None), lambda x: False)
    for name, spec in wanted.items():
        if name not in saved or (name.startswith("start/") and saved[name][0] != shapes[name].shape):
            continue  # PowerSGD's factors are of their mesh; another one starts them anew
        shape, dtype = saved[name]
        if name in shapes and shape[1:] != shapes[name].shape[1:]:
            continue
        lead = LEADS.get(name.split("/")[0]) == "worker"
        if lead and shape[0] % shards(sync.mesh, spec[0]):
            spec = P(None, *spec[1:])
        found[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(sync.mesh, spec))
    return found


def adopted(sync: Compressed, saved: Mapping[str, jax.Array], step: int) -> Any:
    """The sync's state from what was read of another's; what is not there starts as it does in a fresh run.

    Raises PlanError for a momentum that cannot be had any more, because the run is past the warm-up that collects it.
    """
    left: set[str] = set()
    if sync.scheme.momentum and not any(name.startswith("momentum/") for name in saved):
        warm = sync.scheme.warm_steps(sync.steps)
        if step >= warm:
            raise PlanError(
                f"communication.{sync.scheme.axis}: {sync.scheme.kind} sends the momentum that it collects in a "
                f"warm-up of {warm} steps, and this run has done {step} without it. Set parameters.warmup to at least "
                f"{step + warm} (steps), or take another scheme"
            )
        # Another scheme's warm-up, which collected nothing, is not this one's.
        left |= {"warmup", "loss"}
    if "bounds" in saved:
        fresh = jax.eval_shape(sync.init, None)
        if "bounds" in fresh and not np.array_equal(np.asarray(saved["bounds"]), np.asarray(sync.bounds, np.float32)):
            left.add("fallback")
        left.add("bounds")
    known = {name.removeprefix("alive/") for name in saved if name.startswith("alive/")}
    saved = {name: held for name, held in saved.items() if name not in left}
    workers = sync.axes.workers
    parts = {name for name in saved if name.startswith("owner/")} if "owner" not in sync.kinds else set()

    def build(saved: dict[str, jax.Array]) -> Any:
        fresh, state = sync.init(None), {}
        for kind, leaves in fresh.items():
            if not isinstance(leaves, dict):
                state[kind] = saved.get(kind, leaves)
                continue
            state[kind] = {}
            for name, leaf in leaves.items():
                held = saved.get(f"{kind}/{name}")
                if held is None and sync.scheme.momentum and kind in OTHER:
                    held = saved.get(f"{OTHER[kind]}/{name}")
                if held is not None and LEADS.get(kind) == "worker" and held.shape[0] != workers:
                    held = jnp.broadcast_to(jnp.mean(held, axis=0, keepdims=True), leaf.shape)
                if kind == "error" and f"owner/{name}" in parts:
                    # A scheme without owners takes over what they owed.
                    held = (leaf if held is None else held) + saved[f"owner/{name}"][None]
                state[kind][name] = leaf if held is None else held
        past = step > sync.scheme.warm_steps(sync.steps) if "warmup" not in saved else step > saved["warmup"]
        for name in state.get("alive", {}).keys() - known:
            # No look came yet, and the next one may be far: what has moved, or is owed, had a gradient.
            state["alive"][name] = past & _moved(state, saved, name)
        return state

    return jax.jit(build, out_shardings=sync.places())(dict(saved))


def _moved(state: Mapping[str, Any], saved: Mapping[str, jax.Array], name: str) -> jax.Array:
    """Truths of a weight's shape: where it had a gradient in the steps that left this; everywhere, where nobody knows,
    because only a part was sent and the rest forgotten."""
    momentum = state["momentum"][name]
    if f"error/{name}" not in saved:
        return jnp.ones(momentum.shape, jnp.bool_)
    moved = (momentum != 0.0) | jnp.any(state["error"][name] != 0.0, axis=0)
    return moved | (state["owner"][name] != 0.0) if "owner" in state else moved


def _named(state: Mapping[str, Any], is_leaf: Any) -> dict[str, Any]:
    """`kind/name`, or `kind` alone, of every tensor."""
    named: dict[str, Any] = {}
    for kind, leaves in state.items():
        if isinstance(leaves, dict) and not is_leaf(leaves):
            named |= {f"{kind}/{name}": leaf for name, leaf in leaves.items()}
        else:
            named[kind] = leaves
    return named

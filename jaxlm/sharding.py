"""Where tensors live: logical axes become mesh axes by the rules of a Plan.

The vocabulary of logical axes:

    parameters    layers vocab position embed heads kv_heads head_dim mlp norm classes
    activations   batch length, and heads kv_heads mlp vocab of the parameters

Only a Plan says which of them meets which mesh axis (`planners.plan.MESH_AXES`). Rules are static data of the model,
so a new layout is a new program for jit; an ambient `with rules:` would silently reuse the old one.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.tree import from_named, named_axes, named_leaves
from planners.plan import BATCH_AXES, Plan, PlanError, Table

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Rules:
    """Logical axis -> mesh axes. First match wins; a mesh axis may shard one dimension of a tensor only.

    Attributes:
        table: of activations, and of weights at work.
        rest: of weights at rest, as the training state holds them.
    """

    table: Table = ()
    rest: Table = ()

    def spec(self, *names: str | None) -> P:
        """The partition of a tensor whose dimensions are called `names`; None is replicated."""
        axes = [next((to for name, to in self.table if name == n), ()) for n in names]
        used = [a for axis in axes for a in axis]
        if len(used) != len(set(used)):
            raise ValueError(f"axes {names} map to {axes}: a mesh axis may shard one dimension only")
        return P(*(axis if len(axis) > 1 else (axis[0] if axis else None) for axis in axes))

    def here(self, *names: str | None) -> P:
        """As `spec`, without the mesh axes that are manual here (inside a shard_map)."""
        return _without(self.spec(*names), set(jax.sharding.get_abstract_mesh().manual_axes))

    def gathers(self, name: str) -> bool:
        """Whether that dimension of a weight is split over devices here at rest, and whole at work."""
        mesh = jax.sharding.get_abstract_mesh()
        rest, work = (rules.here(name)[0] for rules in (Rules(self.rest), self))
        return not mesh.empty and rest != work and math.prod(mesh.shape[axis] for axis in mesh_axes(rest)) > 1

    def __call__(self, x: jax.Array, *names: str | None, name: str | None = None) -> jax.Array:
        """Constrains `x` on the current mesh; `name` makes it a value that a Plan can save, recompute or offload."""
        if len(names) != x.ndim:
            raise ValueError(f"{name or 'tensor'} of shape {x.shape} got {len(names)} axis names {names}")
        mesh = jax.sharding.get_abstract_mesh()
        if not mesh.empty and self.table:
            x = jax.lax.with_sharding_constraint(x, self.here(*names))
        return x if name is None else checkpoint_name(x, name)

    def resting(self, weight: jax.Array, *names: str) -> jax.Array:
        """Constrains a weight, or its gradient, to where the weight is between two steps; as with `shardings`, a
        dimension that its mesh axes do not divide is replicated."""
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or not self.rest:
            return weight
        spec = Rules(self.rest).here(*names)
        fits = [
            dim % math.prod(mesh.shape[a] for a in mesh_axes(e)) == 0 for dim, e in zip(weight.shape, spec, strict=True)
        ]
        spec = P(*(entry if ok else None for entry, ok in zip(spec, fits, strict=True)))
        return jax.lax.with_sharding_constraint(weight, spec)


def _without(spec: P, manual: set[Any]) -> P:
    """The spec with the mesh axes left out that are manual here (inside a shard_map)."""
    kept = [tuple(a for a in mesh_axes(entry) if a not in manual) for entry in spec]
    return P(*(axes if len(axes) > 1 else (axes[0] if axes else None) for axes in kept))


def alone() -> bool:
    """Whether nothing is split here: one device, or no mesh at all. Forms that no partitioner has to understand."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def mesh_axes(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one entry of a PartitionSpec."""
    return (entry,) if isinstance(entry, str) else entry or ()


def make_mesh(plan: Plan, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a plan over all devices (of all processes), in the plan's device order.

    Raises PlanError when the plan was made for another number of devices.
    """
    devices = list(devices or jax.devices())
    if plan.devices != len(devices):
        raise PlanError(f"the plan is for {plan.devices} devices, this job has {len(devices)}")
    ordered = np.asarray([devices[i] for i in plan.device_order] if plan.device_order else devices)
    axes = tuple(plan.mesh)
    return Mesh(ordered.reshape(tuple(plan.mesh.values())), axes, axis_types=(AxisType.Auto,) * len(axes))


def shardings(tree: T, mesh: Mesh, table: Table) -> T:
    """A NamedSharding per leaf, from the logical axes its parameter was declared with.

    A dimension that its mesh axes do not divide is replicated instead: correct, and the planner avoids it.
    """
    rules, axes = Rules(table), named_axes(tree)

    def sharding(name: str, shape: tuple[int, ...]) -> NamedSharding:
        spec = rules.spec(*axes[name])
        fits = [dim % shards(mesh, entry) == 0 for dim, entry in zip(shape, spec, strict=True)]
        return NamedSharding(mesh, P(*(entry if ok else None for entry, ok in zip(spec, fits, strict=True))))

    return from_named(tree, {name: sharding(name, leaf.shape) for name, leaf in named_leaves(tree).items()})


def shards(mesh: Mesh, entry: str | tuple[str, ...] | None) -> int:
    """How many pieces one dimension is cut into by its entry in a PartitionSpec."""
    return math.prod(mesh.shape[a] for a in mesh_axes(entry))


def batch_sharding(mesh: Mesh, *, dims: int = 3) -> NamedSharding:
    """How a batch [accumulation, sequences, length] lies on the mesh (`dims=2`: without accumulation)."""
    lead = (None,) if dims == 3 else ()
    return NamedSharding(mesh, P(*lead, BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())

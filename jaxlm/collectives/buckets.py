"""How gradients are cut and packed for a hierarchical exchange: exact inside a node, codes across slow links.

A leaf is cut along one of its dimensions, first among the replicas of a node (`fast`), then among those of the slow
axis, into shards that are contiguous slices. So all state of the exchange is as large and as named as the weights it
belongs to, and has an ordinary sharding: residuals [H, *shape], one per worker; everything else [*shape]. A checkpoint
holds it like any other tensor, and another mesh reads it. Shards of many leaves travel as one flat bucket.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxlm.sharding import mesh_axes, shards
from planners.plan import REPLICA_AXES

Entries = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Leaf:
    """One weight, as it is cut.

    Attributes:
        name: its name.
        shape: of the whole.
        entries: the mesh axes that split each dimension at rest.
        local: shape of what one device holds at rest.
        dim: the dimension that replicas cut between them; None for a leaf that travels whole and exact.
        stacked: whether the first dimension counts layers.
    """

    name: str
    shape: tuple[int, ...]
    entries: Entries
    local: tuple[int, ...]
    dim: int | None
    stacked: bool

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes that split it at rest."""
        return tuple(axis for entry in self.entries for axis in entry)

    def spec(self, *more: str, lead: tuple[str, ...] | None = None) -> P:
        """Its partition, with `more` mesh axes on the dimension that is cut, and `lead` on a dimension before all."""
        entries = [entry + more if i == self.dim else entry for i, entry in enumerate(self.entries)]
        first = () if lead is None else (lead,)
        return P(*(entry or None for entry in (*first, *entries)))


@dataclass(frozen=True, slots=True)
class Axes:
    """The mesh axes that replicas lie along: `slow`, over which only codes travel, and `fast`, inside a node."""

    slow: str
    fast: tuple[str, ...]
    workers: int
    """Size of the slow axis."""
    local: int
    """Replicas of one worker."""

    @staticmethod
    def of(mesh: Mesh, slow: str) -> "Axes":
        fast = tuple(axis for axis in REPLICA_AXES if axis != slow)
        return Axes(slow, fast, mesh.shape[slow], math.prod(mesh.shape[axis] for axis in fast))


def leaf(name: str, shape: Sequence[int], spec: P, axes: Sequence[str | None], mesh: Mesh, replicas: Axes) -> Leaf:
    """How one weight is cut. Vectors (gains, biases) travel whole, since they are small and sensitive; and so does a
    weight of which the replicas divide no dimension."""
    entries = tuple(mesh_axes(entry) for entry in (*spec, *(None,) * (len(shape) - len(spec))))
    local = tuple(dim // shards(mesh, entry) for dim, entry in zip(shape, entries, strict=True))
    stacked = bool(axes) and axes[0] in ("layers", "experts")
    own = range(1 if stacked else 0, len(shape))
    parts = replicas.workers * replicas.local
    fits = [d for d in own if local[d] % parts == 0]
    vector = len(own) < 2 or name.endswith("bias")
    # The last dimension is the contiguous one, so blocks of neighbours stay together when an earlier one is cut.
    return Leaf(name, tuple(shape), entries, local, None if vector or not fits else fits[0], stacked)


def rows(array: jax.Array, leaf: Leaf, parts: tuple[int, ...]) -> jax.Array:
    """A device's piece of a leaf as [*parts, m]: its shards, flat, in the order in which they are cut."""
    assert leaf.dim is not None
    moved = jnp.moveaxis(array, leaf.dim, 0)
    return moved.reshape(*parts, -1)


def whole(flat: jax.Array, leaf: Leaf, parts: tuple[int, ...], shape: tuple[int, ...]) -> jax.Array:
    """The opposite of `rows`, for a piece of that shape."""
    assert leaf.dim is not None
    first = shape[leaf.dim]
    rest = tuple(dim for i, dim in enumerate(shape) if i != leaf.dim)
    return jnp.moveaxis(flat.reshape(first, *rest), 0, leaf.dim)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Leaves that travel together: split at rest by the same mesh axes, so that devices which hold copies of one hold
    copies of all, and get the same bits.

    Attributes:
        leaves: in order.
        size: elements of one shard of the bucket, each leaf's padded to whole blocks.
        unit: elements of a block.
        parts: shards, of the fast axes times of the slow one.
    """

    leaves: tuple[Leaf, ...]
    unit: int
    parts: tuple[int, int]

    def shard(self, leaf: Leaf) -> int:
        return math.prod(leaf.local) // math.prod(self.parts)

    def padded(self, leaf: Leaf) -> int:
        return -(-self.shard(leaf) // self.unit) * self.unit

    @property
    def size(self) -> int:
        return sum(self.padded(leaf) for leaf in self.leaves)

    def pack(self, arrays: Mapping[str, jax.Array], parts: tuple[int, ...]) -> jax.Array:
        """[*parts, size] of the pieces of its leaves, padded with zeros."""
        packed = []
        for leaf in self.leaves:
            flat = rows(arrays[leaf.name], leaf, parts)
            missing = self.padded(leaf) - flat.shape[-1]
            packed.append(jnp.pad(flat, ((0, 0),) * len(parts) + ((0, missing),)) if missing else flat)
        return jnp.concatenate(packed, axis=-1)

    def unpack(self, packed: jax.Array, parts: tuple[int, ...]) -> dict[str, jax.Array]:
        """The pieces by name from [*parts, size]."""
        arrays, start = {}, 0
        for leaf in self.leaves:
            assert leaf.dim is not None
            cut = math.prod(self.parts) // math.prod(parts)
            shape = tuple(d // cut if i == leaf.dim else d for i, d in enumerate(leaf.local))
            flat = packed[..., start : start + self.shard(leaf)]
            arrays[leaf.name] = whole(flat, leaf, parts, shape)
            start += self.padded(leaf)
        return arrays


def buckets(leaves: Sequence[Leaf], replicas: Axes, unit: int, elements: int) -> tuple[Bucket, ...]:
    """The leaves that are cut, in buckets of about so many elements per device of a node, in tree order."""
    parts = (replicas.local, replicas.workers)
    made: list[Bucket] = []
    groups: dict[tuple[str, ...], list[Leaf]] = {}
    for each in leaves:
        if each.dim is not None:
            groups.setdefault(tuple(sorted(each.axes)), []).append(each)
    for group in groups.values():
        waiting: list[Leaf] = []
        for each in group:
            waiting.append(each)
            if Bucket(tuple(waiting), unit, parts).size * replicas.workers >= elements:
                made.append(Bucket(tuple(waiting), unit, parts))
                waiting = []
        if waiting:
            made.append(Bucket(tuple(waiting), unit, parts))
    return tuple(made)


def slices(size: int, unit: int, most: int) -> tuple[int, int]:
    """Into how many equal slices of how many elements a shard of that size is cut: whole blocks, at most about `most`
    elements each, and together less than a block per slice longer than the shard, since what pads them travels too."""
    step = max(most // unit, 1) * unit
    count = -(-size // step)
    return count, -(-size // (count * unit)) * unit

"""One exchange of all buckets in each of its stages: warm (dense, gradients), dense (everything owed is sent), lossy.

Runs on each device inside a `shard_map` that is manual over every mesh axis, on packed rows [H, n] (see
`jaxlm.collectives.buckets`) in units of the mean gradient.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.collectives import reduce
from jaxlm.collectives.buckets import Axes, Bucket, Leaf, slices
from jaxlm.collectives.codecs import Codec, TopK
from jaxlm.collectives.memory import Memory, Move, Rule
from jaxlm.collectives.schemes import Scheme, top

Stage = Literal["warm", "dense", "lossy"]
Arrays = dict[str, jax.Array]
RAMP = (0.25, 0.0625, 0.015625, 0.004)
"""Densities that DGC falls through before its own (section 3.3 of its paper drops 75, 93.75, 98.44 and 99.6 %)."""
FEW = 8
"""Workers up to which sparse codes go to everybody at once; more would send more bytes than owners who add up."""


class Packed(NamedTuple):
    """What travels, and what is remembered.

    Attributes:
        rows: float32 [H, n] of each bucket.
        small: weights that travel whole and exact, by name.
        memories: of each bucket.
        kept: momentum of the small ones, by name.
        starts: PowerSGD's factors to start from, by name, [..., n, r].
    """

    rows: list[jax.Array]
    small: Arrays
    memories: list[Memory]
    kept: Arrays
    starts: Arrays


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages of one scheme.

    Attributes:
        scheme: what is sent.
        axes: where.
        buckets: what travels together.
        decay: of the optimizer's momentum, where the scheme sends or corrects it.
        clip: largest norm of a gradient, where the exchange clips; 0 does not.
        codec: of the lossy stage, where it is not the scheme's own.
    """

    scheme: Scheme
    axes: Axes
    buckets: tuple[Bucket, ...]
    decay: float
    clip: float
    codec: Codec | None = None

    @property
    def rule(self) -> Rule:
        scheme, dgc = self.scheme, self.scheme.kind == "dgc"
        momentum, correction = (self.decay if scheme.momentum else None), (self.decay if dgc else None)
        return Rule(scheme.axis, scheme.feedback, momentum, correction)

    def slices(self, bucket: Bucket) -> tuple[int, int]:
        """Slices in which a bucket travels, and elements of one worker's row in each."""
        return slices(bucket.size, bucket.unit, round(self.scheme.bucket_mb * 2**18) // self.axes.workers)

    def __call__(
        self,
        stage: Stage,
        given: Packed,
        norm: jax.Array,
        after_warmup: jax.Array,
        key: jax.Array | None,
        ramp: jax.Array | None = None,
    ) -> Packed:
        """The means over workers, in the place of what was given.

        Args:
            stage: which.
            given: this worker's.
            norm: of this worker's whole gradient.
            after_warmup: steps since the warm-up ended, int32.
            key: for stochastic rounding; None rounds to nearest.
            ramp: steps over which DGC's density falls, int32.
        """
        if self.clip and not (stage == "warm" and self.scheme.momentum):
            # Each worker before anything is stored (rule S6): its norm is sqrt(H) times that of the mean, as far as
            # the workers' noise is independent. What is clipped off is not owed.
            factor = jnp.minimum(1.0, self.clip * math.sqrt(self.axes.workers) / jnp.maximum(norm, 1e-30))
            small = {name: x * factor for name, x in given.small.items()}
            given = given._replace(rows=[x * factor for x in given.rows], small=small)
        small = self._small(given.small)
        if stage == "lossy":
            rows, memories, starts = self._lossy(given, after_warmup, key, ramp)
        else:
            rows, memories, starts = self._dense(given, key, warm=stage == "warm"), given.memories, given.starts
            rows, memories = [row for row, _ in rows], [memory for _, memory in rows]
        if stage == "warm" and self.scheme.momentum:
            if self.clip:
                whole = jnp.sqrt(squares(rows, small, self.buckets, self.axes))
                factor = jnp.minimum(1.0, self.clip / jnp.maximum(whole, 1e-30))
                rows, small = [x * factor for x in rows], {name: x * factor for name, x in small.items()}
            memories = [self.rule.keep(row, memory) for row, memory in zip(rows, memories, strict=True)]
        small, kept = self._momentum_of_small(stage, small, given.kept)
        return Packed(rows, small, memories, kept, starts)

    def move(self, bucket: int) -> Callable[[jax.Array], reduce.Exchanged]:
        """The lossy exchange of rows [H, n] of one bucket, rounding to nearest and remembering nothing."""
        move = self._move(self.codec or self.scheme.codec, bucket, None)
        return lambda rows: move(rows, None, None)

    def _dense(self, given: Packed, key: jax.Array | None, *, warm: bool) -> list[tuple[jax.Array, Memory]]:
        moves = [self._move(self.scheme.dense, i, key) for i in range(len(self.buckets))]
        if self.axes.workers == 1:
            moves = [_alone] * len(self.buckets)
        each = zip(given.rows, given.memories, moves, strict=True)
        return [self.rule.dense(rows, memory, move, warm=warm) for rows, memory, move in each]

    def _lossy(
        self, given: Packed, after_warmup: jax.Array, key: jax.Array | None, ramp: jax.Array | None
    ) -> tuple[list[jax.Array], list[Memory], Arrays]:
        if self.scheme.kind == "powersgd":
            return self._low_rank(given)
        memories = given.memories
        if memories and "alive" in memories[0]:
            due = (after_warmup == 0) | (after_warmup % self.scheme.masked_every == 0)
            look = lambda memories: [self.rule.look(x, m) for x, m in zip(given.rows, memories, strict=True)]
            memories = jax.lax.cond(due, look, lambda memories: memories, memories)

        def through(codec: Codec) -> tuple[list[jax.Array], list[Memory]]:
            done = [
                self.rule.lossy(rows, memory, self._move(codec, i, key))
                for i, (rows, memory) in enumerate(zip(given.rows, memories, strict=True))
            ]
            return [mean for mean, _ in done], [memory for _, memory in done]

        rungs = [top(density, self.scheme.small) for density in RAMP if density > self.scheme.density]
        if ramp is None or not self.scheme.ramp or not rungs:
            return *through(self.codec or self.scheme.codec), given.starts
        codecs: list[TopK] = [*rungs, top(self.scheme.density, self.scheme.small)]
        at = jnp.clip(after_warmup * len(rungs) // jnp.maximum(ramp, 1), 0, len(rungs))
        at = jnp.where(ramp > 0, at, len(rungs))
        return *jax.lax.switch(at, [lambda codec=codec: through(codec) for codec in codecs]), given.starts

    def _low_rank(self, given: Packed) -> tuple[list[jax.Array], list[Memory], Arrays]:
        """PowerSGD of every weight that is cut, the shards of a node each by themselves."""
        feedback, parts = self.scheme.feedback, (self.axes.workers,)
        owed = [m["error"] if feedback else jnp.zeros_like(x) for x, m in zip(given.rows, given.memories, strict=True)]
        told = [rows + error for rows, error in zip(given.rows, owed, strict=True)]
        pieces = [bucket.unpack(rows, parts) for bucket, rows in zip(self.buckets, told, strict=True)]
        names = [(bucket, leaf) for bucket in self.buckets for leaf in bucket.leaves]
        matrices = [matrix(pieces[self.buckets.index(bucket)][leaf.name], leaf) for bucket, leaf in names]
        starts = [given.starts[leaf.name] for _, leaf in names]
        means, after = reduce.low_rank(matrices, starts, self.axes.slow, self.axes.workers)
        done = {leaf.name: mean for (_, leaf), mean in zip(names, means, strict=True)}
        shaped = [
            {leaf.name: done[leaf.name].reshape(pieces[i][leaf.name].shape) for leaf in bucket.leaves}
            for i, bucket in enumerate(self.buckets)
        ]
        rows = [bucket.pack(arrays, parts) for bucket, arrays in zip(self.buckets, shaped, strict=True)]
        memories = [{"error": x - mean} if feedback else {} for x, mean in zip(told, rows, strict=True)]
        # Its norm says nothing about where to look next; at 1 it neither grows nor vanishes over the steps.
        unit = lambda q: q / jnp.maximum(jnp.linalg.norm(q, axis=-2, keepdims=True), 1e-30)
        return rows, memories, {leaf.name: unit(q) for (_, leaf), q in zip(names, after, strict=True)}

    def _small(self, small: Arrays) -> Arrays:
        """Exact means of what travels whole, in one bucket."""
        if not small:
            return {}
        flat = jnp.concatenate([x.reshape(-1) for x in small.values()])
        flat, means, start = reduce.exact_mean(flat, self.axes.slow, self.axes.workers), {}, 0
        for name, x in small.items():
            means[name] = flat[start : start + x.size].reshape(x.shape)
            start += x.size
        return means

    def _momentum_of_small(self, stage: Stage, small: Arrays, kept: Arrays) -> tuple[Arrays, Arrays]:
        """What the optimizer gets of them: gradient or momentum, as of everything else."""
        if self.scheme.kind == "dgc":
            kept = {name: self.decay * kept[name] + x for name, x in small.items()}
            return kept, kept
        if not self.scheme.momentum:
            return small, kept
        kept = {name: self.decay * kept[name] + (1.0 - self.decay) * x for name, x in small.items()}
        return (small if stage == "warm" else kept), kept

    def _move(self, codec: Codec, bucket: int, key: jax.Array | None) -> Move:
        """The exchange of one bucket, a slice of it at a time."""
        axes, kind = self.axes, self.scheme.kind
        if key is not None:
            # Another key on each worker and for each shard, the same on devices that hold copies (rule S12).
            key = jax.random.fold_in(key, bucket)
            for axis in (axes.slow, *axes.fast, *sorted(self.buckets[bucket].leaves[0].axes)):
                key = jax.random.fold_in(key, jax.lax.axis_index(axis))

        def one(rows: jax.Array, owner: jax.Array | None, alive: jax.Array | None, key: jax.Array | None):
            if kind == "int8_shared":
                return reduce.shared_scale(rows, axes.slow, key)
            if isinstance(codec, TopK) and not two_legs(self.scheme, axes.workers):
                return reduce.gathered(rows, axes.slow, codec, key)
            return reduce.two_shot(rows, axes.slow, codec, owner, key, alive)

        def move(rows: jax.Array, owner: jax.Array | None, alive: jax.Array | None) -> reduce.Exchanged:
            size = rows.shape[-1]
            count, step = self.slices(self.buckets[bucket])
            if count == 1:
                return one(rows, owner, alive, key)

            def cut(x: jax.Array | None) -> jax.Array | None:
                if x is None:
                    return None
                x = jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, count * step - size),))
                return jnp.moveaxis(x.reshape(*x.shape[:-1], count, step), -2, 0)

            keys = None if key is None else jax.random.split(key, count)
            done = jax.lax.map(lambda given: one(*given), (cut(rows), cut(owner), cut(alive), keys))
            joined = lambda x: jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], count * step)[..., :size]
            return jax.tree.map(joined, done)

        return move


def _alone(rows: jax.Array, owner: jax.Array | None, alive: jax.Array | None) -> reduce.Exchanged:
    got = reduce.alone(rows)
    return got if owner is None else got._replace(mean=got.mean + owner[None])


def two_legs(scheme: Scheme, workers: int) -> bool:
    """Whether owners add up and encode again; sparse codes of few workers go to everybody at once instead, and integer
    codes are added by the network."""
    if scheme.kind in ("topk", "dgc"):
        return workers > FEW
    return scheme.kind not in ("int8_shared", "powersgd")


def matrix(piece: jax.Array, leaf: Leaf) -> jax.Array:
    """A piece of a weight as one matrix, or one per layer."""
    lead = piece.shape[:2] if leaf.stacked else piece.shape[:1]
    return piece.reshape(*lead, -1)


def squares(rows: list[jax.Array], small: Arrays, buckets: tuple[Bucket, ...], axes: Axes) -> jax.Array:
    """The squared norm of a worker's whole gradient, from the pieces of its devices."""
    total = jnp.zeros((), jnp.float32)
    for x, bucket in zip(rows, buckets, strict=True):
        total = total + jax.lax.psum(jnp.sum(jnp.square(x)), (*axes.fast, *sorted(bucket.leaves[0].axes)))
    for x in small.values():
        total = total + jnp.sum(jnp.square(x))
    return total

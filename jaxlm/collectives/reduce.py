"""Means over a slow mesh axis of which only codes cross it; call inside a `shard_map` that is manual over the axis.

A worker holds rows [H, n], row h of which belongs to worker h of the H along the axis. Every function returns the mean
over workers of all rows, the same bits on all of them: each decodes the same gathered codes, its own included, and
adds in a fixed order (rule S11 of compressed training).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.collectives.codecs import Codec, Exact, lowrank
from jaxlm.collectives.codecs.codec import blocks, flat, from_bits16, scale_of, steps
from jaxlm.collectives.codecs.quantised import BLOCK


class Exchanged(NamedTuple):
    """What an exchange came to.

    Attributes:
        mean: float32 [H, n], over workers, of all rows.
        sent: float32 [H, n], what this worker's codes say of its own rows; the rest is its error.
        owner: float32 [n], what the mean of this worker's own row lost when it was encoded in its turn (rule S3).
    """

    mean: jax.Array
    sent: jax.Array
    owner: jax.Array


def across(move: str, codes: tuple[jax.Array, ...], axis: str) -> tuple[jax.Array, ...]:
    """Codes [H, ...] exchanged row for row (`all_to_all`), or [...] collected as [H, ...] (`all_gather`).

    The barriers keep the compiler from moving a conversion across the link; that codes are unsigned integers keeps
    every backend from widening them.
    """
    wrong = [code.dtype for code in codes if not jnp.issubdtype(code.dtype, jnp.unsignedinteger)]
    if wrong:
        raise TypeError(f"only unsigned integers may cross a slow link, not {wrong}")
    codes = jax.lax.optimization_barrier(codes)
    if move == "all_to_all":
        moved = [jax.lax.all_to_all(code, axis, split_axis=0, concat_axis=0, tiled=True) for code in codes]
    else:
        moved = [jax.lax.all_gather(code, axis, axis=0) for code in codes]
    return jax.lax.optimization_barrier(tuple(moved))


def two_shot(
    rows: jax.Array,
    axis: str,
    codec: Codec,
    owner: jax.Array | None = None,
    key: jax.Array | None = None,
    alive: jax.Array | None = None,
) -> Exchanged:
    """Codes to the owners of their rows, a sum in float32 there, and codes of the mean back to all.

    Args:
        rows: float32 [H, n]; n is a whole number of the codec's blocks.
        axis: the slow mesh axis.
        codec: of both legs.
        owner: float32 [n], what is still owed to the mean of this worker's row from steps before.
        key: for stochastic rounding, another one on each worker; None rounds to nearest.
        alive: truths [H, n], the same on all workers: what is false is sent by no worker and stays exactly zero, also
            through a codec that cannot say zero (rule S13).
    """
    first, second = (None, None) if key is None else jax.random.split(key)
    here = jax.lax.axis_index(axis)
    keep = lambda x, mask: x if alive is None else jnp.where(mask, x, 0.0)
    mine = None if alive is None else alive[here]
    codes = codec.encode(keep(rows, alive), first)
    sent = keep(codec.decode(codes), alive)
    everyone = codec.decode(across("all_to_all", codes, axis))
    mean = keep(jnp.sum(everyone, axis=0) / rows.shape[0], mine)
    if owner is not None:
        mean = mean + owner
    codes = codec.encode(keep(mean, mine), second)
    decoded = keep(codec.decode(across("all_gather", codes, axis)), alive)
    return Exchanged(decoded, sent, mean - keep(codec.decode(codes), mine))


LEVELS = 127
"""Steps of a signed byte each way, which the H workers share in `shared_scale`."""


def shared_scale(rows: jax.Array, axis: str, key: jax.Array | None = None) -> Exchanged:
    """A sum of int8 codes by the network itself: all workers take the largest scale of each block and 127 // H steps,
    so no sum can overflow, and nothing is encoded twice (the idea of THC, https://arxiv.org/abs/2302.08545).

    Signed bytes are added as unsigned ones, which are the same bits modulo 256.
    """
    workers = rows.shape[0]
    levels = LEVELS // workers
    if levels < 1:
        raise ValueError(f"int8_shared: {workers} workers leave no step of {LEVELS} to each; use int8")
    x = blocks(rows, BLOCK)
    # Scales are not negative, so their bits are ordered as they are. Collected, because no network library reduces
    # 16-bit integers.
    scale = jnp.max(across("all_gather", (scale_of(x, float(levels)),), axis)[0], axis=0)
    whole = steps(x, scale, levels, key)
    code = jax.lax.bitcast_convert_type(whole.astype(jnp.int8), jnp.uint8)
    total = jax.lax.optimization_barrier(jax.lax.psum(jax.lax.optimization_barrier(code), axis))
    factor = from_bits16(scale)[..., None]
    mean = jax.lax.bitcast_convert_type(total, jnp.int8).astype(jnp.float32) * (factor / workers)
    return Exchanged(flat(mean), flat(whole * factor), jnp.zeros(rows.shape[1:], jnp.float32))


def gathered(rows: jax.Array, axis: str, codec: Codec, key: jax.Array | None = None) -> Exchanged:
    """Everybody's codes to everybody, decoded and added in order: one leg, for sparse codes and few workers (bytes
    grow with the number of workers)."""
    codes = codec.encode(rows, key)
    everyone = across("all_gather", codes, axis)
    total = jnp.zeros(rows.shape, jnp.float32)
    for worker in range(rows.shape[0]):
        total = total + codec.decode(tuple(code[worker] for code in everyone))
    return Exchanged(total / rows.shape[0], codec.decode(codes), jnp.zeros(rows.shape[1:], jnp.float32))


def alone(rows: jax.Array) -> Exchanged:
    """The mean over one worker."""
    return Exchanged(rows, rows, jnp.zeros(rows.shape[1:], jnp.float32))


def exact_sum(x: jax.Array, axis: str, workers: int) -> jax.Array:
    """The sum over the axis, float32 of any shape, added in a fixed order; only raw bits cross. For small tensors."""
    if workers == 1:
        return x
    codes = across("all_gather", Exact().encode(x.reshape(-1)), axis)
    everyone = Exact().decode(codes)
    total = everyone[0]
    for worker in range(1, workers):
        total = total + everyone[worker]
    return total.reshape(x.shape)


def exact_mean(x: jax.Array, axis: str, workers: int) -> jax.Array:
    """The mean over the axis of float32 [n], in two legs of raw bits, so that bytes do not grow with the workers."""
    if workers == 1:
        return x
    padded = jnp.pad(x, (0, -x.size % workers)).reshape(workers, -1)
    return two_shot(padded, axis, Exact()).mean.reshape(-1)[: x.size]


def low_rank(
    matrices: list[jax.Array], starts: list[jax.Array], axis: str, workers: int
) -> tuple[list[jax.Array], list[jax.Array]]:
    """PowerSGD of several matrices at once: their means over workers, of rank r each, and where to start next time.

    Args:
        matrices: float32 [..., m, n] each, this worker's.
        starts: float32 [..., n, r] each, the same on all workers.
        axis: the slow mesh axis.
        workers: its size.
    """
    left = [lowrank.project(matrix, start) for matrix, start in zip(matrices, starts, strict=True)]
    left = [lowrank.orthonormal(p) for p in _mean_of_all(left, axis, workers)]
    right = [lowrank.back(matrix, p) for matrix, p in zip(matrices, left, strict=True)]
    right = _mean_of_all(right, axis, workers)
    return [lowrank.decode(p, q) for p, q in zip(left, right, strict=True)], right


def _mean_of_all(arrays: list[jax.Array], axis: str, workers: int) -> list[jax.Array]:
    """Each array's mean over workers; all travel as one flat bucket."""
    together = exact_mean(jnp.concatenate([array.reshape(-1) for array in arrays]), axis, workers)
    pieces, start = [], 0
    for array in arrays:
        pieces.append(together[start : start + array.size].reshape(array.shape))
        start += array.size
    return pieces

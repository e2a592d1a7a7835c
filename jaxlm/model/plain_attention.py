"""Attention by XLA's own operations in float32, with a gradient that keeps no matrix of scores.

As FlashAttention does (https://arxiv.org/abs/2205.14135), the backward pass keeps the context and one number for each
query, and computes the scores again: on a CPU, writing and reading all of them costs more than a matrix product.

Axes: B batch, T query position, S key position, K key/value heads, G query heads of each of them, H head_dim.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

BLOCK = 128
"""Queries of one block of a causal row, which looks at no key behind it."""

MOST = 4
"""Blocks of a row; each of them is compiled by itself."""

HIDDEN = -1e30
"""The score of a pair that does not see each other: less than any other, and not so low that it is no number."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    mask_B1TS: Bool[Array, "B 1 T S"] | None,
    causal: bool,
    blocks: int,
) -> Float[Array, "B T N H"]:
    """Softmax attention, scaled by 1 / sqrt(H); `mask` says which pairs see each other, all where it is None.

    A causal row is computed in so many `blocks` (see `blocks_of`). Every query must see a key, and without a mask a
    causal one has as many keys as queries.
    """
    return _forward(q_BTNH, k_BSKH, v_BSKH, mask_B1TS, causal, blocks)[0]


def blocks_of(length: int, *, causal: bool) -> int:
    """Into how many blocks a row is best cut: equal ones, of `BLOCK` queries or more, and few."""
    return next(n for n in range(MOST if causal else 1, 0, -1) if n == 1 or (length % n == 0 and length // n >= BLOCK))


def _grouped(x_BTNH: jax.Array, heads: int) -> jax.Array:
    """[B, T, N, H] as [B, K, G, T, H]."""
    B, T, N, H = x_BTNH.shape
    return x_BTNH.reshape(B, T, heads, N // heads, H).transpose(0, 2, 3, 1, 4)


def _flat(x_BKGTH: jax.Array) -> jax.Array:
    """The way back."""
    B, K, G, T, H = x_BKGTH.shape
    return x_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, H)


def _cut(length: int, keys: int, causal: bool, blocks: int) -> list[tuple[slice, slice]]:
    """The queries of each block, and the keys that it may see."""
    size = length // blocks
    return [(slice(n * size, (n + 1) * size), slice(0, (n + 1) * size if causal else keys)) for n in range(blocks)]


def _scores(
    q_BKGTH: jax.Array, k_BKSH: jax.Array, mask_B1TS: jax.Array | None, causal: bool, at: tuple[slice, slice]
) -> jax.Array:
    """Those of a block of queries, float32 [B, K, G, T, S]."""
    queries, keys = at
    scores = jnp.einsum("BKGTH,BKSH->BKGTS", q_BKGTH[..., queries, :], k_BKSH[..., keys, :])
    if causal:
        rows = jax.lax.broadcasted_iota(jnp.int32, scores.shape[-2:], 0) + queries.start
        seen = rows >= jax.lax.broadcasted_iota(jnp.int32, scores.shape[-2:], 1)
        scores = jnp.where(seen[None, None, None], scores, HIDDEN)
    if mask_B1TS is not None:
        scores = jnp.where(mask_B1TS[:, :, None, queries, keys], scores, HIDDEN)
    return scores


def _forward(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_B1TS: jax.Array | None, causal: bool, blocks: int
) -> tuple[jax.Array, tuple[Any, ...]]:
    heads, scale = k_BSKH.shape[2], 1.0 / math.sqrt(q_BTNH.shape[-1])
    q_BKGTH = _grouped(q_BTNH * scale, heads)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    contexts, partitions = [], []
    for at in _cut(q_BTNH.shape[1], k_BSKH.shape[1], causal, blocks):
        scores = _scores(q_BKGTH, k_BKSH, mask_B1TS, causal, at)
        most = jnp.max(scores, axis=-1, keepdims=True)
        shares = jnp.exp(scores - most)
        total = jnp.sum(shares, axis=-1, keepdims=True)
        contexts.append(jnp.einsum("BKGTS,BKSH->BKGTH", shares, v_BKSH[..., at[1], :]) / total)
        partitions.append(most + jnp.log(total))
    context_BTNH = _flat(jnp.concatenate(contexts, axis=3))
    return context_BTNH, (q_BTNH, k_BSKH, v_BSKH, mask_B1TS, context_BTNH, jnp.concatenate(partitions, axis=3))


def _backward(causal: bool, blocks: int, kept: tuple[Any, ...], gradient_BTNH: jax.Array) -> tuple[Any, Any, Any, None]:
    q_BTNH, k_BSKH, v_BSKH, mask_B1TS, context_BTNH, partition_BKGT1 = kept
    heads, scale = k_BSKH.shape[2], 1.0 / math.sqrt(q_BTNH.shape[-1])
    q_BKGTH, gradient_BKGTH = _grouped(q_BTNH * scale, heads), _grouped(gradient_BTNH, heads)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    mean_BKGT1 = _grouped(jnp.sum(gradient_BTNH * context_BTNH, axis=-1, keepdims=True), heads)
    dq, dk, dv = [], jnp.zeros_like(k_BKSH), jnp.zeros_like(v_BKSH)
    for at in _cut(q_BTNH.shape[1], k_BSKH.shape[1], causal, blocks):
        queries, keys = at
        q, g = q_BKGTH[..., queries, :], gradient_BKGTH[..., queries, :]
        shares = jnp.exp(_scores(q_BKGTH, k_BKSH, mask_B1TS, causal, at) - partition_BKGT1[..., queries, :])
        dshares = jnp.einsum("BKGTH,BKSH->BKGTS", g, v_BKSH[..., keys, :])
        dscores = shares * (dshares - mean_BKGT1[..., queries, :])
        dq.append(jnp.einsum("BKGTS,BKSH->BKGTH", dscores, k_BKSH[..., keys, :]) * scale)
        dk = dk.at[..., keys, :].add(jnp.einsum("BKGTS,BKGTH->BKSH", dscores, q))
        dv = dv.at[..., keys, :].add(jnp.einsum("BKGTS,BKGTH->BKSH", shares, g))
    back = lambda x_BKSH: x_BKSH.transpose(0, 2, 1, 3)
    return _flat(jnp.concatenate(dq, axis=3)), back(dk), back(dv), None


attend.defvjp(_forward, _backward)

"""Text from a model: a key/value cache, one token at a time.

Axes: B batch, T new positions, S cached positions, K key/value heads, H head_dim, V padded vocabulary, L layers.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxlm.decode import ConfigError
from jaxlm.model.transformer import Transformer
from jaxlm.sharding import Rules


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Cache:
    """Keys and values of every layer, [L, B, S, K, H]."""

    k: jax.Array
    v: jax.Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is drawn. Temperature 0 takes the most likely one; top_k 0 and top_p 1 cut nothing off."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95

    def __post_init__(self) -> None:
        if self.temperature < 0.0:
            raise ValueError(f"temperature={self.temperature} must not be negative")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must not be negative")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p={self.top_p} must be in (0, 1]")


def empty_cache(model: Transformer, batch: int, length: int) -> Cache:
    c = model.config
    shape = (c.layers, batch, length, c.groups, c.per_head)
    return Cache(*(jnp.zeros(shape, jnp.dtype(model.execution.dtype)) for _ in range(2)))


def extend(
    model: Transformer,
    tokens_BT: Int[Array, "B T"],
    cache: Cache,
    start: Int[Array, ""],
    last: Int[Array, ""],
    begins_B: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B V"], Cache]:
    """Reads tokens into slots `start`, `start + 1`, ... of the cache; returns the logits after token `last` of them.

    Tokens after `last` may be padding: later calls overwrite what they left in the cache before anything reads it. So
    may those before slot `begins_B` of a row (0 if not given), which is where its position 0 is.
    """
    slots_BT = jnp.broadcast_to(start + jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)
    slots_S = jnp.arange(cache.k.shape[2], dtype=jnp.int32)
    positions_BT, seen_BTS = slots_BT, slots_S[None, None, :] <= slots_BT[:, :, None]
    if begins_B is not None:
        positions_BT = jnp.maximum(slots_BT - begins_B[:, None], 0)
        seen_BTS &= slots_S[None, None, :] >= begins_B[:, None, None]

    def layer(x_BTD: jax.Array, item: Any) -> tuple[jax.Array, Any]:
        block, k_old, v_old = item
        q, k, v = block.attn.queries_keys_values(block.attend_input(x_BTD), positions_BT)
        k_BSKH = jax.lax.dynamic_update_slice_in_dim(k_old, k, start, axis=1)
        v_BSKH = jax.lax.dynamic_update_slice_in_dim(v_old, v, start, axis=1)
        context = jax.nn.dot_product_attention(q, k_BSKH, v_BSKH, mask=seen_BTS[:, None], implementation="xla")
        return block.after_attention(x_BTD, block.attn.output(context)), (k_BSKH, v_BSKH)

    x_BTD = model.embed(tokens_BT, positions_BT)
    x_BTD, (k, v) = jax.lax.scan(layer, x_BTD, (model.blocks, cache.k, cache.v))
    last_B1D = jax.lax.dynamic_slice_in_dim(model.norm(x_BTD), last, 1, axis=1)
    return model.logits(last_B1D)[:, 0], Cache(k, v)


def draw(logits_BV: Float[Array, "B V"], key: PRNGKeyArray, sampling: Sampling) -> Int[Array, " B"]:
    """The next token of each row."""
    if sampling.temperature == 0.0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / sampling.temperature
    ordered_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    floor_B = ordered_BV[:, -1]
    if 0 < sampling.top_k < logits_BV.shape[1]:
        floor_B = jnp.maximum(floor_B, ordered_BV[:, sampling.top_k - 1])
    if sampling.top_p < 1.0:
        p_BV = jax.nn.softmax(ordered_BV, axis=-1)
        # A token stays while the probability before it is below top_p, so the most likely one always stays.
        stays_BV = jnp.cumsum(p_BV, axis=-1) - p_BV < sampling.top_p
        floor_B = jnp.maximum(floor_B, jnp.min(jnp.where(stays_BV, ordered_BV, jnp.inf), axis=-1))
    return jax.random.categorical(key, jnp.where(logits_BV >= floor_B[:, None], logits_BV, -jnp.inf)).astype(jnp.int32)


@partial(jax.jit, static_argnums=(5, 7), donate_argnums=2)
def _next(
    model: Transformer,
    tokens_BT: jax.Array,
    cache: Cache,
    start: jax.Array,
    last: jax.Array,
    sampling: Sampling,
    key: Any,
    vocab: int,
) -> tuple[jax.Array, Cache]:
    logits, cache = extend(model, tokens_BT, cache, start, last)
    real = jnp.where(jnp.arange(logits.shape[1])[None] < vocab, logits, -jnp.inf)
    return draw(real, jax.random.fold_in(key, start + last), sampling), cache


def generate(
    model: Transformer,
    prompt: list[int],
    *,
    tokens: int,
    sampling: Sampling,
    seed: int = 0,
    end: int | None = None,
    vocab: int | None = None,
) -> Iterator[int]:
    """Yields up to `tokens` new tokens after `prompt`, stopping before the token `end`.

    `vocab` is the tokenizer's, where the model's is larger: a token that means nothing is never drawn. Raises
    ValueError for an empty prompt, or one that leaves no room in a learned position table, and ConfigError for a
    bidirectional model.
    """
    if not model.config.causal:
        raise ConfigError("model.causal=false: a bidirectional model cannot generate text, which has no right side yet")
    if not prompt:
        raise ValueError("the prompt is empty; it needs at least one token (the start of a document)")
    length = len(prompt) + tokens
    limit = model.config.positions if model.config.position == "learned" else None
    if limit is not None and length > limit:
        raise ConfigError(f"prompt ({len(prompt)} tokens) and {tokens} new tokens exceed the model's {limit} positions")
    model, vocab = plain(model), vocab or model.config.vocab
    padded = min(1 << (len(prompt) - 1).bit_length(), length)
    cache, key = empty_cache(model, 1, length), jax.random.key(seed)
    ids = jnp.asarray([prompt + [0] * (padded - len(prompt))], jnp.int32)
    at = lambda n: jnp.asarray(n, jnp.int32)
    token, cache = _next(model, ids, cache, at(0), at(len(prompt) - 1), sampling, key, vocab)
    for position in range(len(prompt), length):
        value = int(token[0])
        if value == end:
            return
        yield value
        if position + 1 < length:
            token, cache = _next(model, token[:, None], cache, at(position), at(0), sampling, key, vocab)


def plain(model: Transformer) -> Transformer:
    """The same weights, run without sharding constraints or rematerialisation."""
    execution = dataclasses.replace(model.execution, shard=Rules(), remat=(), kernel="xla")
    return _with_execution(model, execution)


def _with_execution(model: Transformer, execution: Any) -> Transformer:
    abstract = jax.eval_shape(lambda key: Transformer(model.config, execution, key=key), jax.random.key(0))
    return jax.tree.unflatten(jax.tree.structure(abstract), jax.tree.leaves(model))

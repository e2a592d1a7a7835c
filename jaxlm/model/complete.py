"""The most likely continuations of many prompts at once, through the key/value cache.

Axes: B rows, T slots of the prompts, S slots of the cache, N new tokens.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxlm.decode import ConfigError
from jaxlm.model.generate import empty_cache, extend, plain
from jaxlm.model.transformer import Transformer

STRIDE = 16
"""Prompts are padded to a multiple of this: each length is a program to compile."""


def complete(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    end: int,
    length: int,
    vocab: int | None = None,
    rows: int = 64,
) -> list[list[int]]:
    """Greedy decoding: after each prompt the most likely token, again and again, until that is `end` (which is left
    out) or prompt and continuation have `length` tokens together.

    Args:
        model: a causal one.
        prompts: token ids, each at least one and fewer than `length`.
        end: the token that ends a row.
        length: tokens of a row at most.
        vocab: of the tokenizer, where the model's is larger: a token that means nothing is never taken.
        rows: prompts that are decoded together; they are taken in the order of their lengths.

    Raises ValueError for a prompt that is empty or leaves no room, and ConfigError for a bidirectional model and for
    more tokens than the model has learned positions.
    """
    c = model.config
    if not c.causal:
        raise ConfigError("model.causal=false: a bidirectional model cannot generate text, which has no right side yet")
    if c.position == "learned" and length > c.positions:
        raise ConfigError(f"rows of {length} tokens exceed the model's {c.positions} positions")
    for number, prompt in enumerate(prompts):
        if not 0 < len(prompt) < length:
            raise ValueError(f"prompt {number} has {len(prompt)} tokens; rows of {length} need 1 to {length - 1}")
    model, made = plain(model), [[]] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    strides = [-(-len(prompts[number]) // STRIDE) for number in order]
    for stride in sorted(set(strides)):
        alike = [number for number, each in zip(order, strides, strict=True) if each == stride]
        for first in range(0, len(alike), rows):
            chosen = alike[first : first + rows]
            tokens, sizes = _left_padded([prompts[number] for number in chosen], rows, stride * STRIDE)
            found = _greedy(model, tokens, sizes, length=length, end=end, vocab=vocab or c.vocab)
            for number, row in zip(chosen, np.asarray(found).tolist(), strict=False):
                made[number] = row[: row.index(end)]
    return made


def _left_padded(prompts: list[Sequence[int]], rows: int, slots: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts that all end in the last slot, int32 [rows, slots], and their lengths; rows left over repeat the last."""
    tokens, sizes = np.zeros((rows, slots), np.int32), np.zeros(rows, np.int32)
    for row in range(rows):
        prompt = prompts[min(row, len(prompts) - 1)]
        tokens[row, slots - len(prompt) :] = prompt
        sizes[row] = len(prompt)
    return tokens, sizes


@partial(jax.jit, static_argnames=("length", "end", "vocab"))
def _greedy(
    model: Transformer,
    prompts_BT: Int[Array, "B T"],
    sizes_B: Int[Array, " B"],
    *,
    length: int,
    end: int,
    vocab: int,
) -> Int[Array, "B N"]:
    """New tokens of each row, `end` from its end on; the last of them is always `end`."""
    rows, slots = prompts_BT.shape
    begins_B, most_B = slots - sizes_B, length - sizes_B
    most = length - (slots - STRIDE)  # a prompt of these slots has more than slots - STRIDE tokens

    def step(tokens_BT: jax.Array, cache: Any, start: jax.Array, last: int) -> tuple[jax.Array, Any]:
        logits_BV, cache = extend(model, tokens_BT, cache, start, jnp.asarray(last, jnp.int32), begins_B)
        real_BV = jnp.where(jnp.arange(logits_BV.shape[1])[None] < vocab, logits_BV, -jnp.inf)
        return jnp.argmax(real_BV, axis=-1).astype(jnp.int32), cache

    def unfinished(carry: Any) -> jax.Array:
        at, _, _, _, done_B = carry
        return (at < most) & ~jnp.all(done_B)

    def add(carry: Any) -> Any:
        at, token_B, cache, made_BN, done_B = carry
        done_B = done_B | (token_B == end) | (at >= most_B)
        made_BN = made_BN.at[:, at].set(jnp.where(done_B, end, token_B))
        token_B, cache = step(token_B[:, None], cache, slots + at, 0)
        return at + 1, token_B, cache, made_BN, done_B

    zero = jnp.asarray(0, jnp.int32)
    token_B, cache = step(prompts_BT, empty_cache(model, rows, slots + most), zero, slots - 1)
    made_BN = jnp.full((rows, most + 1), end, jnp.int32)
    carry = (zero, token_B, cache, made_BN, jnp.zeros(rows, jnp.bool_))
    return jax.lax.while_loop(unfinished, add, carry)[3]

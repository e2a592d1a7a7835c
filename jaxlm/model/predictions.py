"""What a model would say, counted per token id beside the loss: for accuracy and F1, over a whole text.

Axes: B batch, T position, D embed, V padded vocabulary.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxlm.decode import ConfigError
from jaxlm.model.loss import Sums
from jaxlm.model.ops import pick
from jaxlm.model.transformer import Transformer

LOGITS = 1 << 28
"""Most logits (over all devices) held at a time; float32, so 1 GiB."""


def judged(model: Transformer, batch: Mapping[str, jax.Array]) -> Sums:
    """The sums of `next_token` (`nll` in nats, `weight` in tokens), and how often each token id came up.

    `hits`, `guesses` and `targets` are int32 [V], exact: how often an id was the most likely one and right, was the
    most likely one, was right. The most likely is the first of equals; the padding of the vocabulary never is.
    Tokens of weight 0 are not counted, all others count once. `batch` is that of `next_token`. The logits are made
    in pieces along the sequence, as many as the plan says for the loss, or more: never above LOGITS of them at once.
    Raises ConfigError for a bidirectional model.
    """
    if not model.config.causal:
        raise ConfigError("model.causal=false: a bidirectional model sees the next token, so it cannot be judged by it")
    x_BTD = model(batch["tokens"], batch["positions"], batch.get("segments"))
    head_DV = model.output_weights(x_BTD.dtype)
    targets_BT, weights_BT = batch["targets"], batch["weights"]
    pieces = _pieces(model, *targets_BT.shape)
    size = model.config.padded_vocab

    def piece(x_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array) -> Sums:
        logits_BTV = model.logits(x_BTD, head_DV)
        nll_BT = jax.nn.logsumexp(logits_BTV, axis=-1) - pick(logits_BTV, targets_BT)
        guesses_BT = jnp.argmax(logits_BTV, axis=-1)
        counted_BT = (weights_BT > 0).astype(jnp.int32)
        right_BT = counted_BT * (guesses_BT == targets_BT)
        tally = lambda ids_BT, counts_BT: jnp.zeros(size, jnp.int32).at[ids_BT].add(counts_BT)
        return {
            "nll": jnp.sum(nll_BT * weights_BT),
            "hits": tally(targets_BT, right_BT),
            "guesses": tally(guesses_BT, counted_BT),
            "targets": tally(targets_BT, counted_BT),
        }

    # Cut along the sequence, so that each piece keeps the batch sharding of the whole.
    def cut(a: jax.Array) -> jax.Array:
        return jnp.moveaxis(a.reshape(a.shape[0], pieces, a.shape[1] // pieces, *a.shape[2:]), 1, 0)

    def add(sums: Sums, item: tuple[jax.Array, ...]) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, sums, piece(*item)), None

    with jax.named_scope("judged"):
        zero = {"nll": jnp.zeros((), jnp.float32)} | {
            name: jnp.zeros(size, jnp.int32) for name in ("hits", "guesses", "targets")
        }
        sums, _ = jax.lax.scan(add, zero, (cut(x_BTD), cut(targets_BT), cut(weights_BT)))
    return sums | {"weight": jnp.sum(weights_BT)}


def _pieces(model: Transformer, batch: int, length: int) -> int:
    """A divisor of the length: that of the plan, or more of them if the logits would be too many."""
    least = max(model.execution.loss_chunks, math.ceil(batch * length * model.config.padded_vocab / LOGITS))
    return next(n for n in range(min(least, length), length + 1) if length % n == 0)

"""Next-token cross entropy, in one piece or in chunks that never hold the logits of all tokens.

Axes: B batch, T position, D embed, V padded vocabulary, C tokens of one chunk.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxlm.model.ops import pick
from jaxlm.model.transformer import Transformer

Sums = dict[str, jax.Array]


def next_token(
    model: Transformer, batch: Mapping[str, jax.Array], key: PRNGKeyArray | None = None
) -> tuple[Float[Array, ""], Sums]:
    """The SUM over weighted tokens of the loss, and sums to report: `nll` (nats) and `weight` (tokens).

    Sums, not means, so that microbatches and replicas with unequal token counts add up exactly (eq. 12 read as the
    token-weighted mean). `batch`: tokens, targets, positions [B, T] int32, weights [B, T] float32, and segments
    [B, T] int32 where rows hold several documents. Raises ValueError for a bidirectional model.
    """
    if not model.config.causal:
        raise ValueError(
            "model.causal=false: a bidirectional model sees the token that it should predict; set model.causal to "
            "true, or train it with another objective (jaxlm.model.classify.classify)"
        )
    x_BTD = model(batch["tokens"], batch["positions"], batch.get("segments"), key)
    with jax.named_scope("loss"):
        head_DV = model.output_weights(x_BTD.dtype)
        losses = _piece if model.execution.loss_chunks == 1 else _chunked
        x_BTD, head_DV = _settled(model, x_BTD, head_DV)
        total, nll = losses(model, x_BTD, head_DV, batch["targets"], batch["weights"])
        return total, {"nll": nll, "weight": jnp.sum(batch["weights"])}


def _settled(model: Transformer, x_BTD: jax.Array, head_DV: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both; on the way back the gradient of the head is finished, and where the head rests, before any block begins.

    Left to itself XLA may hold what it is made of through the backward passes of all blocks: the logits' gradient (0.4
    of 1.0 GB for GPT-2 350M on 8 GPUs), or float32 sums over pieces of the loss (2 of 18 GiB for Llama-8B on 512).
    """
    shard = model.execution.shard

    @jax.custom_vjp
    def settled(x: jax.Array, head: jax.Array) -> tuple[jax.Array, jax.Array]:
        return x, head

    def back(_: None, gradients: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        dx, dhead = jax.lax.optimization_barrier((gradients[0], shard.resting(gradients[1], "embed", "vocab")))
        return dx, dhead

    settled.defvjp(lambda x, head: ((x, head), None), back)
    return settled(x_BTD, head_DV)


Losses = tuple[Float[Array, ""], Float[Array, ""]]


def _chunked(
    model: Transformer, x_BTD: jax.Array, head_DV: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
) -> Losses:
    """As `_piece`, one chunk of the sequence after another.

    Differentiated, each chunk computes its gradients along with its loss, so nothing of it is kept and no logits are
    computed twice; those of the head add up in float32, in one place, and travel between devices once.
    """
    chunks, length = model.execution.loss_chunks, x_BTD.shape[1]
    if length % chunks:
        raise ValueError(f"loss_chunks={chunks} does not divide the sequence length {length}")

    # Cut along the sequence, so that each chunk keeps the batch sharding of the whole.
    def cut(a: jax.Array) -> jax.Array:
        return jnp.moveaxis(a.reshape(a.shape[0], chunks, length // chunks, *a.shape[2:]), 1, 0)

    # Sums that lay as the head does at rest would be sent to where they belong after every chunk.
    at_work = lambda head: model.execution.shard(head, None, "vocab")
    zero = jnp.zeros((), jnp.float32)
    rest = (cut(targets_BT), cut(weights_BT))

    @jax.custom_vjp
    def losses(x_BTD: jax.Array, head_DV: jax.Array) -> Losses:
        def add(sums: Losses, chunk: tuple[jax.Array, ...]) -> tuple[Losses, None]:
            x, *labels = chunk
            total, nll = _piece(model, x, head_DV, *labels)
            return (sums[0] + total, sums[1] + nll), None

        return jax.lax.scan(add, (zero, zero), (cut(x_BTD), *rest))[0]

    def forward(x_BTD: jax.Array, head_DV: jax.Array) -> tuple[Losses, tuple[jax.Array, jax.Array]]:
        def add(carry: tuple[Losses, jax.Array], chunk: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
            (sums, dhead), (x, *labels) = carry, chunk
            total, pull, nll = jax.vjp(lambda x, head: _piece(model, x, head, *labels), x, head_DV, has_aux=True)
            dx, more = pull(jnp.ones_like(total))
            return ((sums[0] + total, sums[1] + nll), dhead + more.astype(jnp.float32)), dx

        start = ((zero, zero), at_work(jnp.zeros(head_DV.shape, jnp.float32)))
        (sums, dhead), dx = jax.lax.scan(add, start, (cut(x_BTD), *rest))
        dhead = at_work(dhead)
        return sums, (jnp.moveaxis(dx, 0, 1).reshape(x_BTD.shape), dhead.astype(head_DV.dtype))

    def backward(gradients: tuple[jax.Array, jax.Array], given: Losses) -> tuple[jax.Array, ...]:
        # Only the total is differentiated; the nll beside it is a report.
        return tuple((g * given[0]).astype(g.dtype) for g in gradients)

    losses.defvjp(forward, backward)
    return losses(x_BTD, head_DV)


def _piece(
    model: Transformer, x_BTD: jax.Array, head_DV: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
) -> Losses:
    """Sums over some positions: of the weighted loss, and of its negative log-likelihood alone (nats)."""
    logits_BTV = model.logits(x_BTD, head_DV)
    partition_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    nll = jnp.sum((partition_BT - pick(logits_BTV, targets_BT)) * weights_BT)
    if model.config.z_loss == 0.0:
        return nll, nll
    return nll + model.config.z_loss * jnp.sum(jnp.square(partition_BT) * weights_BT), nll

"""Next-token cross entropy, in one piece or in chunks that never hold the logits of all tokens.

Axes: B batch, T position, D embed, V padded vocabulary, C tokens of one chunk.
"""

from collections.abc import Mapping

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
    [B, T] int32 where rows hold several documents.
    """
    x_BTD = model(batch["tokens"], batch["positions"], batch.get("segments"), key)
    with jax.named_scope("loss"):
        nll, square = _losses(model, x_BTD, batch)
        weight = jnp.sum(batch["weights"])
        total = nll if model.config.z_loss == 0.0 else nll + model.config.z_loss * square
        return total, {"nll": nll, "weight": weight}


def _losses(model: Transformer, x_BTD: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    chunks = model.execution.loss_chunks
    targets, weights = batch["targets"], batch["weights"]
    if chunks == 1:
        return _piece(model, x_BTD, targets, weights)
    length = x_BTD.shape[1]
    if length % chunks:
        raise ValueError(f"loss_chunks={chunks} does not divide the sequence length {length}")

    # Cut along the sequence, so that each chunk keeps the batch sharding of the whole.
    def cut(a: jax.Array) -> jax.Array:
        return jnp.moveaxis(a.reshape(a.shape[0], chunks, length // chunks, *a.shape[2:]), 1, 0)

    # Keep nothing of a chunk: its logits are computed again in the backward pass.
    piece = jax.checkpoint(_piece, prevent_cse=False)

    def body(
        sums: tuple[jax.Array, jax.Array], chunk: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        nll, square = piece(model, *chunk)
        return (sums[0] + nll, sums[1] + square), None

    zero = jnp.zeros((), jnp.float32)
    sums, _ = jax.lax.scan(body, (zero, zero), (cut(x_BTD), cut(targets), cut(weights)))
    return sums


def _piece(
    model: Transformer, x_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sum of weighted negative log-likelihoods (nats) and of squared log-partition values, of some positions."""
    logits_BTV = model.logits(x_BTD)
    partition_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    nll = jnp.sum((partition_BT - pick(logits_BTV, targets_BT)) * weights_BT)
    return nll, jnp.sum(jnp.square(partition_BT) * weights_BT)

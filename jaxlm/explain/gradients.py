"""Gradients of the class's log odds: with respect to embeddings, to attention, and along a path from nothing.

Every function has the signature of `jaxlm.explain.relevance` and returns float32 [B, T].

Axes: L layers, B rows, T position, S key position, N heads, D embed.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlm.explain.relevance import Batch, every_layer, judged, last_layer_gradient, nothing, of_embeddings
from jaxlm.explain.subject import chosen, log_odds
from jaxlm.model.classifier import Classifier


def _wanted(model: Classifier, batch: Batch, classes_B: Int[Array, " B"]) -> Float[Array, "B C"]:
    return chosen(model.logits(batch["tokens"], batch["positions"], batch["segments"]), classes_B)


def _heard(batch: Batch) -> Float[Array, "B T"]:
    return (batch["segments"] > 0).astype(jnp.float32)


def _embedding_gradient(
    model: Classifier, batch: Batch, classes_B: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Embeddings, the gradient on them, and that on what a bag beside the encoder hears."""
    x_BTD = model.embed(batch["tokens"], batch["positions"])

    def score(x_BTD: jax.Array, heard_BT: jax.Array) -> jax.Array:
        logits_BC = judged(model, model.trunk(x_BTD, batch["positions"], batch["segments"]), batch, heard_BT)
        return jnp.sum(log_odds(logits_BC, jax.lax.stop_gradient(chosen(logits_BC, classes_B))))

    return x_BTD, *jax.grad(score, argnums=(0, 1))(x_BTD, _heard(batch))


def gradient_norm(model: Classifier, batch: Batch, classes_B: Int[Array, " B"]) -> jax.Array:
    """Length of the gradient at each embedding: the salience map that LIT shows first. Never negative."""
    _, dx_BTD, _ = _embedding_gradient(model, batch, classes_B)
    return jnp.linalg.norm(dx_BTD.astype(jnp.float32), axis=-1)


def gradient_input(model: Classifier, batch: Batch, classes_B: Int[Array, " B"]) -> jax.Array:
    """Gradient times embedding, and times the word's presence in a bag beside the encoder."""
    x_BTD, dx_BTD, dheard_BT = _embedding_gradient(model, batch, classes_B)
    return jnp.sum((x_BTD * dx_BTD).astype(jnp.float32), axis=-1) + dheard_BT


def integrated(
    model: Classifier, batch: Batch, classes_B: Int[Array, " B"], *, steps: int = 32, mask: int = -1
) -> jax.Array:
    """Integrated gradients (https://arxiv.org/abs/1703.01365) from `relevance.nothing`, by the midpoints of `steps`
    equal intervals; a bag beside the encoder begins by hearing nothing. The scores of a row add up to what the log odds
    differ by between its end and its beginning (`completeness`)."""
    x_BTD, onehot_BC = model.embed(batch["tokens"], batch["positions"]), _wanted(model, batch, classes_B)
    none_BTD, heard_BT = nothing(model, batch, mask), _heard(batch)
    way_BTD = x_BTD - none_BTD
    odds = lambda x_BTD, heard_BT: jnp.sum(of_embeddings(model, x_BTD, batch, onehot_BC, heard_BT))
    slope = jax.grad(odds, argnums=(0, 1))

    def add(total: tuple[jax.Array, jax.Array], at: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        dx_BTD, dheard_BT = slope(none_BTD + way_BTD * at.astype(x_BTD.dtype), heard_BT * at)
        return (total[0] + dx_BTD, total[1] + dheard_BT), None

    places = (jnp.arange(steps, dtype=jnp.float32) + 0.5) / steps
    (total_BTD, total_BT), _ = jax.lax.scan(add, (jnp.zeros_like(x_BTD), jnp.zeros_like(heard_BT)), places)
    return (jnp.sum((way_BTD * total_BTD).astype(jnp.float32), axis=-1) + total_BT) / steps


def completeness(
    model: Classifier, batch: Batch, classes_B: Int[Array, " B"], scores_BT: Float[Array, "B T"], *, mask: int = -1
) -> Float[Array, " B"]:
    """What the scores of each row miss of the difference in log odds between its text and nothing."""
    x_BTD, onehot_BC = model.embed(batch["tokens"], batch["positions"]), _wanted(model, batch, classes_B)
    value = lambda x, heard: of_embeddings(model, x, batch, onehot_BC, heard * _heard(batch))
    return value(x_BTD, 1.0) - value(nothing(model, batch, mask), 0.0) - jnp.sum(scores_BT, axis=-1)


def grad_cam(model: Classifier, batch: Batch, classes_B: Int[Array, " B"]) -> jax.Array:
    """Grad-CAM on what enters the last layer: channels weighed by their mean gradient over the row, negative sums cut
    (https://arxiv.org/abs/1610.02391, positions in place of pixels)."""
    x_BTD, _, dx_BTD, _ = last_layer_gradient(model, batch, classes_B)
    real_BT = (batch["segments"] > 0).astype(jnp.float32)
    weights_BD = jnp.einsum("BTD,BT->BD", dx_BTD.astype(jnp.float32), real_BT) / jnp.sum(real_BT, -1, keepdims=True)
    return jax.nn.relu(jnp.einsum("BTD,BD->BT", x_BTD.astype(jnp.float32), weights_BD)) * real_BT


def attention_gradient(model: Classifier, batch: Batch, classes_B: Int[Array, " B"]) -> jax.Array:
    """Attention of the last layer times the gradient of the class, positive parts, received by each position
    (https://arxiv.org/abs/2103.15679 without its propagation)."""
    _, maps_BNTS, _, dmaps_BNTS = last_layer_gradient(model, batch, classes_B)
    return jnp.sum(jax.nn.relu(maps_BNTS * dmaps_BNTS), axis=(1, 2))


def attention_gradient_rollout(model: Classifier, batch: Batch, classes_B: Int[Array, " B"]) -> jax.Array:
    """Attention times gradient in all layers, heads averaged, propagated through the residual stream (the rule for
    self-attention of https://arxiv.org/abs/2103.15679), read at the positions that the classifier pools."""
    found = every_layer(model, batch, classes_B)
    cams_LBTS = jnp.mean(jax.nn.relu(found.maps * found.dmaps), axis=2)

    def through(r_BS: jax.Array, cam_BTS: jax.Array) -> tuple[jax.Array, None]:
        return r_BS + jnp.einsum("BT,BTS->BS", r_BS, cam_BTS), None

    r_BS, _ = jax.lax.scan(through, found.pooled, cams_LBTS, reverse=True)
    # What only sits there because the position is pooled says nothing of the class.
    return (r_BS - found.pooled) * (batch["segments"] > 0)

"""Gradients of the class's log odds: with respect to embeddings, to attention, and along a path from nothing.

Every function has the signature of `jaxlm.explain.relevance` and returns float32 [B, T].

Axes: L layers, B rows, T position, S key position, N heads, D embed.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlm.explain.relevance import Batch, every_layer, last_layer_gradient, nothing, of_embeddings
from jaxlm.explain.subject import chosen, log_odds
from jaxlm.model.classifier import Classifier


def _wanted(model: Classifier, batch: Batch, classes_B: Int[Array, " B"]) -> Float[Array, "B C"]:
    pooled_BD = model.represent(batch["tokens"], batch["positions"], batch["segments"])
    return chosen(model.classify(pooled_BD), classes_B)


def _embedding_gradient(model: Classifier, batch: Batch, classes_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_BTD = model.embed(batch["tokens"], batch["positions"])

    def score(x_BTD: jax.Array) -> jax.Array:
        out_BTD = model.trunk(x_BTD, batch["positions"], batch["segments"])
        logits_BC = model.classify(model.pool(out_BTD, batch["segments"]))
        return jnp.sum(log_odds(logits_BC, jax.lax.stop_gradient(chosen(logits_BC, classes_B))))

    return x_BTD, jax.grad(score)(x_BTD)


def gradient_norm(model: Classifier, batch: Batch, classes_B: Int[Array, " B"]) -> jax.Array:
    """Length of the gradient at each embedding: the salience map that LIT shows first. Never negative."""
    _, dx_BTD = _embedding_gradient(model, batch, classes_B)
    return jnp.linalg.norm(dx_BTD.astype(jnp.float32), axis=-1)


def gradient_input(model: Classifier, batch: Batch, classes_B: Int[Array, " B"]) -> jax.Array:
    """Gradient times embedding."""
    x_BTD, dx_BTD = _embedding_gradient(model, batch, classes_B)
    return jnp.sum((x_BTD * dx_BTD).astype(jnp.float32), axis=-1)


def integrated(
    model: Classifier, batch: Batch, classes_B: Int[Array, " B"], *, steps: int = 32, mask: int = -1
) -> jax.Array:
    """Integrated gradients (https://arxiv.org/abs/1703.01365) from `relevance.nothing`, by the midpoints of `steps`
    equal intervals. The scores of a row add up to what the log odds differ by between its end and its beginning
    (`completeness`)."""
    x_BTD, onehot_BC = model.embed(batch["tokens"], batch["positions"]), _wanted(model, batch, classes_B)
    none_BTD = nothing(model, batch, mask)
    way_BTD = x_BTD - none_BTD
    slope = jax.grad(lambda x_BTD: jnp.sum(of_embeddings(model, x_BTD, batch, onehot_BC)))

    def add(total_BTD: jax.Array, at: jax.Array) -> tuple[jax.Array, None]:
        return total_BTD + slope(none_BTD + way_BTD * at.astype(x_BTD.dtype)), None

    places = (jnp.arange(steps, dtype=jnp.float32) + 0.5) / steps
    total_BTD, _ = jax.lax.scan(add, jnp.zeros_like(x_BTD), places)
    return jnp.sum((way_BTD * total_BTD).astype(jnp.float32), axis=-1) / steps


def completeness(
    model: Classifier, batch: Batch, classes_B: Int[Array, " B"], scores_BT: Float[Array, "B T"], *, mask: int = -1
) -> Float[Array, " B"]:
    """What the scores of each row miss of the difference in log odds between its text and nothing."""
    x_BTD, onehot_BC = model.embed(batch["tokens"], batch["positions"]), _wanted(model, batch, classes_B)
    value = lambda x: of_embeddings(model, x, batch, onehot_BC)
    return value(x_BTD) - value(nothing(model, batch, mask)) - jnp.sum(scores_BT, axis=-1)


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

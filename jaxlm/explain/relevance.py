"""Relevance from attention: eq. 15 and algorithm 3 of the paper, and what an attention score has to add to them.

The maps are those of the final layer, computed anew from its queries and keys, because the fused kernels that train the
model never hold them; the layers before it run with the kernel that the model was built with.

Two facts decide the design. The row sums of a softmax are 1, so algorithm 3 taken literally gives every token the same
score (`paper_literal`, kept as a negative control). And an increasing psi keeps the order of each row of attention, so
eq. 15 alone selects the same tokens as plain attention: what is new must come from elsewhere, here from the gradient of
the class (`grounded`), or from people (`jaxlm.explain.psi`).

Every function here is jittable, works for encoders and decoders and under any sharding of the model, and returns
float32 [B, T], 0 on padding.

Axes: B rows, T query position, S key position, N heads, D embed, H head_dim, C classes.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlm.explain.subject import chosen, log_odds
from jaxlm.model.attention_map import before_last, block_with_map, sees
from jaxlm.model.classifier import Classifier, pooling_weights

Batch = Mapping[str, jax.Array]
"""tokens, positions, segments int32 [B, T]."""

Psi = Callable[[jax.Array], jax.Array]
"""Entry by entry, from an attention probability to an exponent."""

Queries = Literal["all", "pooled"]


def identity(alpha: jax.Array) -> jax.Array:
    return alpha


def scaled_tanh(alpha: jax.Array, scale: float = 4.0, slope: float = 8.0) -> jax.Array:
    """`scale * tanh(slope * alpha)`: the paper names a scaled tanh and no constants; these are ours."""
    return scale * jnp.tanh(slope * alpha)


PSI: dict[str, Psi] = {"identity": identity, "tanh": scaled_tanh}


def normalised(
    maps_BNTS: Float[Array, "B N T S"], sees_B1TS: Bool[Array, "B 1 T S"], psi: Psi
) -> Float[Array, "B N T S"]:
    """Eq. 15: exp(psi(alpha)) over its sum along the keys that the query may see; the others get 0, not exp(psi(0))."""
    return jax.nn.softmax(jnp.where(sees_B1TS, psi(maps_BNTS), -jnp.inf), axis=-1)


def final_maps(model: Classifier, batch: Batch) -> tuple[Float[Array, "B N T S"], Bool[Array, "B 1 T S"]]:
    """The attention probabilities of the last layer, exact, float32; and who sees whom."""
    x_BTD = model.embed(batch["tokens"], batch["positions"])
    x_BTD, last = before_last(model, x_BTD, batch["positions"], batch["segments"])
    sees_B1TS = sees(model, x_BTD, batch["segments"])
    _, maps_BNTS, _ = block_with_map(last, x_BTD, batch["positions"], sees_B1TS)
    return maps_BNTS, sees_B1TS


def query_weights(model: Classifier, batch: Batch, queries: Queries) -> Float[Array, "B T"]:
    """What each query position counts: `all` real ones alike, or as much as the classifier `pooled` it."""
    if queries == "pooled":
        return pooling_weights(batch["segments"], model.pooling)
    return _real(batch)


def received(maps_BNTS: Float[Array, "B N T S"], queries_BT: Float[Array, "B T"]) -> Float[Array, "B S"]:
    """The attention that each position receives, from all heads."""
    return jnp.einsum("BNTS,BT->BS", maps_BNTS, queries_BT)


def vanilla(model: Classifier, batch: Batch, classes_B: Int[Array, " B"], *, queries: Queries = "all") -> jax.Array:
    """Plain attention received in the final layer. `classes_B` changes nothing: attention knows no class."""
    maps_BNTS, _ = final_maps(model, batch)
    return received(maps_BNTS, query_weights(model, batch, queries)) * _real(batch)


def shuffled(model: Classifier, batch: Batch, classes_B: Int[Array, " B"], *, seed: int = 0) -> jax.Array:
    """Plain attention whose scores are dealt out anew among the real positions of each row: a negative control."""
    scores_BT, real_BT = vanilla(model, batch, classes_B), _real(batch)
    noise_BT = jax.random.uniform(jax.random.key(seed), scores_BT.shape)
    # Real positions first, in random order; their scores go to the real positions from the left.
    order_BT = jnp.argsort(jnp.where(real_BT > 0, noise_BT, 2.0), axis=-1)
    return jnp.take_along_axis(scores_BT, order_BT, axis=-1) * real_BT


def paper_literal(model: Classifier, batch: Batch, classes_B: Int[Array, " B"], *, psi: str = "identity") -> jax.Array:
    """Algorithm 3 as printed: the sum over keys j of R[h][i, j], per position i. A softmax adds up to 1, so all scores
    tie: a negative control."""
    maps_BNTS, sees_B1TS = final_maps(model, batch)
    return jnp.mean(jnp.sum(normalised(maps_BNTS, sees_B1TS, PSI[psi]), axis=-1), axis=1) * _real(batch)


def paper(
    model: Classifier,
    batch: Batch,
    classes_B: Int[Array, " B"],
    *,
    psi: str = "identity",
    queries: Queries = "all",
) -> jax.Array:
    """Eq. 15 with algorithm 3 read as attention *received*: the sum over queries, and heads, of R."""
    maps_BNTS, sees_B1TS = final_maps(model, batch)
    r_BNTS = normalised(maps_BNTS, sees_B1TS, PSI[psi])
    return received(r_BNTS, query_weights(model, batch, queries)) * _real(batch)


def _real(batch: Batch) -> Float[Array, "B T"]:
    return (batch["segments"] > 0).astype(jnp.float32)


def head(
    model: Classifier, x_BTD: Float[Array, "B T D"], batch: Batch, classes_B: Int[Array, " B"]
) -> Float[Array, " B"]:
    """The log odds of each row's class, from the last block's output; the predicted class where none is asked for."""
    logits_BC = model.classify(model.pool(model.norm(x_BTD), batch["segments"]))
    return log_odds(logits_BC, jax.lax.stop_gradient(chosen(logits_BC, classes_B)))


def last_layer_gradient(model: Classifier, batch: Batch, classes_B: Int[Array, " B"]) -> tuple[Any, ...]:
    """What enters the last layer [B, T, D], its maps [B, N, T, S], and the gradients of the class's log odds with
    respect to both. The layers before are run forward only."""
    x_BTD = model.embed(batch["tokens"], batch["positions"])
    x_BTD, last = before_last(model, x_BTD, batch["positions"], batch["segments"])
    sees_B1TS = sees(model, x_BTD, batch["segments"])
    B, T, _ = x_BTD.shape

    def score(x_BTD: jax.Array, added_BNTS: jax.Array) -> tuple[jax.Array, jax.Array]:
        out_BTD, maps_BNTS, _ = block_with_map(last, x_BTD, batch["positions"], sees_B1TS, added_BNTS)
        return jnp.sum(head(model, out_BTD, batch, classes_B)), maps_BNTS

    none_BNTS = jnp.zeros((B, model.config.heads, T, T), jnp.float32)
    (dx_BTD, dmaps_BNTS), maps_BNTS = jax.grad(score, argnums=(0, 1), has_aux=True)(x_BTD, none_BNTS)
    return x_BTD, maps_BNTS, dx_BTD, dmaps_BNTS

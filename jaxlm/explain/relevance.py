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
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlm.explain.subject import NOTHING, chosen, log_odds
from jaxlm.model.attention_map import attention_in_the_open, before_last, block_with_map, sees, trunk_with_maps
from jaxlm.model.classifier import Classifier

Batch = Mapping[str, jax.Array]
"""tokens, positions, segments int32 [B, T]."""

Psi = Callable[[jax.Array], jax.Array]
"""Entry by entry, from an attention probability to an exponent."""

Queries = Literal["all", "pooled"]
"""Which query positions hand out attention: all real ones alike, or as much as the classifier pools them."""


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


@dataclass(frozen=True, slots=True)
class Final:
    """The last layer in the open: its attention probabilities [B, N, T, S], exact, float32; who sees whom
    [B, 1, T, S]; and the share of each position in what the classifier reads [B, T]."""

    maps: Float[Array, "B N T S"]
    sees: Bool[Array, "B 1 T S"]
    pooled: Float[Array, "B T"]


def final(model: Classifier, batch: Batch) -> Final:
    """Runs the model up to its pooling, the last layer in the open."""
    x_BTD = model.embed(batch["tokens"], batch["positions"])
    x_BTD, last = before_last(model, x_BTD, batch["positions"], batch["segments"])
    sees_B1TS = sees(model, x_BTD, batch["segments"])
    x_BTD, maps_BNTS = block_with_map(last, x_BTD, batch["positions"], sees_B1TS)
    return Final(maps_BNTS, sees_B1TS, model.shares(model.norm(x_BTD), batch["segments"]))


def received(maps_BNTS: Float[Array, "B N T S"], queries_BT: Float[Array, "B T"]) -> Float[Array, "B S"]:
    """The attention that each position receives, from all heads."""
    return jnp.einsum("BNTS,BT->BS", maps_BNTS, queries_BT)


def vanilla(model: Classifier, batch: Batch, classes_B: Int[Array, " B"], *, queries: Queries = "all") -> jax.Array:
    """Plain attention received in the final layer. `classes_B` changes nothing: attention knows no class."""
    found = final(model, batch)
    return received(found.maps, found.pooled if queries == "pooled" else _real(batch)) * _real(batch)


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
    found = final(model, batch)
    return jnp.mean(jnp.sum(normalised(found.maps, found.sees, PSI[psi]), axis=-1), axis=1) * _real(batch)


def paper(
    model: Classifier,
    batch: Batch,
    classes_B: Int[Array, " B"],
    *,
    psi: str = "identity",
    queries: Queries = "all",
) -> jax.Array:
    """Eq. 15 with algorithm 3 read as attention *received*: the sum over queries, and heads, of R."""
    found = final(model, batch)
    r_BNTS = normalised(found.maps, found.sees, PSI[psi])
    return received(r_BNTS, found.pooled if queries == "pooled" else _real(batch)) * _real(batch)


def _real(batch: Batch) -> Float[Array, "B T"]:
    return (batch["segments"] > 0).astype(jnp.float32)


def judged(
    model: Classifier,
    out_BTD: Float[Array, "B T D"],
    batch: Batch,
    heard_BT: Float[Array, "B T"] | None = None,
) -> Float[Array, "B C"]:
    """The logits from the trunk's output. Where a bag of words stands beside the encoder, `heard_BT` says how much of
    each position the bag hears (all of it where None): the gradient with respect to it is what the word adds there."""
    logits_BC = model.joined(model.classify(model.pool(out_BTD, batch["segments"])), batch["tokens"], batch["segments"])
    if model.wide is None or heard_BT is None:
        return logits_BC
    # The bag is linear in its words, and the joined logits hold half of it.
    words_BTC = model.wide.by_word(batch["tokens"], batch["segments"])
    return logits_BC + jnp.einsum("BTC,BT->BC", words_BTC, heard_BT - 1.0) / 2


def head(
    model: Classifier,
    x_BTD: Float[Array, "B T D"],
    batch: Batch,
    classes_B: Int[Array, " B"],
    heard_BT: Float[Array, "B T"] | None = None,
) -> Float[Array, " B"]:
    """The log odds of each row's class, from the last block's output; the predicted class where none is asked for."""
    logits_BC = judged(model, model.norm(x_BTD), batch, heard_BT)
    return log_odds(logits_BC, jax.lax.stop_gradient(chosen(logits_BC, classes_B)))


def of_embeddings(
    model: Classifier,
    x_BTD: Float[Array, "B T D"],
    batch: Batch,
    onehot_BC: Float[Array, "B C"],
    heard_BT: Float[Array, "B T"] | None = None,
) -> Float[Array, " B"]:
    """The log odds of each row's class, from its embeddings and what a bag beside the encoder hears of its words."""
    out_BTD = model.trunk(x_BTD, batch["positions"], batch["segments"])
    return log_odds(judged(model, out_BTD, batch, heard_BT), onehot_BC)


def last_layer_gradient(model: Classifier, batch: Batch, classes_B: Int[Array, " B"]) -> tuple[Any, ...]:
    """What enters the last layer [B, T, D], its maps [B, N, T, S], and the gradients of the class's log odds with
    respect to both. The layers before are run forward only."""
    x_BTD = model.embed(batch["tokens"], batch["positions"])
    x_BTD, last = before_last(model, x_BTD, batch["positions"], batch["segments"])
    sees_B1TS = sees(model, x_BTD, batch["segments"])
    B, T, _ = x_BTD.shape

    def score(x_BTD: jax.Array, added_BNTS: jax.Array) -> tuple[jax.Array, jax.Array]:
        out_BTD, maps_BNTS = block_with_map(last, x_BTD, batch["positions"], sees_B1TS, added_BNTS)
        return jnp.sum(head(model, out_BTD, batch, classes_B)), maps_BNTS

    none_BNTS = jnp.zeros((B, model.config.heads, T, T), jnp.float32)
    (dx_BTD, dmaps_BNTS), maps_BNTS = jax.grad(score, argnums=(0, 1), has_aux=True)(x_BTD, none_BNTS)
    return x_BTD, maps_BNTS, dx_BTD, dmaps_BNTS


def grounded_last(model: Classifier, batch: Batch, classes_B: Int[Array, " B"], *, along: bool = True) -> jax.Array:
    """The last layer's attention grounded in the class, for less than a pass back through that layer: what each
    position gives the class through attention (its gradient knows the values and the class; what speaks against it is
    left out), and through its own residual stream (gradient times what sets it apart from the row's mean).

    The residual stream and the context of attention meet before the feed-forward layer, so one pass back from the class
    to there gives both gradients; nothing goes back through the softmax, queries, keys or values. `along` False leaves
    the residual stream out, and what a bag beside the encoder hears.
    """
    x_BTD = model.embed(batch["tokens"], batch["positions"])
    x_BTD, last = before_last(model, x_BTD, batch["positions"], batch["segments"])
    found = attention_in_the_open(last, x_BTD, batch["positions"], sees(model, x_BTD, batch["segments"]))

    def score(x_BTD: jax.Array, context_BTNH: jax.Array, heard_BT: jax.Array) -> jax.Array:
        out_BTD = last.after_attention(x_BTD, last.attn.output(context_BTNH))
        return jnp.sum(head(model, out_BTD, batch, classes_B, heard_BT))

    dx_BTD, dcontext_BTNH, dheard_BT = jax.grad(score, argnums=(0, 1, 2))(x_BTD, found.context, _real(batch))
    dmaps_BNTS = jnp.einsum("BTNH,BSNH->BNTS", dcontext_BTNH, found.values, preferred_element_type=jnp.float32)
    scores_BT = jnp.sum(found.maps * jax.nn.relu(dmaps_BNTS), axis=(1, 2))
    if along:
        real_BT1 = _real(batch)[:, :, None]
        count_B11 = jnp.maximum(jnp.sum(real_BT1, axis=1, keepdims=True), 1.0)
        apart_BTD = x_BTD - jnp.sum(x_BTD * real_BT1, axis=1, keepdims=True) / count_B11
        scores_BT += jnp.sum((apart_BTD * dx_BTD).astype(jnp.float32), axis=-1) + dheard_BT
    return scores_BT * _real(batch)


@dataclass(frozen=True, slots=True)
class EveryLayer:
    """Attention of all layers [L, B, N, T, S] and the gradient of the class's log odds on it; embeddings and theirs
    [B, T, D]; the trunk's output [B, T, D]; the share of each position in what the classifier reads [B, T]; the classes
    explained [B, C]; the gradient on how much of each position a bag beside the encoder hears, 0 without one [B, T]."""

    maps: jax.Array
    dmaps: jax.Array
    x: jax.Array
    dx: jax.Array
    out: jax.Array
    pooled: jax.Array
    members: jax.Array
    dheard: jax.Array


def nothing(model: Classifier, batch: Batch, mask: int) -> Float[Array, "B T D"]:
    """Embeddings of a text that says nothing: every position hidden by the id `mask`, or zeros where it is negative
    (a model that was trained with no hidden words has no such id).

    Zeros are a poor place to begin for a model with RMSNorm, which does not see how long its input is: all of the way
    from zero happens at its very start.
    """
    if mask < 0:
        return jnp.zeros_like(model.embed(batch["tokens"], batch["positions"]))
    return model.embed(jnp.where(batch["segments"] > 0, mask, batch["tokens"]), batch["positions"])


def every_layer(
    model: Classifier, batch: Batch, classes_B: Int[Array, " B"], *, mask: int = -1, at: float = 1.0
) -> EveryLayer:
    """One pass forward and one back through the model, all attention in the open, `at` on the way from nothing (0) to
    the text (1). `x` are the embeddings of the text less those of nothing."""
    text_BTD = model.embed(batch["tokens"], batch["positions"])
    x_BTD = text_BTD
    if at < 1.0:
        none_BTD = nothing(model, batch, mask)
        text_BTD, x_BTD = text_BTD - none_BTD, none_BTD + at * (text_BTD - none_BTD)
        wanted_B = _settled(model, batch, classes_B)
    else:
        wanted_B = classes_B
    B, T, _ = x_BTD.shape

    def score(x_BTD: jax.Array, added: jax.Array, heard_BT: jax.Array) -> tuple[jax.Array, Any]:
        out_BTD, maps = trunk_with_maps(model, x_BTD, batch["positions"], batch["segments"], added)
        share_BT = model.shares(out_BTD, batch["segments"])
        logits_BC = judged(model, out_BTD, batch, heard_BT)
        members_BC = jax.lax.stop_gradient(chosen(logits_BC, wanted_B))
        return jnp.sum(log_odds(logits_BC, members_BC)), (maps, out_BTD, share_BT, members_BC)

    none = jnp.zeros((model.config.layers, B, model.config.heads, T, T), jnp.float32)
    heard_BT = at * _real(batch)
    (dx_BTD, dmaps, dheard_BT), (maps, out_BTD, share_BT, members_BC) = jax.grad(
        score, argnums=(0, 1, 2), has_aux=True
    )(x_BTD, none, heard_BT)
    return EveryLayer(maps, dmaps, text_BTD, dx_BTD, out_BTD, share_BT, members_BC, dheard_BT)


def _settled(model: Classifier, batch: Batch, classes_B: Int[Array, " B"]) -> Int[Array, " B"]:
    """The classes asked for, with the one predicted for the whole text in place of NOTHING: a forward pass more, run
    only where a row asks for it."""

    def predicted() -> jax.Array:
        logits_BC = model.logits(batch["tokens"], batch["positions"], batch["segments"])
        likely_B = jnp.argmax(logits_BC, axis=-1).astype(classes_B.dtype)
        return jnp.where(classes_B == NOTHING, likely_B, classes_B)

    return jax.lax.cond(jnp.any(classes_B == NOTHING), predicted, lambda: classes_B)


def grounded(
    model: Classifier, batch: Batch, classes_B: Int[Array, " B"], *, mask: int = -1, alone: bool = True
) -> jax.Array:
    """Our relevance without supervision, the sum of two shares of the class's log odds:

    - what a position gives through attention: every layer's attention where its gradient speaks for the class, received
      from all queries, heads and layers. The gradient of an entry is the class's slope along the value that it carries,
      so value norms are in it; entries that speak against the class are left out rather than cancelled against others.
    - what its word says alone: along its embedding to a model that has read nothing yet (`from_nothing`), and to a bag
      of words beside the encoder where there is one. `alone` False leaves that out.

    The first is read where the text settles the class, the second where nothing is settled: the two ends of the way
    that integrated gradients walk in many steps. One pass forward and one back; the second costs next to nothing.
    """
    found = every_layer(model, batch, classes_B)
    scores_BT = jnp.sum(found.maps * jax.nn.relu(found.dmaps), axis=(0, 2, 3))
    if alone:
        scores_BT += from_nothing(model, batch, found.members, mask=mask) + found.dheard
    return scores_BT * _real(batch)


def from_nothing(
    model: Classifier, batch: Batch, members_BC: Float[Array, "B C"], *, mask: int = -1
) -> Float[Array, "B T"]:
    """The slope of the log odds of some classes along what sets each embedding apart from nothing, at a text that says
    nothing.

    All positions of such a text are alike: attention moves nothing, and the mean of their gradients is that of a text
    of one position divided by their number. That one is computed, so the price is a pass over a single position (in a
    causal model, or with learned positions, it stands for the others without being equal to them). A model without a
    mask begins at the mean of the row: at zero its norms have no slope to speak of.
    """
    x_BTD, real_BT = model.embed(batch["tokens"], batch["positions"]), _real(batch)
    count_B1 = jnp.maximum(jnp.sum(real_BT, axis=1, keepdims=True), 1.0)
    none_BTD = x_BTD if mask < 0 else nothing(model, batch, mask)
    one_B1D = jnp.einsum("BTD,BT->BD", none_BTD, (real_BT / count_B1).astype(x_BTD.dtype))[:, None, :]
    first = {name: batch[name][:, :1] for name in ("tokens", "positions")}
    first["segments"] = jnp.ones_like(batch["segments"][:, :1])
    unheard_B1 = jnp.zeros_like(count_B1)

    odds = lambda one_B1D: jnp.sum(of_embeddings(model, one_B1D, first, members_BC, unheard_B1))
    slope_B1D = jax.grad(odds)(one_B1D)
    apart_BTD = x_BTD - (one_B1D if mask < 0 else none_BTD)
    return jnp.sum((apart_BTD * slope_B1D).astype(jnp.float32), axis=-1) / count_B1

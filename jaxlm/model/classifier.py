"""A classifier of documents: the trunk of a language model, its positions pooled, and a linear head.

Axes: B batch (one document per row), T position, D embed, C classes.
"""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxlm.model.config import ModelConfig
from jaxlm.model.mlp import dropout
from jaxlm.model.param import constant, param
from jaxlm.model.transformer import Execution, Trunk
from jaxlm.model.wide import Wide

Pooling = Literal["mean", "first", "last", "attention"]


class Classifier(Trunk):
    """Call `logits`; or `represent` and `classify`, or `embed`, `trunk`, `pool` and `classify` for what the encoder
    says by itself, and `joined` for what it says together with the bag beside it.

    `pooling` makes one vector of a document: the `mean` of its positions, the `first` (a CLS token) or the `last` one,
    or `attention`: a mean with weights that a learned query gives, beginning with equal ones.
    `rate` is the probability of dropping an entry of that vector in training. `wide` is the number of buckets of word
    pairs of a bag of words beside the encoder (see wide.py); 0: there is none. Raises ValueError for fewer than two
    classes, and for `first` in a causal model, whose first position has seen nothing else.
    """

    def __init__(
        self,
        config: ModelConfig,
        execution: Execution,
        *,
        classes: int,
        pooling: Pooling = "mean",
        rate: float = 0.0,
        wide: int = 0,
        key: PRNGKeyArray,
    ):
        if classes < 2:
            raise ValueError(f"classes={classes} must be at least 2")
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"rate={rate} must be in [0, 1)")
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling={pooling!r} must be one of {', '.join(get_args(Pooling))}")
        if pooling == "first" and config.causal:
            raise ValueError(
                "pooling=first needs model.causal=false: in a causal model the first position sees nothing but itself; "
                "choose mean or last"
            )
        trunk_key, head_key = jax.random.split(key)
        super().__init__(config, execution, key=trunk_key)
        self.classes, self.rate = classes, rate
        self.pooling: Pooling = pooling
        std = 1 / math.sqrt(config.embed)
        self.label = param(head_key, (config.embed, classes), ("embed", "classes"), std=std)
        self.label_bias = constant(0.0, (classes,), ("classes",))
        self.wide = Wide(config.padded_vocab, wide, classes) if wide else None
        self.query = constant(0.0, (config.embed,), ("embed",)) if pooling == "attention" else None

    def pool(self, x_BTD: Float[Array, "B T D"], segments_BT: Int[Array, "B T"]) -> Float[Array, "B D"]:
        """One float32 vector per row, of the positions that are no padding; zero for a row of padding."""
        with jax.named_scope("pool"):
            share_BT = self.shares(x_BTD, segments_BT)
            pooled_BD = jnp.einsum("BT,BTD->BD", share_BT, x_BTD.astype(jnp.float32))
            return self.execution.shard(pooled_BD, "batch", None)

    def shares(self, x_BTD: Float[Array, "B T D"], segments_BT: Int[Array, "B T"]) -> Float[Array, "B T"]:
        """The share of each position in the vector of its row, float32: they add up to 1, or to 0 in a row of
        padding."""
        if self.query is None:
            return pooling_weights(segments_BT, self.pooling)
        scores_BT = jnp.einsum("BTD,D->BT", x_BTD.astype(jnp.float32), self.query[...])
        real_BT = segments_BT > 0
        scores_BT = jnp.where(real_BT, scores_BT, -1e30)
        raised_BT = jnp.where(real_BT, jnp.exp(scores_BT - jnp.max(scores_BT, axis=1, keepdims=True)), 0.0)
        return raised_BT / jnp.maximum(jnp.sum(raised_BT, axis=1, keepdims=True), 1e-30)

    def logits(
        self, tokens_BT: Int[Array, "B T"], positions_BT: Int[Array, "B T"], segments_BT: Int[Array, "B T"]
    ) -> Float[Array, "B C"]:
        """float32 logits of the classes, nothing dropped."""
        alone_BC = self.classify(self.represent(tokens_BT, positions_BT, segments_BT))
        return self.joined(alone_BC, tokens_BT, segments_BT)

    def joined(
        self, alone_BC: Float[Array, "B C"], tokens_BT: Int[Array, "B T"], segments_BT: Int[Array, "B T"]
    ) -> Float[Array, "B C"]:
        """The mean of the encoder's logits and those of the bag beside it, each a classifier by itself."""
        return alone_BC if self.wide is None else (alone_BC + self.wide(tokens_BT, segments_BT)) / 2

    def represent(
        self,
        tokens_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"],
        segments_BT: Int[Array, "B T"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B D"]:
        """What the head reads of each row, float32. `segments_BT` is above 0 on the document and 0 on padding."""
        return self.pool(self(tokens_BT, positions_BT, segments_BT, key), segments_BT)

    def classify(self, pooled_BD: Float[Array, "B D"], key: PRNGKeyArray | None = None) -> Float[Array, "B C"]:
        """float32 logits of the classes; with a key, some entries of the representation are dropped."""
        with jax.named_scope("classify"):
            dropped_BD = dropout(pooled_BD, self.rate, key)
            logits_BC = jnp.einsum("BD,DC->BC", dropped_BD, self.label[...]) + self.label_bias[...][None, :]
            return self.execution.shard(logits_BC, "batch", None)


def pooling_weights(segments_BT: Int[Array, "B T"], pooling: Pooling) -> Float[Array, "B T"]:
    """The share of each position in the representation of its row: they add up to 1, or to 0 in a row of padding."""
    real_BT = segments_BT > 0
    if pooling == "mean":
        counted_BT = real_BT
    else:
        # Sums, not gathers: rows may lie on different devices.
        seen_BT = jnp.cumsum(real_BT.astype(jnp.int32), axis=1)
        wanted_B1 = seen_BT[:, -1:] if pooling == "last" else jnp.ones_like(seen_BT[:, -1:])
        counted_BT = real_BT & (seen_BT == wanted_B1)
    counted_BT = counted_BT.astype(jnp.float32)
    return counted_BT / jnp.maximum(jnp.sum(counted_BT, axis=1, keepdims=True), 1.0)

"""The Transformer: a trunk (embed, blocks, norm) that all models share, and the language model on top of it.

Axes: B batch, T position, D embed, V padded vocabulary.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxlm.model.attention import Kernel
from jaxlm.model.block import Block
from jaxlm.model.config import ModelConfig
from jaxlm.model.mlp import dropout
from jaxlm.model.norm import make_norm
from jaxlm.model.ops import gathered, lookup, mask_tail, project
from jaxlm.model.param import param
from jaxlm.model.stack import run, stack
from jaxlm.sharding import Rules
from planners.plan import Segment


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a model runs, none of it changing what it computes: decided by a Plan, static for jit.

    `microbatches` are those of one step, which all read the same weights.
    """

    shard: Rules = Rules()
    kernel: Kernel = "xla"
    dtype: str = "float32"
    remat: tuple[Segment, ...] = ()
    unroll: int = 1
    loss_chunks: int = 1
    microbatches: int = 1


class Trunk(nnx.Module):
    """From tokens to the normalised residual stream: `embed`, then `trunk`, or one call for both.

    Its tensors are `table`, `places` (learned positions only), `blocks/...` and `norm/...`, whatever is built on it.
    `config.vocab` and `config.positions` must be set. Raises ValueError when the rematerialisation segments do not
    cover every layer.
    """

    def __init__(self, config: ModelConfig, execution: Execution, *, key: PRNGKeyArray):
        if config.vocab < 1:
            raise ValueError("model.vocab is not set: it comes from the tokenizer or the configuration")
        if execution.remat and sum(s.layers for s in execution.remat) != config.layers:
            raise ValueError(f"remat segments {execution.remat} do not add up to model.layers={config.layers}")
        D, V, (ke, kp, kb, _) = config.embed, config.padded_vocab, jax.random.split(key, 4)
        self.config, self.execution = config, execution
        self.table = param(ke, (V, D), ("vocab", "embed"), std=0.02 if config.tied else 1.0 / math.sqrt(D))
        if config.position == "learned" and config.positions < 1:
            raise ValueError("model.positions is not set, and learned positions need it")
        learned = config.position == "learned"
        self.places = param(kp, (config.positions, D), ("position", "embed"), std=0.02) if learned else None
        self.blocks = stack(lambda k: Block(config, execution.shard, execution.kernel, key=k), config.layers, kb)
        self.norm = make_norm(config)

    def embed(
        self, tokens_BT: Int[Array, "B T"], positions_BT: Int[Array, "B T"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "B T D"]:
        with jax.named_scope("embed"):
            dtype = jnp.dtype(self.execution.dtype)
            x = lookup(self.table[...], tokens_BT, self.execution.shard, dtype, rows="vocab")
            if self.places is not None:
                x = x + lookup(self.places[...], positions_BT, self.execution.shard, dtype, rows="position")
            return dropout(x, self.config.dropout, key)

    def trunk(
        self,
        x_BTD: Float[Array, "B T D"],
        positions_BT: Int[Array, "B T"],
        segments_BT: Int[Array, "B T"] | None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B T D"]:
        """All blocks and the final norm. `segments_BT` numbers the documents of a row, 0 for padding; without it, a
        bidirectional model takes every position for one document."""
        keys = None if key is None or not self.config.dropout else jax.random.split(key, self.config.layers)
        segments = self.execution.remat or (Segment(layers=self.config.layers),)
        call = lambda block, x, k: block(x, positions_BT, segments_BT, k)
        with jax.named_scope("blocks"):
            how = self.execution
            shard = how.shard if how.microbatches == 1 else None
            x_BTD = run(self.blocks, x_BTD, call, keys, segments, how.unroll, turned=shard)
        return self.norm(x_BTD)

    def __call__(
        self,
        tokens_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"],
        segments_BT: Int[Array, "B T"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B T D"]:
        """The normalised residual stream that a head reads."""
        ke, kt = (None, None) if key is None else jax.random.split(key)
        return self.trunk(self.embed(tokens_BT, positions_BT, ke), positions_BT, segments_BT, kt)


class Transformer(Trunk):
    """The language model: call `embed`, `trunk` and `logits` in turn."""

    def __init__(self, config: ModelConfig, execution: Execution, *, key: PRNGKeyArray):
        super().__init__(config, execution, key=key)
        D, V, kh = config.embed, config.padded_vocab, jax.random.split(key, 4)[3]
        self.head = None if config.tied else param(kh, (D, V), ("embed", "vocab"), std=1 / math.sqrt(D))

    def output_weights(self, dtype: jnp.dtype) -> Float[Array, "D V"]:
        """The output matrix in `dtype`, split over the vocabulary only."""
        shard = self.execution.shard
        if self.head is None:
            return gathered(self.table[...], ("vocab", "embed"), dtype, shard, "vocab", None).T
        return gathered(self.head[...], ("embed", "vocab"), dtype, shard, None, "vocab")

    def logits(
        self, x_BTD: Float[Array, "B T D"], weights_DV: Float[Array, "D V"] | None = None
    ) -> Float[Array, "B T V"]:
        """float32 logits; the padding of the vocabulary gets -1e30, so it never holds probability.

        `weights_DV` are `output_weights`, given by callers who need them more than once.
        """
        with jax.named_scope("logits"):
            if weights_DV is None:
                weights_DV = self.output_weights(x_BTD.dtype)
            logits = project("BTD,DV->BTV", x_BTD, weights_DV)
            logits = self.execution.shard(logits, "batch", "length", "vocab", name="logits").astype(jnp.float32)
            return mask_tail(logits, self.config.vocab)

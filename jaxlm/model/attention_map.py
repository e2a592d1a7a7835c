"""Who looks at whom: the trunk run with its attention probabilities in the open, for explanation.

The fused kernels never hold these numbers, so they are computed anew from queries and keys, in float32; T x T of them
for every layer, head and row, so this is for few rows at a time.

Axes: L layers, B batch, T query position, S key position, D embed, N heads, H head_dim.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlm.model.attention import same_document
from jaxlm.model.block import Block
from jaxlm.model.transformer import Trunk


def sees(model: Trunk, x_BTD: Float[Array, "B T D"], segments_BT: Int[Array, "B T"] | None) -> Bool[Array, "B 1 T S"]:
    """Which keys each query may look at."""
    B, T, _ = x_BTD.shape
    sees_B1TS = jnp.ones((B, 1, T, T), bool) if segments_BT is None else same_document(segments_BT)
    return jnp.tril(sees_B1TS) if model.config.causal else sees_B1TS


@dataclass(frozen=True, slots=True)
class Open:
    """Attention of one block, before its output projection: probabilities float32, the values they weigh, the sums."""

    maps: Float[Array, "B N T S"]
    values: Float[Array, "B S N H"]
    context: Float[Array, "B T N H"]


def attention_in_the_open(
    block: Block,
    x_BTD: Float[Array, "B T D"],
    positions_BT: Int[Array, "B T"],
    sees_B1TS: Bool[Array, "B 1 T S"],
    added_BNTS: Float[Array, "B N T S"] | None = None,
) -> Open:
    """The attention of a block on what enters it; `added_BNTS` is added to the probabilities as they are used."""
    scale = 1 / math.sqrt(block.attn.config.per_head)
    q, k, v = block.attn.queries_keys_values(block.attend_input(x_BTD), positions_BT)
    k, v = (jnp.repeat(y, q.shape[2] // y.shape[2], axis=2) for y in (k, v))
    scores_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q, k, preferred_element_type=jnp.float32) * scale
    p_BNTS = jax.nn.softmax(jnp.where(sees_B1TS, scores_BNTS, -jnp.inf), axis=-1)
    used_BNTS = p_BNTS if added_BNTS is None else p_BNTS + added_BNTS
    return Open(p_BNTS, v, jnp.einsum("BNTS,BSNH->BTNH", used_BNTS.astype(v.dtype), v))


def block_with_map(
    block: Block,
    x_BTD: Float[Array, "B T D"],
    positions_BT: Int[Array, "B T"],
    sees_B1TS: Bool[Array, "B 1 T S"],
    added_BNTS: Float[Array, "B N T S"] | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B N T S"]]:
    """What one block gives, without dropout, and its attention probabilities.

    `added_BNTS` is added to the probabilities: the gradient at zero is that with respect to them.
    """
    found = attention_in_the_open(block, x_BTD, positions_BT, sees_B1TS, added_BNTS)
    return block.after_attention(x_BTD, block.attn.output(found.context)), found.maps


def trunk_with_maps(
    model: Trunk,
    x_BTD: Float[Array, "B T D"],
    positions_BT: Int[Array, "B T"],
    segments_BT: Int[Array, "B T"] | None = None,
    added_LBNTS: Float[Array, "L B N T S"] | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "L B N T S"]]:
    """What `model.trunk` gives for these embeddings, without dropout, and the attention probabilities of every layer.

    `x_BTD` comes from `model.embed`, or from anywhere else: the result is differentiable in it. `added_LBNTS` is added
    to the probabilities; the gradient at zero is that of the result with respect to the attention of each layer.
    """
    sees_B1TS = sees(model, x_BTD, segments_BT)

    def layer(x_BTD: jax.Array, item: Any) -> tuple[jax.Array, jax.Array]:
        block, added_BNTS = item
        x_BTD, p_BNTS = block_with_map(block, x_BTD, positions_BT, sees_B1TS, added_BNTS)
        return x_BTD, p_BNTS

    x_BTD, maps_LBNTS = jax.lax.scan(layer, x_BTD, (model.blocks, added_LBNTS))
    return model.norm(x_BTD), maps_LBNTS


def before_last(
    model: Trunk,
    x_BTD: Float[Array, "B T D"],
    positions_BT: Int[Array, "B T"],
    segments_BT: Int[Array, "B T"] | None,
) -> tuple[Float[Array, "B T D"], Block]:
    """What enters the last block, by the kernel that the model was trained with, and that block itself."""
    first = jax.tree.map(lambda leaf: leaf[:-1], model.blocks)
    last = jax.tree.map(lambda leaf: leaf[-1], model.blocks)
    step = lambda x, block: (block(x, positions_BT, segments_BT), None)
    return jax.lax.scan(step, x_BTD, first)[0], last

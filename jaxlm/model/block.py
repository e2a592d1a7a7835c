"""One pre-norm Transformer block."""

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxlm.model.attention import Attention, Kernel
from jaxlm.model.config import ModelConfig
from jaxlm.model.mlp import GELU, SwiGLU, dropout
from jaxlm.model.norm import make_norm
from jaxlm.sharding import Rules


class Block(nnx.Module):
    def __init__(self, config: ModelConfig, shard: Rules, kernel: Kernel, *, key: PRNGKeyArray):
        ka, km = jax.random.split(key)
        self.shard, self.rate = shard, config.dropout
        self.attn_norm, self.mlp_norm = make_norm(config), make_norm(config)
        self.attn = Attention(config, shard, kernel, key=ka)
        self.mlp = (SwiGLU if config.activation == "swiglu" else GELU)(config, shard, key=km)

    def attend_input(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.shard(self.attn_norm(x_BTD), "batch", "length", None, name="attn_norm")

    def after_attention(
        self, x_BTD: Float[Array, "B T D"], attended_BTD: Float[Array, "B T D"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "B T D"]:
        """The rest of the block, once attention has spoken."""
        ka, km = (None, None) if key is None else jax.random.split(key)
        x = self.shard(x_BTD + dropout(attended_BTD, self.rate, ka), "batch", "length", None, name="attn_out")
        with jax.named_scope("mlp"):
            h = self.shard(self.mlp_norm(x), "batch", "length", None, name="mlp_norm")
            h = self.shard(self.mlp(h), "batch", "length", None, name="mlp_out")
        return self.shard(x + dropout(h, self.rate, km), "batch", "length", None)

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        positions_BT: Int[Array, "B T"],
        segments_BT: Int[Array, "B T"] | None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B T D"]:
        attended = self.attn(self.attend_input(x_BTD), positions_BT, segments_BT)
        return self.after_attention(x_BTD, attended, key)

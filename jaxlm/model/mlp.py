"""Feed-forward layers.

Axes: B batch, T position, D embed, F mlp.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jaxlm.model.config import ModelConfig
from jaxlm.model.ops import project
from jaxlm.model.param import constant, param
from jaxlm.sharding import Rules


class SwiGLU(nnx.Module):
    """`down(silu(gate(x)) * up(x))`, https://arxiv.org/abs/2002.05202."""

    def __init__(self, config: ModelConfig, shard: Rules, *, key: PRNGKeyArray):
        D, F, (kg, ku, kd) = config.embed, config.mlp, jax.random.split(key, 3)
        self.shard, self.fp8 = shard, config.products == "fp8"
        self.gate = param(kg, (D, F), ("embed", "mlp"), std=1 / math.sqrt(D))
        self.up = param(ku, (D, F), ("embed", "mlp"), std=1 / math.sqrt(D))
        self.down = param(kd, (F, D), ("mlp", "embed"), std=1 / math.sqrt(2 * config.layers * F))

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate = self.shard(
            project("BTD,DF->BTF", x_BTD, self.gate[...], eight_bits=self.fp8),
            "batch",
            "length",
            "mlp",
            name="mlp_gate",
        )
        up = self.shard(
            project("BTD,DF->BTF", x_BTD, self.up[...], eight_bits=self.fp8), "batch", "length", "mlp", name="mlp_up"
        )
        hidden = self.shard(_gate(gate, up), "batch", "length", "mlp", name="mlp_hidden")
        return project("BTF,FD->BTD", hidden, self.down[...], eight_bits=self.fp8)


class GELU(nnx.Module):
    """`down(gelu(up(x)))` with the tanh approximation of GPT-2."""

    def __init__(self, config: ModelConfig, shard: Rules, *, key: PRNGKeyArray):
        D, F, (ku, kd) = config.embed, config.mlp, jax.random.split(key)
        self.shard, self.fp8 = shard, config.products == "fp8"
        self.up = param(ku, (D, F), ("embed", "mlp"), std=1 / math.sqrt(D))
        self.down = param(kd, (F, D), ("mlp", "embed"), std=1 / math.sqrt(2 * config.layers * F))
        self.up_bias = constant(0.0, (F,), ("mlp",)) if config.bias else None
        self.down_bias = constant(0.0, (D,), ("embed",)) if config.bias else None

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        up_bias = None if self.up_bias is None else self.up_bias[...]
        down_bias = None if self.down_bias is None else self.down_bias[...]
        up = self.shard(
            project("BTD,DF->BTF", x_BTD, self.up[...], up_bias, eight_bits=self.fp8),
            "batch",
            "length",
            "mlp",
            name="mlp_up",
        )
        hidden = self.shard(_gelu(up), "batch", "length", "mlp", name="mlp_hidden")
        return project("BTF,FD->BTD", hidden, self.down[...], down_bias, eight_bits=self.fp8)


def dropout(x: jax.Array, rate: float, key: PRNGKeyArray | None) -> jax.Array:
    """Zeroes entries with probability `rate` and rescales the rest; the identity without a key (evaluation)."""
    if key is None or rate == 0.0:
        return x
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros_like(x))


# The backward pass keeps the inputs of these alone: what lies between costs more to keep than to compute again.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _gate(gate: jax.Array, up: jax.Array) -> jax.Array:
    return jax.nn.silu(gate) * up


@functools.partial(jax.checkpoint, prevent_cse=False)
def _gelu(up: jax.Array) -> jax.Array:
    return jax.nn.gelu(up, approximate=True)

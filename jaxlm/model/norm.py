"""Normalisation of the last dimension, computed in float32."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlm.model.config import ModelConfig
from jaxlm.model.param import constant


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation with a gain, https://arxiv.org/abs/1910.07467."""

    def __init__(self, dim: int, eps: float):
        self.eps = eps
        self.gain = constant(1.0, (dim,), ("norm",))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return _from_input(self._normalise)(x, self.gain[...])

    def _normalise(self, x: jax.Array, gain: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return jnp.einsum("...D,D->...D", y, gain).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation with a gain and a bias, https://arxiv.org/abs/1607.06450."""

    def __init__(self, dim: int, eps: float):
        self.eps = eps
        self.gain = constant(1.0, (dim,), ("norm",))
        self.bias = constant(0.0, (dim,), ("norm",))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return _from_input(self._normalise)(x, self.gain[...], self.bias[...])

    def _normalise(self, x: jax.Array, gain: jax.Array, bias: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        y = jnp.einsum("...D,D->...D", y, gain)
        return (y + bias.reshape((1,) * (y.ndim - 1) + (-1,))).astype(x.dtype)


def _from_input(f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`f`, whose backward pass keeps its input alone: float32 intermediates would be twice as large, and many."""
    return jax.checkpoint(f, prevent_cse=False)


def make_norm(config: ModelConfig) -> RMSNorm | LayerNorm:
    kind = RMSNorm if config.norm == "rms" else LayerNorm
    return kind(config.embed, config.norm_eps)

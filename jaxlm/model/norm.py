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
        return (y * _last(gain, y.ndim)).astype(x.dtype)


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
        return (y * _last(gain, y.ndim) + _last(bias, y.ndim)).astype(x.dtype)


def _last(x_D: jax.Array, dims: int) -> jax.Array:
    """[D] as [1, ..., 1, D]. An einsum would say the same, but on CPU XLA turns its operands round for it."""
    return x_D.reshape((1,) * (dims - 1) + (-1,))


def _from_input(f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`f`, whose backward pass keeps its input alone: float32 intermediates would be twice as large, and many."""
    return jax.checkpoint(f, prevent_cse=False)


def make_norm(config: ModelConfig) -> RMSNorm | LayerNorm:
    kind = RMSNorm if config.norm == "rms" else LayerNorm
    return kind(config.embed, config.norm_eps)

"""Weights that know their logical axes; everything else (sharding, planning, naming) reads them from here."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PRNGKeyArray


def param(key: PRNGKeyArray, shape: tuple[int, ...], axes: tuple[str, ...], *, std: float) -> nnx.Param:
    """A float32 weight drawn from a normal truncated at two standard deviations, with unit-corrected scale `std`."""
    _check(shape, axes)
    # A normal truncated at +-2 has standard deviation 0.87962566.
    value = jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32) * (std / 0.87962566103423978)
    return nnx.Param(value, axes=axes)


def constant(value: float, shape: tuple[int, ...], axes: tuple[str, ...]) -> nnx.Param:
    """A float32 weight filled with one value: gains (1) and biases (0)."""
    _check(shape, axes)
    return nnx.Param(jnp.full(shape, value, jnp.float32), axes=axes)


def _check(shape: tuple[int, ...], axes: tuple[str, ...]) -> None:
    if len(shape) != len(axes):
        raise ValueError(f"weight of shape {shape} has axes {axes}")

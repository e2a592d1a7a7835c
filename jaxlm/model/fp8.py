"""Matrix products of eight-bit floats, each tensor scaled to their range as it is now.

Values and weights travel as e4m3 (three bits of mantissa, largest 448), gradients as e5m2 (two bits, largest 57,344),
as in https://arxiv.org/abs/2209.05433. A tensor's scale is its largest magnitude in this very step, so nothing has to
be remembered from step to step or saved in a checkpoint; the price is one more pass over each operand. Sums are
float32.
"""

import functools

import jax
import jax.numpy as jnp

VALUES, GRADIENTS = jnp.dtype(jnp.float8_e4m3fn), jnp.dtype(jnp.float8_e5m2)
SMALLEST = 1e-30
"""Least scale, so that a tensor of zeros stays one."""


def scaled(x: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """`x` in eight bits and the float32 scalar that it has to be multiplied by; the largest magnitude is exact.

    A tensor with a value that is not finite becomes one of NaN, so that the step is found not to be finite.
    """
    largest = float(jnp.finfo(dtype).max)
    scale = jnp.maximum(jnp.max(jnp.abs(x)).astype(jnp.float32), SMALLEST) / largest
    scale = jnp.where(jnp.isfinite(scale), scale, jnp.nan)
    return jnp.clip(x.astype(jnp.float32) / scale, -largest, largest).astype(dtype), scale


def product(equation: str, x: jax.Array, y: jax.Array, of: tuple[jnp.dtype, jnp.dtype]) -> jax.Array:
    """`einsum(equation, x, y)` of both in the eight-bit kinds `of`, in the dtype of x."""
    (left, a), (right, b) = scaled(x, of[0]), scaled(y, of[1])
    return (jnp.einsum(equation, left, right, preferred_element_type=jnp.float32) * (a * b)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def multiply(equation: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """`einsum(equation, x, weight)` and both of its gradients as products of eight-bit floats."""
    return product(equation, x, weight, (VALUES, VALUES))


def _forward(equation: str, x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(equation, x, weight, (VALUES, VALUES)), (x, weight)


def _backward(equation: str, given: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weight = given
    operands, result = equation.split("->")
    left, right = operands.split(",")
    dx = product(f"{result},{right}->{left}", gradient, weight, (GRADIENTS, VALUES))
    return dx, product(f"{left},{result}->{right}", x, gradient, (VALUES, GRADIENTS))


multiply.defvjp(_forward, _backward)

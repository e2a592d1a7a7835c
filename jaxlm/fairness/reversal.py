"""Gradient reversal: one backward pass that trains an adversary and its opponent (Ganin et al., arXiv 1505.07818).

With it the loss that is minimised is `L_task + weight * L_adv(g(reverse(f)))`: its gradient in the weights of the
adversary g is that of `weight * L_adv`, in those of the model f that of `L_task - weight * L_adv` (the paper's
equation 14). Put the weight into `reverse` instead, and the adversary learns at full speed whatever it is.
"""

from typing import Literal

import jax
import jax.numpy as jnp

Schedule = Literal["constant", "linear", "ganin", "sqrt"]


@jax.custom_vjp
def _reverse(x: jax.Array, weight: jax.Array) -> jax.Array:
    return x


def _forward(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x, weight


def _backward(weight: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    return -weight.astype(gradient.dtype) * gradient, jnp.zeros_like(weight)


_reverse.defvjp(_forward, _backward)


def reverse(x: jax.Array, weight: jax.Array | float = 1.0) -> jax.Array:
    """`x` itself; its gradient comes back multiplied by `-weight` (a scalar, which gets no gradient of its own)."""
    return _reverse(x, jnp.asarray(weight, jnp.float32))


def weight_at(progress: jax.Array | float, weight: jax.Array | float, schedule: Schedule = "constant") -> jax.Array:
    """The weight of the adversary at `progress` (from 0 to 1) of training, float32.

    `linear` rises to `weight`; `ganin` is 2 / (1 + exp(-10 p)) - 1 times it; `sqrt` rises as the square root of the
    step, as in Zhang et al. (arXiv 1801.07593). Raises ValueError for another schedule.
    """
    p = jnp.clip(jnp.asarray(progress, jnp.float32), 0.0, 1.0)
    match schedule:
        case "constant":
            shape = jnp.ones_like(p)
        case "linear":
            shape = p
        case "ganin":
            shape = 2.0 / (1.0 + jnp.exp(-10.0 * p)) - 1.0
        case "sqrt":
            shape = jnp.sqrt(p)
        case _:
            raise ValueError(f"schedule={schedule!r} must be constant, linear, ganin or sqrt")
    return jnp.asarray(weight, jnp.float32) * shape

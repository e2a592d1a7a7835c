"""Adam whose variance is frozen after a warm-up, so that what it is given from then on may be its own momentum.

Adam is not linear in the gradient: a burst of stored gradient, as error feedback releases it, moves a weight about as
far as a fresh one would. With a fixed variance it is linear, and the momentum can be what workers send each other
(1-bit Adam, Tang et al., 2021, https://arxiv.org/abs/2102.02888).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlm.optim.weights import STACKED
from jaxlm.tree import from_named, named_axes, named_leaves

FLOOR = 0.01
"""Of the mean variance of its matrix: what a variance is raised to when it is frozen (rule S17). A weight whose
gradient was rare in the warm-up would otherwise take a huge step at its first one, and training blows up."""


class FrozenAdam(NamedTuple):
    """As optax keeps Adam's moments, and the step at which the variance is frozen, int32."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] (what optax calls it)
    mu: Any
    nu: Any
    freeze: jax.Array


def scale_by_frozen_adam(
    b1: float, b2: float, eps: float, freeze: int, mu_dtype: Any = None, floor: float = FLOOR
) -> optax.GradientTransformation:
    """Adam for `freeze` steps of gradients; then the direction is the momentum it is given, over the root of the
    variance at that moment, bias-corrected, no entry of it below `floor` of the mean of its matrix."""

    def init(params: Any) -> FrozenAdam:
        zeros = lambda dtype: jax.tree.map(lambda p: jnp.zeros_like(p, dtype=dtype or p.dtype), params)
        return FrozenAdam(jnp.zeros((), jnp.int32), zeros(mu_dtype), zeros(None), jnp.asarray(freeze, jnp.int32))

    def update(updates: Any, state: FrozenAdam, params: Any = None) -> tuple[Any, FrozenAdam]:
        frozen, count = state.count >= state.freeze, state.count + 1
        moving = lambda m, g: jnp.where(frozen, g, b1 * m.astype(g.dtype) + (1.0 - b1) * g)
        mu = jax.tree.map(moving, state.mu, updates)
        fresh = lambda v, g: jnp.where(frozen, v, b2 * v + (1.0 - b2) * jnp.square(g))
        nu = jax.tree.map(fresh, state.nu, updates)
        # At the last step of the warm-up what is kept changes its meaning: corrected, and nothing of it too small.
        last = count == state.freeze
        whole = 1.0 - jnp.asarray(b2, jnp.float32) ** count
        stacked = {name: [a in STACKED for a in axes] for name, axes in named_axes(updates).items()}

        def settled(v: jax.Array, layers: list[bool]) -> jax.Array:
            own = tuple(i for i in range(v.ndim) if not (i < len(layers) and layers[i]))
            mean = jnp.mean(v, axis=own, keepdims=True)
            return jnp.where(last, jnp.maximum(v, floor * mean) / whole, v)

        named = {name: settled(v, stacked[name]) for name, v in named_leaves(nu).items()}
        direction_mu = 1.0 - jnp.asarray(b1, jnp.float32) ** count
        corrected = jnp.where(frozen | last, 1.0, whole)
        nu = from_named(nu, named)
        direct = lambda m, v: (m / direction_mu) / (jnp.sqrt(v / corrected) + eps)
        direction = jax.tree.map(direct, mu, nu)
        kept = jax.tree.map(lambda m, old: m.astype(old.dtype), mu, state.mu)
        return direction, FrozenAdam(count, kept, nu, state.freeze)

    if not math.isfinite(floor) or floor < 0.0:
        raise ValueError(f"the floor of a frozen variance must be a share of its mean, not {floor}")
    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]

"""Adafactor: second moments kept as one row and one column per matrix."""

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import optax

from jaxlm.optim.schedule import Part, Shared
from jaxlm.optim.weights import STACKED, hidden_sides
from jaxlm.tree import from_named, named_axes, named_leaves


@dataclass(frozen=True, slots=True, kw_only=True)
class Adafactor(Shared):
    """Adafactor, https://arxiv.org/abs/1804.04235, with the rates given here instead of the paper's relative ones.

    Attributes:
        b1: decay of the first moment; 0 keeps none, as in the paper, and is what saves the memory.
        decay_rate: the second moment decays by 1 - step^-decay_rate.
        update_clip: the update of each matrix is scaled down to this root mean square; 0 turns it off.
        parameter_scale: whether the rate is multiplied by the root mean square of each matrix, as in the paper; the
            rate must then be larger, about 1e-2.
        factor_from: matrices with both sides at least this long are factored, smaller ones keep all second moments.
        first_moment: dtype of the first moment.
    """

    kind: Literal["adafactor"] = "adafactor"
    b1: float = 0.0
    decay_rate: float = 0.8
    update_clip: float = 1.0
    parameter_scale: bool = False
    factor_from: int = 128
    first_moment: Literal["float32", "bfloat16"] = "bfloat16"

    def __post_init__(self) -> None:
        Shared.__post_init__(self)
        self.check_shares("b1")
        if not 0.0 < self.decay_rate <= 1.0:
            raise ValueError(f"optim.decay_rate={self.decay_rate} must be in (0, 1]")
        if self.update_clip < 0.0:
            raise ValueError(f"optim.update_clip={self.update_clip} must not be negative")
        if self.factor_from < 2:
            raise ValueError(f"optim.factor_from={self.factor_from} must be at least 2")

    def build(self, steps: int) -> optax.GradientTransformation:
        factored = optax.scale_by_factored_rms(decay_rate=self.decay_rate, min_dim_size_to_factor=self.factor_from)
        parts: list[Part] = [("factored", as_matrices(factored, self.factor_from))]
        if self.update_clip:
            parts.append(("update_clip", optax.stateless(lambda updates, _: _clip_each(updates, self.update_clip))))
        if self.parameter_scale:
            parts.append(("parameter_scale", optax.stateless(_scale_by_parameters)))
        if self.b1:
            # The rate multiplies the average, as in the other optimizers; optax.adafactor averages what the rate has
            # multiplied already.
            parts.append(("momentum", optax.ema(self.b1, debias=False, accumulator_dtype=self.first_moment)))
        return self.chain(steps, *parts)


def as_matrices(inner: optax.GradientTransformation, factor_from: int) -> optax.GradientTransformation:
    """`inner` sees each hidden matrix that is large enough to factor as [layers, rows, columns], so that q
    [layers, embed, heads, head_dim] is factored into embed and heads x head_dim. optax alone would factor the two
    longest axes, or none. Smaller matrices keep their shape, by which their second moments are sharded."""

    def flat(tree: Any) -> Any:
        found = hidden_sides(tree)

        def view(name: str, leaf: jax.Array) -> jax.Array:
            if name not in found:
                return leaf
            # Axes stand in the order stacked, rows, columns, so that merging neighbours is enough.
            rows, columns = (math.prod(leaf.shape[i] for i in axes) for axes in found[name])
            stacked = leaf.shape[: found[name].rows[0]]
            return leaf.reshape(*stacked, rows, columns) if min(rows, columns) >= factor_from else leaf

        return from_named(tree, {name: view(name, leaf) for name, leaf in named_leaves(tree).items()})

    def update(updates: Any, state: Any, parameters: Any = None) -> tuple[Any, Any]:
        new, state = inner.update(flat(updates), state, None if parameters is None else flat(parameters))
        return jax.tree.map(lambda after, before: after.reshape(before.shape), new, updates), state

    return optax.GradientTransformation(lambda params: inner.init(flat(params)), cast(Any, update))


def _each(tree: Any) -> Any:
    """Root mean square of each matrix (each layer of a stacked weight), shaped to divide the weight by it."""
    axes = named_axes(tree)

    def measure(name: str, leaf: jax.Array) -> jax.Array:
        own = tuple(i for i, axis in enumerate(axes[name]) if axis not in STACKED)
        return jnp.sqrt(jnp.mean(jnp.square(leaf.astype(jnp.float32)), axis=own, keepdims=True))

    return from_named(tree, {name: measure(name, leaf) for name, leaf in named_leaves(tree).items()})


def _clip_each(updates: Any, threshold: float) -> Any:
    return jax.tree.map(lambda u, size: u / jnp.maximum(1.0, size / threshold), updates, _each(updates))


def _scale_by_parameters(updates: Any, parameters: Any) -> Any:
    return jax.tree.map(lambda u, size: u * jnp.maximum(size, 1e-3), updates, _each(parameters))

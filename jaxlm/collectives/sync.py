"""How gradients travel between replicas: a pair of pure functions, like an optax transformation."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

Objective = Callable[[Any, Any, Any], tuple[jax.Array, dict[str, jax.Array]]]
"""`objective(model, batch, key) -> (sum of the loss, sums to report)`, all sums over the batch it is given."""

Sums = dict[str, jax.Array]


@dataclass(frozen=True, slots=True)
class Synced:
    """What a step's gradients came to.

    Attributes:
        sums: over the batch of the whole step: those of the objective, and `loss`.
        gradients: of the mean loss per unit of weight, as the optimizer takes them: the same on every replica.
        state: for the next step.
        report: numbers on the exchange itself.
    """

    sums: Sums
    gradients: Any
    state: Any
    report: Sums = field(default_factory=dict)


@runtime_checkable
class GradSync(Protocol):
    """State in, state out. Microbatches are added up first, and what is compressed is compressed once per step."""

    def init(self, model: Any) -> Any: ...

    def gradients(
        self, objective: Objective, model: Any, batch: Any, key: jax.Array, state: Any, step: jax.Array
    ) -> Synced:
        """`batch` leaves are [accumulation, sequences, ...], `step` the number of steps that are done."""
        ...


def accumulated(objective: Objective, model: Any, batch: Any, key: jax.Array) -> tuple[Sums, Any]:
    """Sums to report (with `loss`) and the gradient of the summed loss, over all microbatches of `batch`; they are
    added up by a scan, in float32."""
    value_and_grad = jax.value_and_grad(objective, has_aux=True)
    first = jax.tree.leaves(batch)[0]
    if first.shape[0] == 1:
        piece = jax.tree.map(lambda leaf: leaf[0], batch)
        (total, sums), gradients = value_and_grad(model, piece, key)
        return sums | {"loss": total}, gradients

    def add(carry: Any, item: Any) -> tuple[Any, None]:
        index, piece = item
        (total, more), gradients = value_and_grad(model, piece, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, carry, (more | {"loss": total}, gradients)), None

    piece = jax.tree.map(lambda leaf: leaf[0], batch)
    shapes = jax.eval_shape(lambda m, b: objective(m, b, key), model, piece)
    sums = {name: jnp.zeros(s.shape, s.dtype) for name, s in (shapes[1] | {"loss": shapes[0]}).items()}
    carry = (sums, jax.tree.map(jnp.zeros_like, model))
    return jax.lax.scan(add, carry, (jnp.arange(first.shape[0]), batch))[0]


class Implicit:
    """The partitioner inserts the exact reductions that the shardings ask for; nothing is compressed."""

    def init(self, model: Any) -> tuple[()]:
        return ()

    def gradients(
        self, objective: Objective, model: Any, batch: Any, key: jax.Array, state: Any, step: jax.Array
    ) -> Synced:
        sums, gradients = accumulated(objective, model, batch, key)
        with jax.named_scope("mean_gradient"):
            weight = jnp.maximum(sums["weight"], 1.0)
            return Synced(sums, jax.tree.map(lambda g: g / weight, gradients), state)

"""How gradients travel between replicas: a pair of pure functions, like an optax transformation."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax

Objective = Callable[[Any, Any, Any], tuple[jax.Array, dict[str, jax.Array]]]
"""`objective(model, batch, key) -> (sum of the loss, sums to report)`, all sums over the batch it is given."""


@runtime_checkable
class GradSync(Protocol):
    """State in, state out; `value_and_grad` returns gradients already summed over every replica."""

    def init(self, model: Any) -> Any: ...

    def value_and_grad(
        self, objective: Objective, model: Any, batch: Any, key: Any, state: Any
    ) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Any, Any]: ...


class Implicit:
    """The partitioner inserts the exact reductions that the shardings ask for; nothing is compressed."""

    def init(self, model: Any) -> tuple[()]:
        return ()

    def value_and_grad(
        self, objective: Objective, model: Any, batch: Any, key: Any, state: Any
    ) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Any, Any]:
        value, gradients = jax.value_and_grad(objective, has_aux=True)(model, batch, key)
        return value, gradients, state

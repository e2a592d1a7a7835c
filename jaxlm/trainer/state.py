"""What training carries from step to step."""

from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp
import optax

M = TypeVar("M")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class TrainState(Generic[M]):
    """`step` steps are done; `finite` turns false at the first step whose loss or gradient is not, and then freezes
    model and optimizer, so that the state saved afterwards is the last good one."""

    step: jax.Array
    finite: jax.Array
    model: M
    opt: Any
    sync: Any


class Remembers(Protocol):
    """What has a state of its own beside model and optimizer."""

    def init(self, model: Any) -> Any: ...


def init_state(model: M, tx: optax.GradientTransformation, sync: Remembers) -> TrainState[M]:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        finite=jnp.ones((), jnp.bool_),
        model=model,
        opt=tx.init(model),  # pyright: ignore[reportArgumentType]
        sync=sync.init(model),
    )

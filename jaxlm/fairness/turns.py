"""Model and adversary learning one after the other: the paper's modes `per_epoch` and `blocks` (sections 4.4, 4.6)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlm.fairness.config import FairnessConfig
from jaxlm.tree import from_named, named_leaves

PLAYERS = "adversaries/"
"""What the names of the adversaries' tensors hold, in a model and in what an optimizer keeps of it."""


class Turns(NamedTuple):
    """`done` counts steps, `inner` is the optimizer's own state."""

    done: jax.Array
    inner: Any


def adversary_plays(how: FairnessConfig, step: jax.Array) -> jax.Array:
    """Whether the adversary learns in step `step` (from 0) while the model rests, a bool scalar; else the other way
    round. `per_epoch`: `iterations` steps of the adversary, then `turn` of the model, and again. `blocks`: `turn` steps
    each, the model first."""
    if how.mode == "per_epoch":
        return step % (how.iterations + how.turn) < how.iterations
    return (step // how.turn) % 2 == 1


def taking_turns(tx: optax.GradientTransformation, how: FairnessConfig) -> optax.GradientTransformation:
    """The optimizer under which whoever rests keeps weights and moments bit for bit. The rate's schedule goes on."""
    if how.mode == "per_step" or not how.weight:
        return tx

    def init(model: Any) -> Turns:
        return Turns(jnp.zeros((), jnp.int32), tx.init(model))

    def update(gradients: Any, state: Turns, model: Any = None) -> tuple[Any, Turns]:
        theirs = adversary_plays(how, state.done)
        moves = lambda name: theirs if PLAYERS in name else ~theirs
        pick = lambda tree, other: from_named(
            tree,
            {
                name: jnp.where(moves(name), new, old) if jnp.ndim(new) else new
                for (name, new), old in zip(named_leaves(tree).items(), named_leaves(other).values(), strict=True)
            },
        )
        none = jax.tree.map(jnp.zeros_like, gradients)
        updates, inner = tx.update(pick(gradients, none), state.inner, model)
        return pick(updates, none), Turns(state.done + 1, pick(inner, state.inner))

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]

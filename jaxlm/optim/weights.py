"""What each weight is to an optimizer, by its logical axes: decayed or not, a hidden matrix or not, and its norm."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.tree import from_named, named_axes

STACKED = ("layers", "experts")
"""Axes along which a weight is many matrices, each of which is its own."""

OUTER = ("vocab", "position")
"""Axes of embeddings and head: their rows are looked up or scored one by one, so they are no hidden matrices."""


class Sides(NamedTuple):
    """The axes of a weight that are the inputs of its matrix, and those that are its outputs, by position."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]


def decayed(parameters: Any) -> Any:
    """True for each weight that decays: those with two or more axes besides `layers` that are not biases or gains."""
    axes = named_axes(parameters)

    def is_matrix(name: str) -> bool:
        return len(_own(axes[name])) >= 2 and not name.endswith("bias")

    return from_named(parameters, {name: is_matrix(name) for name in axes})


def _own(axes: tuple[str | None, ...]) -> list[int]:
    return [i for i, axis in enumerate(axes) if axis not in STACKED]


def sides(name: str, axes: tuple[str | None, ...]) -> Sides | None:
    """Which axes of a hidden matrix are its inputs and which its outputs; None for any other weight.

    A hidden matrix maps from the residual stream (`embed` first: q, k, v, gate, up) or back to it (`embed` last: o,
    down); the axes opposite `embed` count as one, so all heads together are one matrix.
    """
    own = _own(axes)
    if name.endswith("bias") or len(own) < 2 or any(axes[i] in OUTER for i in own):
        return None
    if axes[own[0]] == "embed":
        return Sides((own[0],), tuple(own[1:]))
    if axes[own[-1]] == "embed":
        return Sides(tuple(own[:-1]), (own[-1],))
    return None


def hidden_sides(tree: Any) -> dict[str, Sides]:
    """The sides of every hidden matrix by name; weights masked out by optax are left out."""
    found = {name: sides(name, axes) for name, axes in named_axes(tree).items()}
    return {name: pair for name, pair in found.items() if pair is not None}


def hidden(tree: Any) -> Any:
    """True for each hidden matrix."""
    found = hidden_sides(tree)
    return from_named(tree, {name: name in found for name in named_axes(tree)})


def not_hidden(tree: Any) -> Any:
    """True for embeddings, head, gains and biases."""
    return jax.tree.map(lambda yes: not yes, hidden(tree))


def gradient_norms(gradients: Any) -> jax.Array:
    """Euclidean norm of each gradient tensor, float32 [tensors] in tree order; not finite where the tensor is not."""
    return jnp.stack([jnp.linalg.norm(g.astype(jnp.float32).reshape(-1)) for g in jax.tree.leaves(gradients)])

"""One name per tensor: `blocks/attn/q` is its name in plan, checkpoint, log, optimizer state and report alike."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax

T = TypeVar("T")


def name_of(path: tuple[Any, ...]) -> str:
    """The slash name of a key path; the `value` that flax puts under each variable is left out."""
    parts = [str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path]
    if len(parts) > 1 and parts[-1] == "value":
        parts.pop()
    return "/".join(parts)


def named_leaves(tree: Any) -> dict[str, Any]:
    """Every leaf of a pytree by its name, in tree order. Raises ValueError if two leaves share a name."""
    leaves = [(name_of(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    named = dict(leaves)
    if len(named) != len(leaves):
        names = [name for name, _ in leaves]
        raise ValueError(f"tensors share a name: {sorted({n for n in names if names.count(n) > 1})}")
    return named


def from_named(like: T, named: Mapping[str, Any]) -> T:
    """The tree `like` with each leaf replaced by `named[its name]`. Raises KeyError for a name that is missing."""
    return jax.tree_util.tree_map_with_path(lambda path, _: named[name_of(path)], like)


def _is_variable(node: Any) -> bool:
    return hasattr(node, "get_metadata")


def named_axes(tree: Any) -> dict[str, tuple[str | None, ...]]:
    """The logical axes of each leaf by name: those its `param(...)` was declared with, `()` for anything else.

    Optimizer state that mirrors the model carries the same axes, because optax maps over the same tree.
    """
    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_variable)
    axes: dict[str, tuple[str | None, ...]] = {}
    for path, node in nodes:
        declared = node.get_metadata().get("axes") if _is_variable(node) else None
        dims = len(jax.tree.leaves(node)[0].shape) if jax.tree.leaves(node) else 0
        axes[name_of(path)] = tuple(declared) if declared and len(declared) == dims else (None,) * dims
    return axes

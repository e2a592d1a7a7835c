"""The canonical layout: a tensor is its slash name, shape and dtype; two states match or say why not."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.checkpoints.errors import CheckpointError

_SHOWN = 5


def describe(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> `{"shape", "dtype"}` of every tensor, as JSON values in name order.

    Raises:
        CheckpointError: a name or a leaf cannot be stored.
    """
    if not state:
        raise CheckpointError("the state is empty: nothing to save")
    for name, leaf in state.items():
        if not isinstance(name, str) or not all(part not in ("", ".", "..") for part in name.split("/")):
            raise CheckpointError(f"tensor name {name!r} must be words with slashes between, as model/blocks/q")
        if not isinstance(leaf, jax.Array):
            raise CheckpointError(f"{name}: is a {type(leaf).__name__}, must be a jax.Array")
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise CheckpointError(f"{name}: is a typed random key; save jax.random.key_data(key) instead")
    leaves = ((name, state[name]) for name in sorted(state))
    return {name: {"shape": list(leaf.shape), "dtype": leaf.dtype.name} for name, leaf in leaves}


def shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], jnp.dtype]]:
    """Name -> (shape, dtype), from what `describe` wrote."""
    return {name: (tuple(leaf["shape"]), jnp.dtype(leaf["dtype"])) for name, leaf in tensors.items()}


def match(where: str, tensors: Mapping[str, Any], like: Mapping[str, Any], *, partial: bool) -> None:
    """Passes when `like` has the names, shapes and dtypes of the checkpoint, or of a part of it.

    Raises:
        CheckpointError: lists the first differences with both values.
    """
    saved = shapes(tensors)
    differences: list[str] = []
    for name, leaf in like.items():
        if name not in saved:
            differences.append(f"{name}: not in the checkpoint, this model {tuple(leaf.shape)} {leaf.dtype}")
            continue
        shape, dtype = saved[name]
        if shape != tuple(leaf.shape):
            differences.append(f"{name}: checkpoint {shape}, this model {tuple(leaf.shape)}")
        elif dtype != leaf.dtype:
            differences.append(f"{name}: checkpoint {dtype}, this model {leaf.dtype}")
    if not partial:
        differences += [
            f"{name}: checkpoint {shape} {dtype}, not in this model"
            for name, (shape, dtype) in saved.items()
            if name not in like
        ]
    if differences:
        shown = "\n  ".join(differences[:_SHOWN])
        more = f"\n  and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        remedy = "use the configuration that it was trained with: config.yaml of its run"
        raise CheckpointError(f"{where} does not fit this model:\n  {shown}{more}\n{remedy}")

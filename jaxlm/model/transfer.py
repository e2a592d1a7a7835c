"""The weights that two models have in common: to start a classifier from a trained language model, by tensor name."""

from collections.abc import Mapping
from typing import Any, TypeVar

from jaxlm.model.transformer import Trunk
from jaxlm.tree import from_named, named_leaves

M = TypeVar("M", bound=Trunk)


def trunk_tensors(model: Trunk) -> dict[str, Any]:
    """The tensors of a model's trunk by name: `table`, `places`, `blocks/...`, `norm/...`; heads are not among them.

    Every model built on the same configuration has these, in the same shapes. Of an abstract model they are the shapes
    with shardings that a checkpoint is read into.
    """
    own = ("table", "places", "blocks", "norm")
    return {name: leaf for name, leaf in named_leaves(model).items() if name.split("/")[0] in own}


def with_trunk(model: M, tensors: Mapping[str, Any]) -> M:
    """The model with the trunk given, its head as it was. Names in `tensors` that are no part of a trunk are left out.

    Raises ValueError naming every tensor that is missing or has another shape: the two models differ then.
    """
    mine = trunk_tensors(model)
    faults = [f"{name} is missing" for name in mine if name not in tensors]
    faults += [
        f"{name} has shape {tuple(tensors[name].shape)} instead of {tuple(leaf.shape)}"
        for name, leaf in mine.items()
        if name in tensors and tensors[name].shape != leaf.shape
    ]
    if faults:
        raise ValueError(f"these weights are of another model: {'; '.join(faults)}")
    return from_named(model, named_leaves(model) | {name: tensors[name] for name in mine})

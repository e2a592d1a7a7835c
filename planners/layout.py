"""Where each logical axis lives on the mesh, and which meshes divide a model."""

from collections.abc import Iterable, Mapping

import numpy as np

from planners.plan import BATCH_AXES, PlanError, Rules, Table, Tensor, Workload

TENSOR_AXES = ("heads", "kv_heads", "mlp", "vocab")
"""Logical axes that tensor parallelism splits, in parameters and in activations alike."""

EXECUTABLE = ("zone", "data", "fsdp", "tensor")
"""Mesh axes that the trainer executes; a plan may price the others too."""


def rules(mesh: Mapping[str, int], *, zero: bool = False) -> Rules:
    """The layout of every plan: weights at rest over fsdp and tensor, batch over replicas, length over
    context, and with several stages the layers over them.

    Axes of size 1 are named too, all but `stage`, so the rules of two meshes are equal. With `zero` the optimizer
    state is split over the data axis as well (ZeRO-1): each replica updates its share of the weights.
    """
    split: Table = tuple((axis, ("tensor",)) for axis in TENSOR_AXES)
    stages: Table = (("layers", ("stage",)),) if mesh.get("stage", 1) > 1 else ()
    weights: Table = (("embed", ("fsdp",)), *split, *stages)
    state: Table = (("embed", ("fsdp", "data")), *split, *stages) if zero else weights
    work: Table = (("batch", BATCH_AXES), ("length", ("context",)), *split)
    return Rules(parameters=weights, optimizer=state, activations=work)


def indivisible(workload: Workload, layout: Rules, mesh: Mapping[str, int]) -> list[tuple[str, int, tuple[str, ...]]]:
    """Every (logical axis, size, mesh axes) whose size the mesh axes do not divide, the batch left out."""
    found: dict[tuple[str, int, tuple[str, ...]], None] = {}
    for table, dims in _split(workload, layout):
        for name, size in dims:
            axes = tuple(axis for axis in table.get(name, ()) if mesh.get(axis, 1) > 1)
            if size % ways(axes, mesh):
                found[name, size, axes] = None
    return sorted(found)


def divides(workload: Workload, sizes: Mapping[str, np.ndarray], *, zero: bool = False) -> np.ndarray:
    """Where the meshes of n candidates divide every dimension that they split, the batch left out: n truths."""
    good = np.ones(len(sizes["data"]), bool)
    for table, dims in _split(workload, rules({"stage": 2}, zero=zero)):
        for name, size in dims:
            parts = np.prod([sizes[axis] for axis in table.get(name, ())], axis=0, initial=1)
            good &= size % parts == 0
    return good


def _split(workload: Workload, layout: Rules) -> list[tuple[dict[str, tuple[str, ...]], set[tuple[str, int]]]]:
    """The rules of parameters, optimizer state and activations, each with the dimensions that they meet."""
    activations = (*workload.activations, workload.carry, workload.logits)
    groups = (
        (layout.parameters, workload.parameters),
        (layout.optimizer, workload.optimizer),
        (layout.activations, activations),
    )
    return [({name: axes for name, axes in table if name != "batch"}, _dims(tensors)) for table, tensors in groups]


def _dims(tensors: Iterable[Tensor]) -> set[tuple[str, int]]:
    return {(name, size) for tensor in tensors for name, size in zip(tensor.axes, tensor.shape, strict=True) if name}


def ways(axes: Iterable[str], mesh: Mapping[str, int]) -> int:
    """Shards that the mesh axes make together."""
    product = 1
    for axis in axes:
        product *= mesh.get(axis, 1)
    return product


def check_executable(mesh: Mapping[str, int]) -> None:
    """Raises PlanError for a mesh axis that the trainer cannot execute yet."""
    for axis, size in mesh.items():
        if axis not in EXECUTABLE and size > 1:
            raise PlanError(f"mesh {axis}={size}: the trainer cannot execute {axis} > 1 yet; set {axis}=1")

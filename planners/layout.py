"""Where each logical axis lives on the mesh."""

from collections.abc import Iterable, Mapping

from planners.plan import BATCH_AXES, PlanError, Rules, Table, Tensor, Workload

TENSOR_AXES = ("heads", "kv_heads", "mlp", "vocab")
"""Logical axes that tensor parallelism splits, in parameters and in activations alike."""


def rules(mesh: Mapping[str, int]) -> Rules:
    """The layout of every plan: weights at rest over fsdp and tensor, batch over replicas, length over
    context.

    Axes of size 1 are named too, so the rules of two meshes are equal; `mesh` is read once layouts depend on
    sizes.
    """
    split: Table = tuple((axis, ("tensor",)) for axis in TENSOR_AXES)
    weights: Table = (("embed", ("fsdp",)), *split)
    work: Table = (("batch", BATCH_AXES), ("length", ("context",)), *split)
    return Rules(parameters=weights, optimizer=weights, activations=work)


def indivisible(workload: Workload, layout: Rules, mesh: Mapping[str, int]) -> list[tuple[str, int, tuple[str, ...]]]:
    """Every (logical axis, size, mesh axes) whose size the mesh axes do not divide, the batch left out."""
    activations = (*workload.activations, workload.carry, workload.logits)
    groups = (
        (layout.parameters, workload.parameters),
        (layout.optimizer, workload.optimizer),
        (layout.activations, activations),
    )
    found: dict[tuple[str, int, tuple[str, ...]], None] = {}
    for table, tensors in groups:
        rows = {name: axes for name, axes in table if name != "batch"}
        for name, size in _dims(tensors):
            axes = tuple(axis for axis in rows.get(name, ()) if mesh.get(axis, 1) > 1)
            if size % ways(axes, mesh):
                found[name, size, axes] = None
    return sorted(found)


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
    for axis in ("zone", "stage", "context"):
        if mesh.get(axis, 1) > 1:
            raise PlanError(f"mesh {axis}={mesh[axis]}: the trainer cannot execute {axis} > 1 yet; set {axis}=1")

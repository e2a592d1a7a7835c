"""What a block may keep for its backward pass, value by value, and what computing the rest once more takes.

The backward pass reads `Workload.activations`. What is not kept is computed again from what is: the slice of the
forward pass that leads from the kept values and the block's input to those it reads. Every subset of the values that
have a name is priced; those that no other beats in bytes and seconds remain (eqs. 8-10; planners.md 4.1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planners.layout import rules, ways
from planners.machines.topology import Device
from planners.plan import Operation, PlanError, Table, Tensor, Workload
from planners.prices.assumptions import Assumptions
from planners.prices.compute import matmul_seconds, memory_seconds, rate
from planners.prices.footprint import shard_bytes
from planners.work import Work

MOST = 15
"""Values that all subsets of are tried; 32,768 of them."""

UNNAMED = "residual_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """One way of a block to keep values, for ONE sequence on one device of a mesh.

    Attributes:
        save: names of the kept values, in the order in which they are computed.
        bytes: that they take, the block's input not counted.
        seconds: of computing the rest again.
        flops: of computing the rest again, all devices together; attention counted in full.
        attention: those of them that are attention's, half of which a causal mask hides.
    """

    save: tuple[str, ...]
    bytes: float
    seconds: float
    flops: float
    attention: float = 0.0


def savable(workload: Workload) -> tuple[Tensor, ...]:
    """The named values of a block whose keeping can spare work, in the order in which they are computed."""
    found = {tensor.name: tensor for tensor in workload.values if not tensor.name.startswith(UNNAMED)}
    read = {tensor.name for tensor in workload.activations}
    read |= {name for operation in workload.operations for name in operation.inputs}
    return tuple(tensor for name, tensor in found.items() if name in read)


def keepings(workload: Workload, device: Device, mesh: Mapping[str, int], a: Assumptions) -> tuple[Keeping, ...]:
    """The ways that no other beats in bytes and seconds, fewest bytes first: from keeping nothing to keeping all that
    is read. Raises PlanError where the workload does not say what its blocks compute."""
    if not workload.operations:
        raise PlanError(
            f"{workload.name} does not say what its blocks compute, so nothing can be rematerialised by value"
        )
    names = savable(workload)[:MOST]
    table = rules(mesh).activations
    sizes = np.array([float(shard_bytes(tensor, table, dict(mesh))) for tensor in names])
    chosen = (np.arange(2 ** len(names))[:, None] >> np.arange(len(names))) & 1
    chosen = chosen[_together(chosen, [tensor.name for tensor in names], workload)]
    seconds, flops, attention = _again(
        workload, {t.name: chosen[:, i].astype(bool) for i, t in enumerate(names)}, device, mesh, a
    )
    held = chosen @ sizes
    order = np.lexsort([chosen.sum(axis=1), seconds, held])
    best = np.minimum.accumulate(seconds[order])
    front = order[np.append(True, seconds[order][1:] < best[:-1] * (1 - 1e-9))]
    return tuple(
        Keeping(
            save=tuple(tensor.name for tensor, kept in zip(names, chosen[row], strict=True) if kept),
            bytes=float(held[row]),
            seconds=float(seconds[row]),
            flops=float(flops[row]),
            attention=float(attention[row]),
        )
        for row in front
    )


def _together(chosen: np.ndarray, names: Sequence[str], workload: Workload) -> np.ndarray:
    """Which rows keep the statistics of the attention only with its result: one kernel makes both."""
    good = np.ones(len(chosen), bool)
    for operation in workload.operations:
        result, *others = [names.index(name) for name in operation.outputs if name in names] or [0]
        for other in others:
            good &= (chosen[:, other] == 0) | (chosen[:, result] == 1)
    return good


def keeping(
    workload: Workload, save: Sequence[str], device: Device, mesh: Mapping[str, int], a: Assumptions
) -> Keeping:
    """One given way. Raises PlanError for a name that the blocks do not have."""
    known = {tensor.name: tensor for tensor in workload.values}
    if unknown := sorted(set(save) - set(known)):
        raise PlanError(
            f"remat keeps {', '.join(unknown)}, which {workload.name} does not name; it names {sorted(known)}"
        )
    seconds, flops, attention = _again(workload, {name: np.ones(1, bool) for name in save}, device, mesh, a)
    table = rules(mesh).activations
    size = sum(float(shard_bytes(known[name], table, dict(mesh))) for name in save)
    return Keeping(
        save=tuple(save),
        bytes=size,
        seconds=float(seconds[0]),
        flops=float(flops[0]),
        attention=float(attention[0]),
    )


def hull(found: Sequence[Keeping]) -> tuple[Keeping, ...]:
    """Those on the lower convex hull of bytes and seconds: a mix of two of them beats all others, but for rounding."""
    kept: list[Keeping] = []
    for each in found:
        while len(kept) > 1 and _above(kept[-2], kept[-1], each):
            kept.pop()
        kept.append(each)
    return tuple(kept)


def _above(left: Keeping, middle: Keeping, right: Keeping) -> bool:
    rise = (middle.seconds - left.seconds) * (right.bytes - left.bytes)
    return rise >= (right.seconds - left.seconds) * (middle.bytes - left.bytes)


def _again(
    workload: Workload, saved: Mapping[str, np.ndarray], device: Device, mesh: Mapping[str, int], a: Assumptions
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds, FLOPs, and FLOPs of attention, of what many choices compute again.

    `saved`: by name, whether each choice keeps it.
    """
    count = len(next(iter(saved.values()))) if saved else 1
    no = np.zeros(count, bool)
    kept = lambda name: saved.get(name, no)
    read = {tensor.name for tensor in workload.activations}
    wanted = {name: (~no if name in read else no) & ~kept(name) for op in workload.operations for name in op.outputs}
    seconds, flops, attention = np.zeros(count), np.zeros(count), np.zeros(count)
    for operation in reversed(workload.operations):
        runs = np.any([wanted[name] for name in operation.outputs], axis=0)
        seconds += runs * _seconds(operation, workload, device, mesh, a)
        flops += runs * operation.flops
        attention += runs * (operation.flops if operation.attention else 0.0)
        for name in operation.inputs:
            if name in wanted:
                wanted[name] = wanted[name] | (runs & ~kept(name))
    return seconds, flops, attention


def _seconds(
    operation: Operation, workload: Workload, device: Device, mesh: Mapping[str, int], a: Assumptions
) -> float:
    """Of one operation for one sequence, as one device of the mesh does it."""
    parts = _parts(operation.axes, rules(mesh).activations, mesh)
    flops, dtype = operation.flops / parts, workload.compute_dtype
    work = Work.of(workload)
    if operation.attention and work.fused_attention:
        flops *= 0.5 if workload.causal else 1.0
        product = flops / (rate(device, dtype) * a.flash_efficiency)
    else:
        product = float(matmul_seconds(flops, max(flops, 1.0), device, dtype, a))
    return product + float(memory_seconds(operation.moved / parts, device, a))


def _parts(axes: Sequence[str | None], table: Table, mesh: Mapping[str, int]) -> int:
    """Devices among which an operation on these logical axes is divided, those that divide the batch left out."""
    where = dict(table)
    return ways({axis for name in axes if name and name != "batch" for axis in where.get(name, ())}, mesh)

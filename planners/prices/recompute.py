"""What a block may keep for its backward pass, value by value, and what computing the rest once more takes.

The backward pass reads `Workload.activations`. What is not kept is computed again from what is: the slice of the
forward pass that leads from the kept values and the block's input to those it reads. Every subset of the values that
have a name is priced; those that no other beats in bytes and seconds remain (eqs. 8-10; planners.md 4.1).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planners.layout import rules, ways
from planners.machines.topology import Device
from planners.plan import Operation, PlanError, Table, Workload
from planners.prices.assumptions import Assumptions
from planners.prices.compute import matmul_seconds, memory_seconds, rate
from planners.prices.footprint import shard_bytes
from planners.remat.block import Block
from planners.remat.host import Host, splits, torn
from planners.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """One way of a block to keep values, for ONE sequence on one device of a mesh.

    Attributes:
        save: names of the kept values, in the order in which they are computed.
        bytes: that they take, the block's input not counted.
        seconds: of computing the rest again.
        flops: of computing the rest again, all devices together; attention counted in full.
        attention: those of them that are attention's, half of which a causal mask hides.
        offload: names of the values that wait in host memory instead; `away` their bytes.
        waiting: seconds of waiting for their copies.
    """

    save: tuple[str, ...]
    bytes: float
    seconds: float
    flops: float
    attention: float = 0.0
    offload: tuple[str, ...] = ()
    away: float = 0.0
    waiting: float = 0.0


def keepings(workload: Workload, device: Device, mesh: Mapping[str, int], a: Assumptions) -> tuple[Keeping, ...]:
    """The ways that no other beats in bytes and seconds, fewest bytes first: from keeping nothing to keeping all that
    is read. Raises PlanError where the workload does not say what its blocks compute."""
    block = _block(workload, device, mesh, a)
    front = block.front()
    return tuple(_kept(block, kept, again) for kept, again in zip(front, block.reruns(front), strict=True))


def hosted(
    workload: Workload, device: Device, mesh: Mapping[str, int], a: Assumptions, host: Host
) -> tuple[Keeping, ...]:
    """The ways that leave some values to the host and that no other such way beats; seconds of `host` are those of one
    sequence."""
    block = _block(workload, device, mesh, a)
    return tuple(
        _away(_kept(block, each.device, each.again), block, each.away, each.waiting) for each in splits(block, host)
    )


def keeping(
    workload: Workload,
    save: Sequence[str],
    device: Device,
    mesh: Mapping[str, int],
    a: Assumptions,
    *,
    offload: Sequence[str] = (),
    host: Host | None = None,
) -> Keeping:
    """One given way; without a `host` its copies cost no time. Raises PlanError for a name that the blocks do not
    have."""
    known = {tensor.name: tensor for tensor in workload.values}
    if unknown := sorted({*save, *offload} - set(known)):
        raise PlanError(
            f"remat keeps {', '.join(unknown)}, which {workload.name} does not name; it names {sorted(known)}"
        )
    block = _block(workload, device, mesh, a)
    kept, away = (block.chosen([name for name in names if name in block.names]) for names in (save, offload))
    found = _kept(block, kept[0], block.reruns(kept | away)[0])
    if torn(block, kept, away)[0]:
        raise PlanError(
            f"remat offloads {', '.join(offload)}: what the attention kernel gives is kept on the device whole, or "
            "its statistics are not kept"
        )
    if offload:
        waiting = 0.0 if host is None else float(host.waiting(away @ block.sizes)[0])
        found = _away(found, block, away[0], waiting)
    # Values whose keeping spares nothing take room all the same.
    size = sum(float(shard_bytes(known[name], rules(mesh).activations, dict(mesh))) for name in save)
    return dataclasses.replace(found, save=tuple(save), bytes=size)


def _block(workload: Workload, device: Device, mesh: Mapping[str, int], a: Assumptions) -> Block:
    table, sizes = rules(mesh).activations, dict(mesh)
    return Block.of(
        workload,
        lambda tensor: float(shard_bytes(tensor, table, sizes)),
        lambda operation: _seconds(operation, workload, device, mesh, a),
    )


def _kept(block: Block, kept: np.ndarray, again: np.ndarray) -> Keeping:
    """`kept`: which of the block's names are; `again`: which of its operations run once more."""
    run = [operation for operation, runs in zip(block.operations, again, strict=True) if runs]
    return Keeping(
        save=tuple(name for name, keeps in zip(block.names, kept, strict=True) if keeps),
        bytes=float(kept @ block.sizes),
        seconds=float(again @ block.seconds),
        flops=sum(operation.flops for operation in run),
        attention=sum(operation.flops for operation in run if operation.attention),
    )


def _away(kept: Keeping, block: Block, away: np.ndarray, waiting: float) -> Keeping:
    return dataclasses.replace(
        kept,
        offload=tuple(name for name, leaves in zip(block.names, away, strict=True) if leaves),
        away=float(away @ block.sizes),
        waiting=waiting,
    )


def hull(found: Sequence[Keeping]) -> tuple[Keeping, ...]:
    """Those on the lower convex hull of bytes and seconds, waiting included: a mix of two of them beats all others, but
    for rounding. `found`: fewest bytes first."""
    kept: list[Keeping] = []
    for each in found:
        while len(kept) > 1 and _above(kept[-2], kept[-1], each):
            kept.pop()
        kept.append(each)
    return tuple(kept)


def _above(left: Keeping, middle: Keeping, right: Keeping) -> bool:
    first, second, third = (each.seconds + each.waiting for each in (left, middle, right))
    return (second - first) * (right.bytes - left.bytes) >= (third - first) * (middle.bytes - left.bytes)


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

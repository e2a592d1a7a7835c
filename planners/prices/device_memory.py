"""Bytes on the busiest device of each candidate: the worst pipeline stage, the optimizer state split as chosen."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from planners.candidates import Candidates
from planners.layout import rules
from planners.machines.topology import Device
from planners.plan import Tensor, Workload
from planners.prices.assumptions import Assumptions
from planners.prices.footprint import Footprint, footprint, shard_bytes
from planners.prices.memory import memory, memory_by_phase


def device_memory(
    workload: Workload, device: Device, candidates: Candidates, *, unroll: int, assumptions: Assumptions
) -> dict[str, np.ndarray]:
    """Bytes by part at the peak of one step, of the device that needs most: arrays of one entry per candidate.

    A stage of a pipeline holds its share of the layers; the first also the embedding and the activations of as many
    microbatches as are in flight, min(m, p), the last also the head and the logits (planners.md 3.3, 3.6; 1F1B). The
    stages between need less than the first.
    """
    stages = candidates.sizes["stage"]
    if np.all(stages == 1):
        return _one_stage(workload, device, candidates, unroll, assumptions)
    whole: dict[str, np.ndarray] = {}
    for count in sorted(set(stages.tolist())):
        rows = np.flatnonzero(stages == count)
        picked = candidates.take(rows)
        if count == 1:
            parts = _one_stage(workload, device, picked, unroll, assumptions)
        else:
            parts = _worst_stage(workload, device, picked, count, unroll, assumptions)
        for name, size in parts.items():
            whole.setdefault(name, np.zeros(len(candidates)))[rows] = size
    return whole


def footprint_of(workload: Workload, sizes: Mapping[str, np.ndarray]) -> Footprint:
    """`footprint` of many candidates, worked out once for each run of candidates with the same mesh."""
    rows = np.stack(np.broadcast_arrays(*sizes.values()))
    new = np.append(True, np.any(rows[:, 1:] != rows[:, :-1], axis=0))
    few = footprint(workload, {axis: size[new] for axis, size in zip(sizes, rows, strict=True)})
    of = np.cumsum(new) - 1
    spread = {item.name: getattr(few, item.name) for item in dataclasses.fields(few)}
    return dataclasses.replace(few, **{name: value[of] for name, value in spread.items() if np.ndim(value)})


def _one_stage(
    workload: Workload, device: Device, candidates: Candidates, unroll: int, assumptions: Assumptions
) -> dict[str, np.ndarray]:
    where = footprint_of(workload, candidates.sizes)
    parts = memory(where, workload, device, candidates, unroll=unroll, assumptions=assumptions)
    return _split_state(parts, workload, candidates)


def phase_memory(
    workload: Workload, device: Device, candidates: Candidates, *, assumptions: Assumptions
) -> dict[str, dict[str, np.ndarray]]:
    """As `device_memory`, phase by phase (`memory_phases`): for GPUs and steps without pipeline stages."""
    where = footprint_of(workload, candidates.sizes)
    found = memory_by_phase(where, workload, device, candidates, assumptions=assumptions)
    return {name: _split_state(parts, workload, candidates) for name, parts in found.items()}


def _split_state(parts: dict[str, np.ndarray], workload: Workload, candidates: Candidates) -> dict[str, np.ndarray]:
    """With the optimizer state split over replicas where a candidate does that."""
    if not candidates.zero.any():
        return parts
    table = rules({}, zero=True).optimizer
    rows = np.flatnonzero(candidates.zero)
    sizes = {axis: size[rows] for axis, size in candidates.sizes.items()}
    state = parts["optimizer"].astype(float)
    state[rows] = sum((shard_bytes(tensor, table, sizes) for tensor in workload.optimizer), np.zeros(()))
    return parts | {"optimizer": state}


def _worst_stage(
    workload: Workload, device: Device, candidates: Candidates, count: int, unroll: int, assumptions: Assumptions
) -> dict[str, np.ndarray]:
    """Of the first and the last of `count` stages, the one that needs more, candidate by candidate."""
    alone = dataclasses.replace(candidates, sizes={**candidates.sizes, "stage": np.ones(len(candidates), np.int64)})
    times = workload.batch // candidates.microbatch
    found = []
    for last in (False, True):
        stage = _stage_of(workload, count, last=last)
        parts = _one_stage(stage, device, alone, unroll, assumptions)
        flying = np.ones(len(candidates)) if last else np.minimum(times, count)
        # Interleaving keeps 1 + (p - 1) / (p v) of what the plain schedule keeps (arXiv:2205.05198, 4.2.3).
        extra = np.where(candidates.virtual > 1, 1.0 + (count - 1) / (count * candidates.virtual), 1.0)
        parts = parts | {"activations": parts["activations"] * flying * (1.0 if last else extra)}
        if not last:
            parts = {name: np.zeros(len(candidates)) if name in HEAD else size for name, size in parts.items()}
        found.append(parts)
    totals = [np.sum(list(parts.values()), axis=0) for parts in found]
    ends = totals[1] > totals[0]
    names = dict.fromkeys(name for parts in found for name in parts)
    zeros = np.zeros(len(candidates))
    return {name: np.where(ends, found[1].get(name, zeros), found[0].get(name, zeros)) for name in names}


HEAD = ("logits", "head_gradient")
"""Parts of the memory that only the last stage has."""


def _stage_of(workload: Workload, count: int, *, last: bool) -> Workload:
    """The first or the last of `count` stages as a workload of its own: fewer layers, and one end of the model.

    What lies outside the layers and has no `vocab` axis (the final norm) counts as the last stage's; so does a matrix
    with `vocab` whose first axis is the model's width (the head), or the only one there is (a tied embedding, which
    lives on both ends).
    """
    tables = [t for t in workload.parameters if "layers" not in t.axes and "vocab" in t.axes]
    tied = len(tables) == 1
    first = {t.name for t in workload.parameters if "layers" not in t.axes and t.axes[:1] != ("embed",)}
    ends = {t.name for t in workload.parameters if "layers" not in t.axes and (tied or t.axes[:1] == ("embed",))}

    def share(tensor: Tensor) -> Tensor | None:
        if "layers" in tensor.axes:
            shape = tuple(
                -(-dim // count) if name == "layers" else dim
                for name, dim in zip(tensor.axes, tensor.shape, strict=True)
            )
            return dataclasses.replace(tensor, shape=shape)
        name = next((known for known in first | ends if tensor.name.endswith(known)), None)
        kept = name is None or name in (ends if last else first)
        return tensor if kept else None

    return dataclasses.replace(
        workload,
        parameters=tuple(found for tensor in workload.parameters if (found := share(tensor))),
        optimizer=tuple(found for tensor in workload.optimizer if (found := share(tensor))),
        layers=-(-workload.layers // count),
    )

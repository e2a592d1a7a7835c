"""Bytes per device of one step, split into named parts, for many candidates at once."""

from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np

from planners.candidates import Candidates
from planners.machines.topology import Device
from planners.plan import Workload
from planners.prices.assumptions import Assumptions
from planners.prices.footprint import Footprint, footprint, shard_bytes
from planners.prices.memory_phases import Habits, Phase, apart, phases, worst
from planners.work import Number

__all__ = ["Footprint", "Remat", "footprint", "memory", "shard_bytes"]

Remat: TypeAlias = Literal["none", "full"]


def memory(
    step: Footprint,
    workload: Workload,
    device: Device,
    candidates: Candidates,
    *,
    unroll: int,
    assumptions: Assumptions,
    habits: Mapping[str, Habits] | None = None,
) -> dict[str, np.ndarray]:
    """Bytes per device at the peak of one step, by part; the parts add up to what is allocated at that moment.

    On a GPU the peak is the largest of the step's phases (`memory_phases`), with the `habits` that compiled
    steps have shown (`memory_calibration`), by default those of the assumptions. On a CPU it is taken as if
    the head and one block were in flight at once, which errs on the safe side.
    """
    rows = len(candidates)
    if device.kind == "cpu":
        parts = _on_cpu(step, workload, candidates, unroll=unroll, assumptions=assumptions)
    else:
        parts = dict(worst(_on_gpu(workload, step, candidates, assumptions, habits), rows))
    parts |= _always(step, workload, device, candidates, assumptions)
    return {name: np.zeros(rows) + size for name, size in parts.items()}


def memory_by_phase(
    step: Footprint,
    workload: Workload,
    device: Device,
    candidates: Candidates,
    *,
    assumptions: Assumptions,
    habits: Mapping[str, Habits] | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """As `memory`, for every phase of `memory_phases` and not for the worst alone; on a GPU."""
    always, rows = _always(step, workload, device, candidates, assumptions), len(candidates)
    return {
        name: {part: np.zeros(rows) + size for part, size in (phase | always).items()}
        for name, phase in _on_gpu(workload, step, candidates, assumptions, habits).items()
    }


def _on_gpu(
    workload: Workload,
    step: Footprint,
    candidates: Candidates,
    assumptions: Assumptions,
    habits: Mapping[str, Habits] | None,
) -> dict[str, Phase]:
    return phases(step, workload, candidates, assumptions.memory_habits if habits is None else habits)


def _always(
    step: Footprint, workload: Workload, device: Device, candidates: Candidates, assumptions: Assumptions
) -> Phase:
    """What is there before and after the step."""
    return {
        "parameters": step.parameters,
        "optimizer": step.optimizer,
        "batch": assumptions.batch_bytes * workload.tokens / candidates.replicas,
        "runtime": device.overhead,
    }


def _on_cpu(
    step: Footprint, workload: Workload, candidates: Candidates, *, unroll: int, assumptions: Assumptions
) -> dict[str, Number]:
    """`update_excess` is what the optimizer needs beyond what the backward pass has freed by then. Without
    rematerialisation every block keeps its activations, and the weights that were cast for it: autodiff keeps
    them as residuals of the layer scan, sharded like the weights (seen in compiled programs, jax 0.10 on
    CPU). With full rematerialisation every block keeps its input, and the block in flight its activations.
    """
    sequences = workload.at_once(candidates.microbatch // candidates.replicas)
    fsdp = candidates.sizes["fsdp"] > 1
    none = candidates.remat == candidates.remats.index("none")
    casts = np.asarray(step.casts)
    parts: dict[str, Number] = {
        "gradient_accumulator": np.where(
            (candidates.microbatch < workload.batch) | (workload.documents > 0), step.accumulator, 0
        ),
        "document_gradients": apart(workload, sequences),
        "working_parameters": np.minimum(unroll + fsdp, workload.layers) * step.layer
        + np.where(fsdp | casts, step.others, 0),
        "working_gradients": np.where(fsdp, np.maximum(step.layer, step.others), 0),
        "cast_weights": np.where(casts & none, step.cast_layers, 0),
        "activations": sequences
        * (np.where(none, 0, workload.layers * step.carry) + np.where(none, workload.layers, 1) * step.activations),
        "attention_scratch": sequences * step.scratch,
        "block_transient": sequences * (step.carry + assumptions.block_transient * step.largest),
        "logits": sequences * 2 * step.logits / candidates.loss_chunks,
        "head_gradient": np.where(candidates.loss_chunks > 1, step.head_gradient, 0),
    }
    freed = sum(size for size in parts.values())
    parts["update_excess"] = np.maximum(assumptions.update_copies * step.gradients - freed, 0.0)
    return parts | {"gradients": step.gradients}

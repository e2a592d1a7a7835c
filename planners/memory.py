"""Bytes per device of one step, split into named parts, for many candidates at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from planners.assumptions import Assumptions
from planners.candidates import Candidates
from planners.layout import rules
from planners.plan import BYTES, Table, Tensor, Workload
from planners.topology import Device
from planners.work import Number

Remat: TypeAlias = Literal["none", "full"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Footprint:
    """What a mesh leaves on each device, in bytes, one entry per candidate; activations and logits are those of ONE
    sequence.

    Attributes:
        parameters: at rest, sharded as the rules say; exact.
        optimizer: likewise.
        gradients: likewise.
        accumulator: float32 sums of gradients, sharded like the parameters; exact, needed with accumulation
            only.
        layer: parameters of one layer in the compute dtype, gathered over fsdp.
        others: parameters outside the layers (embedding, head) in the compute dtype, gathered over fsdp.
        casts: whether parameters are cast before use.
        cast_layers: parameters of all layers in the compute dtype, sharded as the rules say.
        activations: what the backward pass of one block keeps.
        carry: the input of one block.
        largest: the largest of the activations.
        logits: the output of the head in the compute dtype.
        head_gradient: float32 sums of the head's gradient over the chunks of the loss, gathered over fsdp.
        scratch: what the attention kernel needs for one block at a time.
    """

    parameters: Number
    optimizer: Number
    gradients: Number
    accumulator: Number
    layer: Number
    others: Number
    casts: bool
    cast_layers: Number
    activations: Number
    carry: Number
    largest: Number
    logits: Number
    head_gradient: Number
    scratch: Number


def shard_bytes(tensor: Tensor, table: Table, sizes: Mapping[str, Number]) -> np.ndarray:
    """Bytes of the largest shard of a tensor (uneven shards round up), one entry per candidate."""
    rows = dict(table)
    total: np.ndarray = np.ones((), np.int64)
    for name, dim in zip(tensor.axes, tensor.shape, strict=True):
        parts: Number = np.ones((), np.int64)
        for axis in rows.get(name or "", ()):
            parts = parts * sizes.get(axis, 1)
        total = total * -(-dim // parts)
    return total * BYTES[tensor.dtype]


def footprint(workload: Workload, sizes: Mapping[str, Number]) -> Footprint:
    """Bytes per device that depend on the mesh alone."""
    layout = rules({})
    gathered = {**sizes, "fsdp": 1}
    width = BYTES[workload.compute_dtype]

    def rest(tensors: tuple[Tensor, ...], table: Table) -> Number:
        return sum((shard_bytes(tensor, table, sizes) for tensor in tensors), np.zeros((), np.int64))

    def work(tensor: Tensor) -> np.ndarray:
        return shard_bytes(tensor, layout.activations, sizes)

    def elements(tensors: list[Tensor], where: Mapping[str, Number]) -> np.ndarray:
        parts = (shard_bytes(tensor, layout.parameters, where) // BYTES[tensor.dtype] for tensor in tensors)
        return sum(parts, np.zeros((), np.int64))

    inside = [tensor for tensor in workload.parameters if "layers" in tensor.axes]
    outside = [tensor for tensor in workload.parameters if "layers" not in tensor.axes]
    parameters = rest(workload.parameters, layout.parameters)
    kept = [work(tensor) for tensor in workload.activations]
    return Footprint(
        parameters=parameters,
        optimizer=rest(workload.optimizer, layout.optimizer),
        gradients=parameters,
        accumulator=4 * elements(list(workload.parameters), sizes),
        layer=width * elements(inside, gathered) / workload.layers,
        others=width * elements(outside, gathered),
        casts=any(tensor.dtype != workload.compute_dtype for tensor in workload.parameters),
        cast_layers=width * elements(inside, sizes),
        activations=sum(kept, np.zeros((), np.int64)),
        carry=work(workload.carry),
        largest=np.max(np.stack(np.broadcast_arrays(*kept)), axis=0) if kept else np.zeros((), np.int64),
        logits=work(workload.logits) * width // BYTES[workload.logits.dtype],
        head_gradient=4.0 * elements(outside, gathered),
        scratch=sum((work(tensor) for tensor in workload.scratch), np.zeros((), np.int64)),
    )


def memory(
    step: Footprint,
    workload: Workload,
    device: Device,
    candidates: Candidates,
    *,
    unroll: int,
    assumptions: Assumptions,
) -> dict[str, np.ndarray]:
    """Bytes per device at the peak of one step, by part; the parts add up.

    `update_excess` is what the optimizer needs beyond what the backward pass has freed by then. The peak is
    taken as if the head and one block were in flight at once, which errs on the safe side. Without
    rematerialisation every block keeps its activations, and the weights that were cast for it: autodiff keeps
    them as residuals of the layer scan, sharded like the weights (seen in compiled programs, jax 0.10 on
    CPU). With full rematerialisation every block keeps its input, and the block in flight its activations.
    """
    replicas = candidates.replicas
    sequences = candidates.microbatch // replicas
    fsdp = candidates.sizes["fsdp"] > 1
    chunked = candidates.loss_chunks > 1
    none = candidates.remat == candidates.remats.index("none")
    blocks = np.where(none, workload.layers, 1)
    kept_inputs = np.where(none, 0, workload.layers * step.carry)
    casts = np.asarray(step.casts)
    parts: dict[str, Number] = {
        "parameters": step.parameters,
        "optimizer": step.optimizer,
        "gradients": step.gradients,
        "gradient_accumulator": np.where(candidates.microbatch < workload.batch, step.accumulator, 0),
        "working_parameters": np.minimum(unroll + fsdp, workload.layers) * step.layer
        + np.where(fsdp | casts, step.others, 0),
        "working_gradients": np.where(fsdp, np.maximum(step.layer, step.others), 0),
        "cast_weights": np.where(casts & none, step.cast_layers, 0),
        "activations": sequences * (kept_inputs + blocks * step.activations),
        "attention_scratch": sequences * step.scratch,
        "block_transient": sequences * (step.carry + assumptions.block_transient * step.largest),
        "logits": sequences * 2 * step.logits / candidates.loss_chunks,
        "head_gradient": np.where(chunked, step.head_gradient, 0),
        "batch": assumptions.batch_bytes * workload.tokens / replicas,
        "runtime": device.overhead,
    }
    kept = ("parameters", "optimizer", "gradients", "batch", "runtime")
    freed = sum(size for name, size in parts.items() if name not in kept)
    copies = assumptions.update_copies if device.kind == "cpu" else assumptions.update_copies_gpu
    parts["update_excess"] = np.maximum(copies * step.gradients - freed, 0.0)
    whole = np.zeros(len(candidates))
    return {name: whole + size for name, size in parts.items()}

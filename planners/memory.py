"""Bytes per device of one step, split into named parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from planners.assumptions import Assumptions
from planners.layout import ways
from planners.plan import BATCH_AXES, BYTES, Rules, Table, Tensor, Workload
from planners.topology import Device

Remat: TypeAlias = Literal["none", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a mesh leaves on each device, in bytes; activations and logits are those of ONE sequence.

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

    parameters: int
    optimizer: int
    gradients: int
    accumulator: int
    layer: float
    others: float
    casts: bool
    cast_layers: int
    activations: int
    carry: int
    largest: int
    logits: int
    head_gradient: float
    scratch: int


def footprint(workload: Workload, rules: Rules, mesh: Mapping[str, int]) -> Footprint:
    """Bytes per device that depend on the mesh alone."""
    gathered = {**mesh, "fsdp": 1}
    width = BYTES[workload.compute_dtype]

    def rest(tensors: tuple[Tensor, ...], table: Table) -> int:
        return sum(tensor.bytes_per_device(table, mesh) for tensor in tensors)

    def work(tensor: Tensor) -> int:
        return tensor.bytes_per_device(rules.activations, mesh)

    def elements(tensor: Tensor, where: Mapping[str, int]) -> int:
        return tensor.bytes_per_device(rules.parameters, where) // BYTES[tensor.dtype]

    inside = [tensor for tensor in workload.parameters if "layers" in tensor.axes]
    outside = [tensor for tensor in workload.parameters if "layers" not in tensor.axes]
    parameters = rest(workload.parameters, rules.parameters)
    kept = [work(tensor) for tensor in workload.activations]
    return Footprint(
        parameters=parameters,
        optimizer=rest(workload.optimizer, rules.optimizer),
        gradients=parameters,
        accumulator=4 * sum(elements(tensor, mesh) for tensor in workload.parameters),
        layer=width * sum(elements(tensor, gathered) for tensor in inside) / workload.layers,
        others=width * sum(elements(tensor, gathered) for tensor in outside),
        casts=any(tensor.dtype != workload.compute_dtype for tensor in workload.parameters),
        cast_layers=width * sum(elements(tensor, mesh) for tensor in inside),
        activations=sum(kept),
        carry=work(workload.carry),
        largest=max(kept, default=0),
        logits=work(workload.logits) * width // BYTES[workload.logits.dtype],
        head_gradient=4.0 * sum(elements(tensor, gathered) for tensor in outside),
        scratch=sum(work(tensor) for tensor in workload.scratch),
    )


def memory(
    step: Footprint,
    workload: Workload,
    device: Device,
    mesh: Mapping[str, int],
    *,
    microbatch: int,
    remat: Remat,
    loss_chunks: int,
    unroll: int,
    assumptions: Assumptions,
) -> dict[str, float]:
    """Bytes per device at the peak of one step, by part; the parts add up.

    `update_excess` is what the optimizer needs beyond what the backward pass has freed by then. The peak is
    taken as if the head and one block were in flight at once, which errs on the safe side. Without
    rematerialisation every block keeps its activations, and the weights that were cast for it: autodiff keeps
    them as residuals of the layer scan, sharded like the weights (seen in compiled programs, jax 0.10 on
    CPU). With full rematerialisation every block keeps its input, and the block in flight its activations.
    """
    replicas = ways(BATCH_AXES, mesh)
    sequences = microbatch // replicas
    fsdp = mesh["fsdp"] > 1
    blocks, kept_inputs = (workload.layers, 0) if remat == "none" else (1, workload.layers * step.carry)
    parts: dict[str, float] = {
        "parameters": step.parameters,
        "optimizer": step.optimizer,
        "gradients": step.gradients,
        "gradient_accumulator": step.accumulator if microbatch < workload.batch else 0,
        "working_parameters": min(unroll + fsdp, workload.layers) * step.layer
        + (step.others if fsdp or step.casts else 0.0),
        "working_gradients": max(step.layer, step.others) if fsdp else 0.0,
        "cast_weights": step.cast_layers if step.casts and remat == "none" else 0,
        "activations": sequences * (kept_inputs + blocks * step.activations),
        "attention_scratch": sequences * step.scratch,
        "block_transient": sequences * (step.carry + assumptions.block_transient * step.largest),
        "logits": sequences * 2 * step.logits / loss_chunks,
        "head_gradient": step.head_gradient if loss_chunks > 1 else 0.0,
        "batch": assumptions.batch_bytes * workload.tokens / replicas,
        "runtime": device.overhead,
    }
    kept = ("parameters", "optimizer", "gradients", "batch", "runtime")
    freed = sum(size for name, size in parts.items() if name not in kept)
    copies = assumptions.update_copies if device.kind == "cpu" else assumptions.update_copies_gpu
    parts["update_excess"] = max(copies * step.gradients - freed, 0.0)
    return {name: float(size) for name, size in parts.items() if size}

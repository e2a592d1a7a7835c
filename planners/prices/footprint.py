"""What one step leaves on each device, read off the workload: the quantities that bytes per device are made of."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from planners.layout import TENSOR_AXES, rules
from planners.plan import BYTES, Table, Tensor, Workload
from planners.work import Number


class Moved(Protocol):
    """The bytes that the seconds of a step depend on: what `Footprint` has, and rows of published tables have too.

    Each is what `Footprint` says of it.
    """

    @property
    def parameters(self) -> Number: ...
    @property
    def optimizer(self) -> Number: ...
    @property
    def gradients(self) -> Number: ...
    @property
    def layer(self) -> Number: ...
    @property
    def others(self) -> Number: ...
    @property
    def activations(self) -> Number: ...
    @property
    def carry(self) -> Number: ...
    @property
    def logits(self) -> Number: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Footprint:
    """What a mesh leaves on each device, in bytes, one entry per candidate; activations and logits are those of ONE
    sequence. `gathered` means whole over fsdp, still split over tensor.

    Attributes:
        parameters: at rest, sharded as the rules say; exact.
        optimizer: likewise.
        gradients: likewise.
        accumulator: float32 sums of gradients, sharded like the parameters; exact, needed with accumulation
            only.
        block_gradients: float32 gradients of all layers, sharded like the parameters.
        layer: parameters of one layer in the compute dtype, gathered.
        mlp: those of them in the feed-forward part.
        down: the largest matrix of the feed-forward part, likewise.
        query: the largest matrix of the attention, likewise.
        others: parameters outside the layers (embedding, head) in the compute dtype, gathered.
        vocabulary: the largest matrix outside the layers (the head) in the compute dtype, gathered.
        vocabulary_rest: the same, sharded as the rules say.
        casts: whether parameters are cast before use.
        cast_layers: parameters of all layers in the compute dtype, sharded as the rules say.
        turned_layers: float32 parameters of all layers whose last dimension fsdp splits, sharded.
        turned_others: those outside the layers.
        turned_cast: those of the layers in the compute dtype.
        activations: what the backward pass of one block keeps.
        whole: those of them that tensor does not split.
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
    block_gradients: Number
    layer: Number
    mlp: Number
    down: Number
    query: Number
    others: Number
    vocabulary: Number
    vocabulary_rest: Number
    casts: bool
    cast_layers: Number
    turned_layers: Number
    turned_others: Number
    turned_cast: Number
    activations: Number
    whole: Number
    carry: Number
    largest: Number
    logits: Number
    head_gradient: Number
    scratch: Number


def shard_bytes(tensor: Tensor, table: Table, sizes: Mapping[str, Number]) -> np.ndarray:
    """Bytes of the largest shard of a tensor (uneven shards round up), one entry per candidate."""
    rows = dict(table)
    total: Number = BYTES[tensor.dtype]
    for name, dim in zip(tensor.axes, tensor.shape, strict=True):
        axes = [sizes.get(axis, 1) for axis in rows.get(name or "", ())]
        total = total * (-(-dim // math.prod(axes)) if axes else dim)
    return np.asarray(total)


def footprint(workload: Workload, sizes: Mapping[str, Number]) -> Footprint:
    """Bytes per device that depend on the mesh alone, all layers on it (`device_memory` cuts stages)."""
    layout = rules({})
    gathered = {**sizes, "fsdp": 1}
    width = BYTES[workload.compute_dtype]
    nothing = np.zeros((), np.int64)

    inside = [tensor for tensor in workload.parameters if "layers" in tensor.axes]
    outside = [tensor for tensor in workload.parameters if "layers" not in tensor.axes]
    feedforward = [tensor for tensor in inside if "mlp" in tensor.axes]
    attention = [tensor for tensor in inside if "mlp" not in tensor.axes]

    def rest(tensors: Sequence[Tensor], table: Table) -> np.ndarray:
        return sum((shard_bytes(tensor, table, sizes) for tensor in tensors), nothing)

    def work(tensors: Sequence[Tensor]) -> list[np.ndarray]:
        return [shard_bytes(tensor, layout.activations, sizes) for tensor in tensors]

    def each(tensors: Sequence[Tensor], where: Mapping[str, Number]) -> list[np.ndarray]:
        """Elements of each tensor, of one layer where it is stacked."""
        return [shard_bytes(t, layout.parameters, where) // BYTES[t.dtype] // _depth(t) for t in tensors]

    def total(tensors: Sequence[Tensor], where: Mapping[str, Number]) -> np.ndarray:
        return sum(each(tensors, where), nothing)

    parameters = rest(workload.parameters, layout.parameters)
    layers = workload.layers
    kept = work(workload.activations)
    return Footprint(
        parameters=parameters,
        optimizer=rest(workload.optimizer, layout.optimizer),
        gradients=parameters,
        accumulator=4 * (layers * total(inside, sizes) + total(outside, sizes)),
        block_gradients=4 * layers * total(inside, sizes),
        layer=width * total(inside, gathered),
        mlp=width * total(feedforward, gathered),
        down=width * _most(each(feedforward, gathered)),
        query=width * _most(each(attention, gathered)),
        others=width * total(outside, gathered),
        vocabulary=width * _most(each(outside, gathered)),
        vocabulary_rest=width * _most(each(outside, sizes)),
        casts=any(tensor.dtype != workload.compute_dtype for tensor in workload.parameters),
        cast_layers=width * layers * total(inside, sizes),
        turned_layers=4 * layers * total([tensor for tensor in inside if _turned(tensor)], sizes),
        turned_others=4 * total([tensor for tensor in outside if _turned(tensor)], sizes),
        turned_cast=width * layers * total([tensor for tensor in inside if _turned(tensor)], sizes),
        activations=sum(kept, nothing),
        whole=sum(
            work([tensor for tensor in workload.activations if not set(tensor.axes) & set(TENSOR_AXES)]), nothing
        ),
        carry=sum(work([workload.carry]), nothing),
        largest=_most(kept),
        logits=sum(work([workload.logits]), nothing) * width // BYTES[workload.logits.dtype],
        head_gradient=4.0 * total(outside, gathered),
        scratch=sum(work(workload.scratch), nothing),
    )


def _depth(tensor: Tensor) -> int:
    return tensor.shape[tensor.axes.index("layers")] if "layers" in tensor.axes else 1


def _most(sizes: Sequence[np.ndarray]) -> np.ndarray:
    return np.max(np.stack(np.broadcast_arrays(*sizes)), axis=0) if sizes else np.zeros((), np.int64)


def _turned(tensor: Tensor) -> bool:
    """Whether fsdp splits the last dimension of a matrix, so that XLA turns it round before it gathers it."""
    return tensor.axes[-1] == "embed" and len(tensor.axes) - ("layers" in tensor.axes) > 1

"""The few numbers of a workload that prices are made of; plain floats, or arrays with one entry per candidate."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from planners.plan import Tensor, Workload

Number: TypeAlias = float | np.ndarray
"""A number, or one number per candidate."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matmul:
    """One weight of a block, as the matrix product that every token takes with it.

    Attributes:
        inputs: width that is summed over.
        outputs: width of the result.
        split: which of the two the tensor axis divides; `none` where every rank does all of it.
    """

    inputs: Number
    outputs: Number
    split: Literal["inputs", "outputs", "none"]

    def shard(self, tensor: Number) -> tuple[Number, Number]:
        """Inputs and outputs of one of `tensor` ranks."""
        return (
            self.inputs / tensor if self.split == "inputs" else self.inputs,
            self.outputs / tensor if self.split == "outputs" else self.outputs,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """One training step of one model, or of a different model in every row.

    FLOPs are those of a forward pass for one token over ALL layers, 2 per multiply-add.

    Attributes:
        batch: sequences of the global batch.
        sequence: tokens of one sequence.
        layers: number of blocks.
        width: of the residual stream.
        block_flops: matrix products with weights, inside the blocks.
        attention_flops: scores and weighted values, every pair of positions counted.
        head_flops: the output projection.
        compute_dtype: of the matrix products.
        kernel: attention kernel; fused ones skip what a causal mask hides, and never store the scores.
        causal: whether half of the pairs are masked.
        matmuls: of one block, where their shapes are known; together they make `block_flops`.
        heads: of the attention; 0 where unknown.
        keys_values: elements of keys and values of one token in one block, over all heads.
        scores_bytes: that one block keeps of its attention scores, per token; 0 for fused kernels.
    """

    batch: Number
    sequence: Number
    layers: Number
    width: Number
    block_flops: Number
    attention_flops: Number
    head_flops: Number
    compute_dtype: str
    kernel: str
    causal: bool = True
    matmuls: tuple[Matmul, ...] = ()
    heads: Number = 0
    keys_values: Number = 0
    scores_bytes: Number = 0

    @classmethod
    def of(cls, workload: Workload) -> "Work":
        return cls(
            batch=workload.batch,
            sequence=workload.sequence,
            layers=workload.layers,
            width=workload.carry.shape[-1],
            block_flops=workload.block_flops,
            attention_flops=workload.attention_flops,
            head_flops=workload.head_flops,
            compute_dtype=workload.compute_dtype,
            kernel=workload.kernel,
            causal=workload.causal,
            matmuls=tuple(_matmul(t) for t in workload.parameters if _is_matrix(t)),
            heads=workload.sizes.get("heads", 0),
            keys_values=sum(
                math.prod(dim for name, dim in zip(t.axes, t.shape, strict=True) if name not in ("layers", "embed"))
                for t in workload.parameters
                if _is_matrix(t) and "kv_heads" in t.axes
            ),
        )

    @property
    def fused_attention(self) -> bool:
        return "flash" in self.kernel or "cudnn" in self.kernel

    @property
    def tokens(self) -> Number:
        """Tokens of one step."""
        return self.batch * self.sequence

    @property
    def model_flops(self) -> Number:
        """Forward and backward of one step, attention not halved for causality, nothing recomputed."""
        return 3.0 * self.tokens * (self.block_flops + self.head_flops + self.attention_flops)


def _is_matrix(tensor: Tensor) -> bool:
    """Whether this parameter is a weight of a block that every token is multiplied with."""
    return "layers" in tensor.axes and "norm" not in tensor.axes and len(tensor.shape) >= 3


def _matmul(tensor: Tensor) -> Matmul:
    """The product with a weight of the blocks: what is not the residual stream lies on the side that is split."""
    dims = [(name, dim) for name, dim in zip(tensor.axes, tensor.shape, strict=True) if name != "layers"]
    divided = any(name in ("heads", "kv_heads", "mlp") for name, _ in dims)
    if dims[0][0] == "embed":
        outputs = math.prod(dim for _, dim in dims[1:])
        return Matmul(inputs=dims[0][1], outputs=outputs, split="outputs" if divided else "none")
    inputs = math.prod(dim for _, dim in dims[:-1])
    return Matmul(inputs=inputs, outputs=dims[-1][1], split="inputs" if divided else "none")

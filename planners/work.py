"""The few numbers of a workload that prices are made of; plain floats, or arrays with one entry per candidate."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from planners.plan import Workload

Number: TypeAlias = float | np.ndarray
"""A number, or one number per candidate."""


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

"""Every number of the cost model that is no fact about a device, each with the place it comes from."""

import dataclasses
from dataclasses import dataclass
from typing import Any


def _number(value: Any, source: str) -> Any:
    return dataclasses.field(default=value, metadata={"source": source})


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """Constants of the cost model. Override any of them; `record` goes into `Plan.assumptions`.

    Attributes:
        matmul_efficiency: share of the peak that a very large matrix product reaches.
        matmul_half_seconds: a product that would take this long at the peak runs at half of that share.
        memory_efficiency: share of the memory bandwidth that element-wise work reaches.
        activation_passes: times that each kept activation crosses the memory bus in one step.
        flash_backward: FLOPs of a fused attention's backward pass over those of its forward pass.
        contention: seconds that hiding one second of communication behind compute costs all the same.
        sync_every_microbatch: gradients are reduced once per microbatch, not once per step.
        block_transient: largest activations that are alive at once while a block's gradient is computed.
        update_copies: copies of the gradient alive on a CPU while the optimizer runs, besides the gradient itself.
        update_copies_gpu: likewise on a GPU.
        batch_bytes: bytes per token of the batch on the device.
        tie: predicted step times closer than this are equal; the simpler plan wins.
    """

    matmul_efficiency: float = _number(
        0.80,
        "790 of 989.5 TFLOP/s measured on H200 (trainers.md 2.3); A100 fits 0.73, 0.86 (planners.md 3.4)",
    )
    matmul_half_seconds: float = _number(35e-6, "g0 = 11 GFLOP at 312 TFLOP/s, fitted on A100 (planners.md 3.4)")
    memory_efficiency: float = _number(0.8, "Calculon's A100 file: 0.6 to 0.9 (planners.md 3.4)")
    activation_passes: float = _number(
        5.0, "counted: write and read forward, read backward, write and read of its gradient"
    )
    flash_backward: float = _number(2.5, "FlashAttention backward: 5 matrix products for 2 (arXiv:2307.08691)")
    contention: float = _number(0.1256, "Galvatron's overlap coefficient 1.1256 (planners.md 3.7)")
    sync_every_microbatch: bool = _number(True, "plain jit: the reduction stays inside the accumulation loop")
    block_transient: float = _number(2.0, "counted: one gradient coming in, one going out")
    update_copies: float = _number(
        2.0, "seen in compiled CPU steps, AdamW with clipping, jax 0.10: mean gradient and update"
    )
    update_copies_gpu: float = _number(
        0.0, "compiled for H100, jax 0.10.2: arguments + one gradient + 0.05 GiB is all that gpt2-774m on data=8 takes"
    )
    batch_bytes: float = _number(20.0, "counted: tokens, targets, positions, segments and weights, 4 bytes each")
    tie: float = _number(0.01, "step times repeat to about 1 % (planners.md 5, rule 5)")

    def record(self) -> dict[str, str]:
        """Name -> "value (source)"; a value that was overridden says so."""
        rows: dict[str, str] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            source = field.metadata["source"] if value == field.default else f"set by hand; default {field.default}"
            rows[field.name] = f"{value:g} ({source})" if not isinstance(value, bool) else f"{value} ({source})"
        return rows

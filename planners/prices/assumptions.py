"""Every number of the cost model that is no fact about a device, each with the place it comes from."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from planners.plan import MESH_AXES
from planners.prices.memory_phases import Habits


def _number(value: Any, source: str, spread: float = 0.0) -> Any:
    return dataclasses.field(default=value, metadata={"source": source, "spread": spread})


TILES_GUIDE = "NVIDIA matrix multiplication guide, section 4 (compute.TILES), read off its figures"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """Constants of the cost model. Override any of them; `record` goes into `Plan.assumptions`.

    Those with a `spread` are coefficients: the spread is how sure their source is, as the standard deviation of their
    logarithm, and `planners.learning.calibration` moves them from measured steps. The others are habits of a trainer.

    Attributes:
        matmul_efficiency: share of the peak that a very large matrix product reaches.
        matmul_half_seconds: a product that would take this long at the peak runs at half of that share; used where
            nothing is known of a device's multiprocessors.
        tile_128: rate of 128 x 128 tiles over that of 256 x 128.
        tile_64: likewise of 128 x 64 tiles.
        tile_small: likewise of 64 x 64 tiles.
        tile_fill: summed elements that starting and finishing a tile costs.
        wave_share: share of an incomplete last wave of tiles that is lost.
        memory_efficiency: share of the memory bandwidth that element-wise work reaches.
        launch: seconds that starting one kernel costs the device.
        activation_passes: times that each kept activation crosses the memory bus in one step, two of them forward.
        scores_passes: likewise for attention scores that are stored.
        loss_passes: times that the logits, in the compute dtype, cross the memory bus in one step.
        flash_efficiency: share of the peak that a fused attention kernel reaches.
        flash_backward: FLOPs of a fused attention's backward pass over those of its forward pass.
        dispatch: seconds of host time that issuing one kernel takes; the device waits where it is faster.
        dispatch_ranks: further share of it for every other rank of the tensor axis, since they wait for each other.
        dispatch_sharpness: how suddenly waiting for the host sets in; the larger of the two counts as this goes up.
        kernels: that one block issues forward, half of those of its backward pass.
        link_efficiency: share of what a link's figures promise that collectives reach.
        network_efficiency: likewise on the tiers outside a node.
        latency: seconds of a call over those of the link's figures.
        contention: seconds that hiding one second of communication behind compute costs all the same.
        hides_gradients: gradients are reduced beside the backward pass, not after it.
        sync_every_microbatch: gradients are reduced once per microbatch, not once per step.
        splits_hops: the ranks of the tensor axis each send their part of what goes to the next stage.
        stragglers: share of a step that every doubling of the nodes adds, since all wait for the slowest.
        step_overhead: seconds of one step besides.
        update_passes: times that parameters and optimizer state cross the memory bus in one update.
        order: mesh axes by the distance of neighbours on them, farthest first.
        block_transient: largest activations that are alive at once while a block's gradient is computed.
        update_copies: copies of the gradient alive on a CPU while the optimizer runs, besides the gradient itself.
        update_copies_gpu: likewise on a GPU.
        batch_bytes: bytes per token of the batch on the device.
        tie: predicted step times closer than this are equal; the simpler plan wins.
        memory_habits: by rematerialisation policy, what compiled steps have shown of the order in which XLA allocates
            (`planners.prices.memory_calibration`).
    """

    matmul_efficiency: float = _number(
        0.80,
        "790 of 989.5 TFLOP/s measured on H200 (trainers.md 2.3); A100 fits 0.73, 0.86 (planners.md 3.4)",
        0.08,
    )
    matmul_half_seconds: float = _number(35e-6, "g0 = 11 GFLOP at 312 TFLOP/s, fitted on A100 (planners.md 3.4)")
    tile_128: float = _number(0.92, TILES_GUIDE, 0.05)
    tile_64: float = _number(0.80, TILES_GUIDE, 0.08)
    tile_small: float = _number(0.60, TILES_GUIDE, 0.10)
    tile_fill: float = _number(64.0, "counted: two stages of 32 elements fill a tile's pipeline", 0.5)
    wave_share: float = _number(0.7, f"{TILES_GUIDE}: wave quantisation; split sums recover some of it", 0.3)
    memory_efficiency: float = _number(0.8, "Calculon's A100 file: 0.6 to 0.9 (planners.md 3.4)", 0.12)
    launch: float = _number(4e-6, "empty kernels take 3 to 5 us between start and end on A100 and H100", 0.7)
    activation_passes: float = _number(
        5.0, "counted: write and read forward, read backward, write and read of its gradient", 0.2
    )
    scores_passes: float = _number(5.0, "counted, as activation_passes", 0.2)
    loss_passes: float = _number(4.0, "counted: write and read forward, read and write backward", 0.4)
    flash_efficiency: float = _number(
        0.60, "73 % forward and 63 % backward on A100 (arXiv:2307.08691), less masks", 0.15
    )
    flash_backward: float = _number(2.5, "FlashAttention backward: 5 matrix products for 2 (arXiv:2307.08691)")
    dispatch: float = _number(3e-6, "XLA's executor issues a kernel in 2 to 5 us", 0.5)
    dispatch_ranks: float = _number(0.05, "order of magnitude: ranks wait for the slowest of them", 0.8)
    dispatch_sharpness: float = _number(4.0, "order of magnitude: queued kernels hide short waits", 0.3)
    kernels: float = _number(20.0, "counted: products, norms and element-wise fusions of one block")
    link_efficiency: float = _number(1.0, "the facts file states what was measured", 0.1)
    network_efficiency: float = _number(1.0, "the facts file states what was measured", 0.2)
    latency: float = _number(1.0, "the facts file states what was measured", 0.3)
    contention: float = _number(0.1256, "Galvatron's overlap coefficient 1.1256 (planners.md 3.7)")
    hides_gradients: bool = _number(True, "XLA's latency-hiding scheduler")
    sync_every_microbatch: bool = _number(True, "plain jit: the reduction stays inside the accumulation loop")
    splits_hops: bool = _number(False, "a permute sends what every rank holds")
    stragglers: float = _number(0.004, "Llama3-70B, 128 to 2,048 H100: 2.2 % in four doublings (planners.md 2)", 0.5)
    step_overhead: float = _number(0.0, "one program per step", 0.7)
    update_passes: float = _number(2.0, "counted: read and write", 0.4)
    order: tuple[str, ...] = _number(MESH_AXES, "devices are numbered with the last mesh axis fastest")
    block_transient: float = _number(2.0, "counted: one gradient coming in, one going out")
    update_copies: float = _number(
        2.0, "seen in compiled CPU steps, AdamW with clipping, jax 0.10: mean gradient and update"
    )
    update_copies_gpu: float = _number(
        0.0, "compiled for H100, jax 0.10.2: arguments + one gradient + 0.05 GiB is all that gpt2-774m on data=8 takes"
    )
    batch_bytes: float = _number(20.0, "counted: tokens, targets, positions, segments and weights, 4 bytes each")
    tie: float = _number(0.01, "step times repeat to about 1 % (planners.md 5, rule 5)")

    memory_habits: dict[str, Habits] = dataclasses.field(
        default_factory=dict, metadata={"source": "learnt from steps compiled by `jaxlm plan --verify`", "spread": 0.0}
    )

    def record(self) -> dict[str, str]:
        """Name -> "value (source)"; a value that was overridden says so."""
        rows: dict[str, str] = {}
        for field in dataclasses.fields(self):
            value, source = getattr(self, field.name), field.metadata["source"]
            if isinstance(value, dict):
                if value:
                    rows[field.name] = f"{', '.join(f'{name}: {item}' for name, item in value.items())} ({source})"
                continue
            said = _said(value)
            rows[field.name] = (
                f"{said} ({source})"
                if value == field.default
                else f"{said} (set by hand; default {_said(field.default)})"
            )
        return rows


def spreads() -> dict[str, float]:
    """Coefficients that calibration may move -> standard deviation of their logarithm."""
    return {f.name: f.metadata["spread"] for f in dataclasses.fields(Assumptions) if f.metadata["spread"]}


def _said(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    return str(value) if isinstance(value, bool) else f"{value:g}"

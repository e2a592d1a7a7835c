"""One step of many plans at once: its seconds and its bytes, from compute, communication and memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from planners.assumptions import Assumptions
from planners.candidates import Candidates
from planners.comm import group
from planners.compute import matmul_seconds, memory_seconds
from planners.memory import Footprint, footprint, memory
from planners.plan import Prediction, Workload
from planners.topology import Cluster
from planners.work import Number, Work

RING_AXES = ("zone", "data", "fsdp", "tensor")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prices:
    """What each of n candidates is predicted to cost: arrays of n entries by part; parts add up.

    Attributes:
        seconds: of one step.
        memory: bytes per device at the peak.
        link_bytes: that one device sends over each mesh axis.
        mfu: share of the peak, attention not halved for causality; None where no peak is known.
    """

    seconds: dict[str, np.ndarray]
    memory: dict[str, np.ndarray]
    link_bytes: dict[str, np.ndarray]
    mfu: np.ndarray | None

    @property
    def step_seconds(self) -> np.ndarray:
        return np.sum(list(self.seconds.values()), axis=0)

    @property
    def memory_bytes(self) -> np.ndarray:
        return np.sum(list(self.memory.values()), axis=0)

    def prediction(self, row: int) -> Prediction:
        """One candidate's prices, without the parts that cost it nothing."""

        def parts(columns: dict[str, np.ndarray]) -> dict[str, float]:
            return {name: float(column[row]) for name, column in columns.items() if column[row]}

        return Prediction(
            seconds=parts(self.seconds),
            memory=parts(self.memory),
            link_bytes=parts(self.link_bytes),
            mfu=None if self.mfu is None else float(self.mfu[row]),
        )


def price(
    workload: Workload,
    cluster: Cluster,
    candidates: Candidates,
    *,
    unroll: int = 1,
    assumptions: Assumptions,
) -> Prices:
    """Prices every candidate for one model on one cluster."""
    where = footprint(workload, candidates.sizes)
    work = Work.of(workload)
    parts, link_bytes = seconds(work, where, cluster, candidates, assumptions)
    peak = cluster.device.peak.get(workload.compute_dtype)
    total = np.sum(list(parts.values()), axis=0)
    return Prices(
        seconds=parts,
        memory=memory(where, workload, cluster.device, candidates, unroll=unroll, assumptions=assumptions),
        link_bytes=link_bytes,
        mfu=work.model_flops / (total * cluster.count * peak) if peak else None,
    )


def seconds(
    work: Work, where: Footprint, cluster: Cluster, candidates: Candidates, a: Assumptions
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Seconds of one step by part, and bytes that one device sends over each mesh axis.

    Parts of the seconds: `compute` (matrix products, forward and backward), `elementwise` (activations
    and logits over the memory bus), `recompute` (blocks once more under full rematerialisation),
    `loss_recompute` (logits once more when the loss is chunked), `tensor_parallel`, `fsdp_gather` and
    `gradient_sync` (as far as compute does not hide them) and `optimizer`.
    """
    device, sizes = cluster.device, candidates.sizes
    tensor, fsdp = sizes["tensor"], sizes["fsdp"]
    times = work.batch // candidates.microbatch
    sequences = candidates.microbatch // candidates.replicas
    tokens = sequences * work.sequence
    full = candidates.remat == candidates.remats.index("full")

    product = 2.0 * tokens * work.width * work.width / tensor
    attention = work.attention_flops * (0.5 if work.fused_attention and work.causal else 1.0)
    backward = a.flash_backward if work.fused_attention else 2.0
    if work.kernel == "cudnn_segments":
        backward += 1.0  # its backward pass runs the forward kernel again

    def matmuls(flops_per_token: Number, pieces: Number = 1) -> Number:
        flops = times * tokens * flops_per_token / tensor
        return matmul_seconds(flops, product / pieces, device, work.compute_dtype, a)

    def moved(size: Number) -> Number:
        return memory_seconds(times * sequences * size, device, a)

    kept = work.layers * where.activations
    chunked = candidates.loss_chunks > 1
    parts: dict[str, Number] = {
        "compute": matmuls(3.0 * work.block_flops + (1.0 + backward) * attention)
        + matmuls(3.0 * work.head_flops, candidates.loss_chunks),
        "elementwise": moved(a.activation_passes * kept + 4.0 * where.logits),
        "recompute": np.where(full, matmuls(work.block_flops + attention) + moved(2.0 * kept), 0.0),
        "loss_recompute": np.where(
            chunked, matmuls(work.head_flops, candidates.loss_chunks) + moved(2.0 * where.logits), 0.0
        ),
    }

    rings = {axis: group(cluster, sizes, axis) for axis in RING_AXES}

    def weights(collective: Callable[[Number], Number], share: Number = 1) -> Number:
        """A collective on the weights of every layer, one call per layer and one for what lies outside."""
        return work.layers * collective(where.layer / share) + collective(where.others / share)

    link_bytes: dict[str, Number] = {}
    carry = sequences * where.carry
    calls = times * (work.layers * np.where(full, 6, 4) + 2)
    parts["tensor_parallel"] = calls * rings["tensor"].all_reduce(carry)
    link_bytes["tensor"] = calls * 2 * rings["tensor"].sent(carry)

    sync = times * weights(rings["fsdp"].reduce_scatter)
    link_bytes["fsdp"] = 3 * times * weights(rings["fsdp"].sent)
    syncs = times if a.sync_every_microbatch else 1
    for axis in ("data", "zone"):
        sync = sync + syncs * weights(rings[axis].all_reduce, fsdp)
        link_bytes[axis] = syncs * 2 * weights(rings[axis].sent, fsdp)
    hidden_from = {"fsdp_gather": 2 * times * weights(rings["fsdp"].all_gather), "gradient_sync": sync}
    parts |= _exposed(hidden_from, parts["compute"], work, cluster, a)

    state = 2.0 * (where.parameters + where.optimizer) + where.gradients
    parts["optimizer"] = memory_seconds(state, device, a)
    whole = np.zeros(len(candidates))
    return (
        {name: whole + part for name, part in parts.items()},
        {axis: whole + size for axis, size in link_bytes.items()},
    )


def _exposed(
    parts: Mapping[str, Number], compute: Number, work: Work, cluster: Cluster, assumptions: Assumptions
) -> dict[str, Number]:
    """What remains of collectives that run beside compute.

    Those of one layer hide behind the compute of the next, so the first layer's are never hidden, and
    hiding slows the compute (planners.md 3.7). Devices that share their cores hide nothing.
    """
    total = np.sum(np.broadcast_arrays(*parts.values()), axis=0)
    room = 0.0 if cluster.shared else compute * (1.0 - 1.0 / work.layers)
    hidden = np.minimum(total, room)
    share = 1.0 - hidden * (1.0 - assumptions.contention) / np.where(total > 0, total, 1.0)
    return {name: value * share for name, value in parts.items()}

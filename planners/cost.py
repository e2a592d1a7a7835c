"""One step of one plan: its seconds and its bytes, from compute, communication and memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from planners.assumptions import Assumptions
from planners.comm import Group, group
from planners.compute import matmul_seconds, memory_seconds
from planners.layout import rules, ways
from planners.memory import Footprint, Remat, footprint, memory
from planners.plan import BATCH_AXES, Prediction, Workload
from planners.topology import Cluster

RING_AXES = ("zone", "data", "fsdp", "tensor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step on one mesh. What depends on the mesh alone is worked out once; `predict` prices the rest."""

    workload: Workload
    cluster: Cluster
    mesh: Mapping[str, int]
    unroll: int
    assumptions: Assumptions
    bytes: Footprint
    groups: dict[str, Group]

    def predict(self, *, microbatch: int, remat: Remat, loss_chunks: int) -> Prediction:
        """Seconds and bytes of one step with `microbatch` sequences over all devices at a time.

        Parts of the seconds: `compute` (matrix products, forward and backward), `elementwise` (activations
        and logits over the memory bus), `recompute` (blocks once more under full rematerialisation),
        `loss_recompute` (logits once more when the loss is chunked), `tensor_parallel`, `fsdp_gather` and
        `gradient_sync` (as far as compute does not hide them) and `optimizer`.
        """
        work, device, a = self.workload, self.cluster.device, self.assumptions
        tensor, fsdp = self.mesh["tensor"], self.mesh["fsdp"]
        times = work.batch // microbatch
        sequences = microbatch // ways(BATCH_AXES, self.mesh)
        tokens = sequences * work.sequence

        width = work.carry.shape[-1]
        product = 2.0 * tokens * width * width / tensor
        flash = "flash" in work.kernel or "cudnn" in work.kernel
        attention = work.attention_flops * (0.5 if flash and work.causal else 1.0)
        backward = a.flash_backward if flash else 2.0
        if work.kernel == "cudnn_segments":
            backward += 1.0  # its backward pass runs the forward kernel again

        def matmuls(flops_per_token: float, pieces: int = 1) -> float:
            flops = times * tokens * flops_per_token / tensor
            return matmul_seconds(flops, product / pieces, device, work.compute_dtype, a)

        def moved(size: float) -> float:
            return memory_seconds(times * sequences * size, device, a)

        kept = work.layers * self.bytes.activations
        seconds = {
            "compute": matmuls(3.0 * work.block_flops + (1.0 + backward) * attention)
            + matmuls(3.0 * work.head_flops, loss_chunks),
            "elementwise": moved(a.activation_passes * kept + 4.0 * self.bytes.logits),
        }
        if remat == "full":
            seconds["recompute"] = matmuls(work.block_flops + attention) + moved(2.0 * kept)
        if loss_chunks > 1:
            seconds["loss_recompute"] = matmuls(work.head_flops, loss_chunks) + moved(2.0 * self.bytes.logits)

        link_bytes: dict[str, float] = {}
        if tensor > 1:
            ring, carry = self.groups["tensor"], sequences * self.bytes.carry
            calls = times * (work.layers * (6 if remat == "full" else 4) + 2)
            seconds["tensor_parallel"] = calls * ring.all_reduce(carry)
            link_bytes["tensor"] = calls * 2 * ring.sent(carry)

        hidden_from: dict[str, float] = {}
        if fsdp > 1:
            ring = self.groups["fsdp"]
            hidden_from["fsdp_gather"] = 2 * times * self._weights(ring.all_gather)
        sync = 0.0
        syncs = times if a.sync_every_microbatch else 1
        if fsdp > 1:
            sync += times * self._weights(self.groups["fsdp"].reduce_scatter)
            link_bytes["fsdp"] = 3 * times * self._weights(self.groups["fsdp"].sent)
        for axis in ("data", "zone"):
            if self.mesh[axis] > 1:
                ring = self.groups[axis]
                sync += syncs * self._weights(lambda size, ring=ring: ring.all_reduce(size / fsdp))
                link_bytes[axis] = syncs * 2 * self._weights(lambda size, ring=ring: ring.sent(size / fsdp))
        if sync:
            hidden_from["gradient_sync"] = sync
        seconds |= self._exposed(hidden_from, seconds["compute"])

        state = 2.0 * (self.bytes.parameters + self.bytes.optimizer) + self.bytes.gradients
        seconds["optimizer"] = memory_seconds(state, device, a)
        total = sum(seconds.values())
        peak = device.peak.get(work.compute_dtype)
        return Prediction(
            seconds=seconds,
            memory=memory(
                self.bytes,
                work,
                device,
                self.mesh,
                microbatch=microbatch,
                remat=remat,
                loss_chunks=loss_chunks,
                unroll=self.unroll,
                assumptions=a,
            ),
            link_bytes=link_bytes,
            mfu=work.step_flops(causal=False) / (total * self.cluster.count * peak) if peak else None,
        )

    def _weights(self, collective: Callable[[float], float]) -> float:
        """A collective on the weights of every layer, one call per layer and one for what lies outside."""
        return self.workload.layers * collective(self.bytes.layer) + collective(self.bytes.others)

    def _exposed(self, parts: dict[str, float], compute: float) -> dict[str, float]:
        """What remains of collectives that run beside compute.

        Those of one layer hide behind the compute of the next, so the first layer's are never hidden, and
        hiding slows the compute (planners.md 3.7). Devices that share their cores hide nothing.
        """
        total = sum(parts.values())
        if not total:
            return {}
        room = 0.0 if self.cluster.shared else compute * (1.0 - 1.0 / self.workload.layers)
        hidden = min(total, room)
        share = 1.0 - hidden * (1.0 - self.assumptions.contention) / total
        return {name: value * share for name, value in parts.items()}


def step(
    workload: Workload,
    cluster: Cluster,
    mesh: Mapping[str, int],
    *,
    unroll: int = 1,
    assumptions: Assumptions,
) -> Step:
    """Prepares to price plans on one mesh, which must name every mesh axis."""
    return Step(
        workload=workload,
        cluster=cluster,
        mesh=mesh,
        unroll=unroll,
        assumptions=assumptions,
        bytes=footprint(workload, rules(mesh), mesh),
        groups={axis: group(cluster, mesh, axis) for axis in RING_AXES if mesh[axis] > 1},
    )

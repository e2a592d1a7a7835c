"""One step of many plans at once: its seconds and its bytes, from compute, communication and memory."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from planners.candidates import Candidates
from planners.findings import Prediction
from planners.machines.topology import Cluster
from planners.plan import BYTES, MESH_AXES, Workload
from planners.prices.assumptions import Assumptions
from planners.prices.block import RECOMPUTED, Block, block
from planners.prices.comm import Group, calibrated, group
from planners.prices.compute import memory_seconds, product_seconds
from planners.prices.device_memory import device_memory, footprint_of
from planners.prices.footprint import Moved
from planners.work import Number, Work


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prices:
    """What each of n candidates is predicted to cost: arrays of n entries by part; parts add up.

    Attributes:
        seconds: of one step.
        memory: bytes per device at the peak.
        link_bytes: that one device sends over each mesh axis.
        mfu: share of the peak, attention not halved for causality; None where no peak is known.
        unrematerialised: by row, bytes without any rematerialisation, of those that are rematerialised by value.
    """

    seconds: dict[str, np.ndarray]
    memory: dict[str, np.ndarray]
    link_bytes: dict[str, np.ndarray]
    mfu: np.ndarray | None
    unrematerialised: dict[int, float] = field(default_factory=dict)

    @property
    def step_seconds(self) -> np.ndarray:
        return np.sum(list(self.seconds.values()), axis=0)

    @property
    def memory_bytes(self) -> np.ndarray:
        return np.sum(list(self.memory.values()), axis=0)

    def take(self, rows: np.ndarray) -> "Prices":
        """Those of the candidates at these positions."""
        pick = lambda table: {name: column[rows] for name, column in table.items()}
        without = self.unrematerialised
        return Prices(
            seconds=pick(self.seconds),
            memory=pick(self.memory),
            link_bytes=pick(self.link_bytes),
            mfu=None if self.mfu is None else self.mfu[rows],
            unrematerialised={at: without[int(row)] for at, row in enumerate(rows) if int(row) in without},
        )

    def prediction(self, row: int) -> Prediction:
        """One candidate's prices, without the parts that cost it nothing."""

        def parts(columns: dict[str, np.ndarray]) -> dict[str, float]:
            return {name: float(column[row]) for name, column in columns.items() if column[row]}

        return Prediction(
            seconds=parts(self.seconds),
            memory=parts(self.memory),
            link_bytes=parts(self.link_bytes),
            mfu=None if self.mfu is None else float(self.mfu[row]),
            unrematerialised=self.unrematerialised.get(row),
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
    where = footprint_of(workload, candidates.sizes)
    held = device_memory(workload, cluster.device, candidates, unroll=unroll, assumptions=assumptions)
    share = held["parameters"] / where.parameters  # of one stage
    where = dataclasses.replace(
        where,
        parameters=where.parameters * share,
        optimizer=where.optimizer * share,
        gradients=where.gradients * share,
    )
    work = Work.of(workload)
    parts, link_bytes = seconds(work, where, cluster, candidates, assumptions)
    peak = cluster.device.peak.get(workload.compute_dtype)
    total = np.sum(list(parts.values()), axis=0)
    return Prices(
        seconds=parts,
        memory=held,
        link_bytes=link_bytes,
        mfu=work.model_flops / (total * cluster.count * peak) if peak else None,
    )


def seconds(
    work: Work, where: Moved, cluster: Cluster, candidates: Candidates, a: Assumptions
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Seconds of one step by part, and bytes that one device sends over each mesh axis.

    The busiest stage decides: the last one, which has the head besides its blocks. Parts of the seconds:

    - `compute`: matrix products and attention, forward and backward, head included;
    - `elementwise`: activations and logits over the memory bus;
    - `recompute`: what rematerialisation runs once more;
    - `loss_recompute`: logits once more when the loss is chunked;
    - `dispatch`: waiting for the host, where the device is faster than kernels are issued;
    - `tensor_parallel`: collectives between the ranks of the tensor axis, never hidden;
    - `context_ring`: keys and values sent round the context axis, as far as attention does not hide them;
    - `pipeline_hops`: activations and gradients between stages;
    - `pipeline_bubble`: stages waiting at the ends of the pipeline, (p - 1) / v microbatches of one stage;
    - `fsdp_gather` and `gradient_sync`, as far as compute does not hide them;
    - `optimizer`: parameters and optimizer state over the memory bus;
    - `weight_gather`: weights that a split optimizer state has updated in parts (ZeRO-1), gathered over the data axis;
    - `stragglers`: all nodes waiting for the slowest;
    - `overhead`: of the trainer, once per step.
    """
    device, sizes = cluster.device, candidates.sizes
    links = calibrated(cluster, a)
    rings = {axis: group(links, sizes, axis, a.order) for axis in MESH_AXES}
    tensor, stages = sizes["tensor"], sizes["stage"]
    times = work.batch // candidates.microbatch
    sequences = candidates.microbatch // candidates.replicas
    tokens = sequences * work.sequence / sizes["context"]
    blocks = np.ceil(work.layers / stages)
    weights_again, attention_again = _recomputed(candidates)

    each = block(
        work,
        device,
        tokens=tokens,
        sequences=sequences,
        tensor=tensor,
        kept=sequences * where.activations,
        weights_again=weights_again,
        attention_again=attention_again,
        assumptions=a,
    )
    carry = sequences * where.carry * np.where(candidates.sequence, tensor, 1)
    passes = 4.0 + 2.0 * weights_again
    collective = _between_ranks(rings["tensor"], carry, candidates.sequence)
    ring = _ring(rings["context"], work, tokens / tensor, each, attention_again)
    busy = each.products + each.elementwise + each.recompute + passes * collective + ring
    waiting = _waiting(busy, each.kernels, tensor, a)
    hop = rings["stage"].hop(carry / np.where(candidates.sequence | np.asarray(a.splits_hops), tensor, 1))
    hops = np.where(stages > 1, 2.0 * candidates.virtual * hop, 0.0)

    head = _head(work, where, cluster, tokens, sequences, candidates, a)
    parts: dict[str, Number] = {
        "compute": times * (blocks * each.products + head["compute"]),
        "elementwise": times * (blocks * each.elementwise + head["elementwise"]),
        "recompute": times * blocks * each.recompute,
        "loss_recompute": times * head["recompute"],
        "dispatch": times * blocks * waiting,
        "tensor_parallel": times * (blocks * passes + 2.0) * collective,
        "context_ring": times * blocks * ring,
        "pipeline_hops": times * hops,
        "pipeline_bubble": (stages - 1) / candidates.virtual * (blocks * (busy + waiting) + hops),
    }
    hidden, link_bytes = _gradients(work, where, rings, blocks, times, candidates, a)
    parts |= _exposed(hidden, parts["compute"], work, cluster, a)
    split = np.where(candidates.zero, sizes["data"], 1)
    state = a.update_passes * (where.parameters + where.optimizer / split) + where.gradients
    parts["optimizer"] = memory_seconds(state, device, a)
    # Plain jit sums whole gradients, so a replica that has updated its share of the weights still has to spread it.
    spread = candidates.zero & a.sync_every_microbatch
    parts["weight_gather"] = np.where(spread, rings["data"].all_gather(where.parameters), 0.0)
    link_bytes["data"] = link_bytes["data"] + np.where(spread, rings["data"].sent(where.parameters), 0.0)
    node = cluster.tiers[0].devices if cluster.tiers else 1
    everything = np.sum(np.broadcast_arrays(*parts.values()), axis=0)
    parts["stragglers"] = a.stragglers * np.log2(np.maximum(candidates.devices / node, 1.0)) * everything
    parts["overhead"] = a.step_overhead

    link_bytes["tensor"] = times * (blocks * passes + 2.0) * 2.0 * rings["tensor"].sent(carry)
    link_bytes["stage"] = np.where(stages > 1, times * 2.0 * candidates.virtual * carry, 0.0)
    rounds = 3.0 + attention_again
    link_bytes["context"] = times * blocks * rounds * (sizes["context"] - 1) * _keys_values(work, tokens / tensor)
    whole = np.zeros(len(candidates))
    return (
        {name: whole + part for name, part in parts.items()},
        {axis: whole + link_bytes[axis] for axis in MESH_AXES},
    )


def _recomputed(candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the products with weights and of the attention that each candidate runs once more."""
    if unknown := [name for name in candidates.remats if name not in RECOMPUTED]:
        raise ValueError(f"remat {', '.join(unknown)} has no price; priced are {', '.join(RECOMPUTED)}")
    table = np.array([RECOMPUTED[name] for name in candidates.remats])
    return table[candidates.remat, 0], table[candidates.remat, 1]


def _between_ranks(ring: Group, carry: Number, sequence: np.ndarray) -> np.ndarray:
    """One sum over the tensor axis: an all-reduce, or with sequence parallelism its two halves."""
    return np.where(sequence, ring.reduce_scatter(carry) + ring.all_gather(carry), ring.all_reduce(carry))


def _keys_values(work: Work, tokens: Number) -> Number:
    return tokens * work.keys_values * BYTES[work.compute_dtype]


def _ring(ring: Group, work: Work, tokens: Number, each: Block, attention_again: Number) -> np.ndarray:
    """Ring attention of one block: c - 1 hops of the local keys and values forward, twice that backward (their
    gradients travel too), each hidden behind the attention of the chunk that came before."""
    size = _keys_values(work, tokens)
    chunks = ring.ranks

    def exposed(attention: Number, volume: Number) -> np.ndarray:
        return (chunks - 1) * np.maximum(ring.hop(volume) - attention / chunks, 0.0)

    forward = exposed(each.attention_forward, size)
    return (1.0 + attention_again) * forward + exposed(each.attention_backward, 2.0 * size)


def _waiting(busy: Number, kernels: Number, tensor: Number, a: Assumptions) -> Number:
    """Seconds that one block waits for the host: the larger of both, smoothly, less the device's own time."""
    issuing = a.dispatch * kernels * (1.0 + a.dispatch_ranks * (tensor - 1.0))
    larger, smaller = np.maximum(busy, issuing), np.minimum(busy, issuing)
    return larger * (1.0 + (smaller / larger) ** a.dispatch_sharpness) ** (1.0 / a.dispatch_sharpness) - busy


def _head(
    work: Work,
    where: Moved,
    cluster: Cluster,
    tokens: Number,
    sequences: Number,
    candidates: Candidates,
    a: Assumptions,
) -> dict[str, Number]:
    """Seconds of the output projection and the loss for one microbatch, by part."""
    device, dtype, chunks = cluster.device, work.compute_dtype, candidates.loss_chunks
    vocabulary = work.head_flops / (2.0 * work.width) / candidates.sizes["tensor"]
    rows = tokens / chunks

    def product(rows: Number, outputs: Number, inputs: Number) -> Number:
        return chunks * product_seconds(rows, outputs, inputs, device, dtype, a)

    forward = product(rows, vocabulary, work.width)
    backward = product(rows, work.width, vocabulary) + product(work.width, vocabulary, rows)
    logits = sequences * where.logits
    again = forward + memory_seconds(2.0 * logits, device, a)
    return {
        "compute": forward + backward,
        "elementwise": memory_seconds(a.loss_passes * logits, device, a),
        "recompute": np.where(chunks > 1, again, 0.0),
    }


def _gradients(
    work: Work,
    where: Moved,
    rings: Mapping[str, Group],
    blocks: Number,
    times: Number,
    candidates: Candidates,
    a: Assumptions,
) -> tuple[dict[str, Number], dict[str, Number]]:
    """Seconds of gathering weights and summing gradients, hidden or not, and the bytes they put on each axis."""
    fsdp = candidates.sizes["fsdp"]

    def weights(collective: Callable[[Number], Number], share: Number = 1) -> Number:
        """A collective on the weights of every layer, one call per layer and one for what lies outside."""
        return blocks * collective(where.layer / share) + collective(where.others / share)

    link_bytes: dict[str, Number] = {"fsdp": 3 * times * weights(rings["fsdp"].sent)}
    sync = times * weights(rings["fsdp"].reduce_scatter)
    syncs = times if a.sync_every_microbatch else 1
    for axis in ("data", "zone"):
        sync = sync + syncs * weights(rings[axis].all_reduce, fsdp)
        link_bytes[axis] = syncs * 2 * weights(rings[axis].sent, fsdp)
    return {"fsdp_gather": 2 * times * weights(rings["fsdp"].all_gather), "gradient_sync": sync}, link_bytes


def _exposed(
    parts: Mapping[str, Number], compute: Number, work: Work, cluster: Cluster, assumptions: Assumptions
) -> dict[str, Number]:
    """What remains of collectives that run beside compute.

    Those of one layer hide behind the compute of the next, so the first layer's are never hidden, and
    hiding slows the compute (planners.md 3.7). Devices that share their cores hide nothing.
    """
    total = np.sum(np.broadcast_arrays(*parts.values()), axis=0)
    room = 0.0 if cluster.shared or not assumptions.hides_gradients else compute * (1.0 - 1.0 / work.layers)
    hidden = np.minimum(total, room)
    share = 1.0 - hidden * (1.0 - assumptions.contention) / np.where(total > 0, total, 1.0)
    return {name: value * share for name, value in parts.items()}

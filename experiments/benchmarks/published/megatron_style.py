"""Published runs of Megatron-style trainers as the planner's own work, candidates and habits: one model per row."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from experiments.benchmarks.published.step_bytes import StepBytes
from planners.candidates import Candidates
from planners.machines.presets import nodes
from planners.machines.topology import Cluster
from planners.prices.assumptions import Assumptions
from planners.prices.cost import seconds
from planners.work import Matmul, Work

REMATS = ("none", "selective", "full")

ROOM = 72e9
"""Bytes of an A100-80 for parameters and saved inputs; a choice that the source does not print must fit into it."""

MEGATRON = Assumptions(
    dispatch=30e-6,  # PyTorch in eager mode: 20 to 40 us of Python and dispatcher per operation
    kernels=25.0,  # counted: unfused biases, transposes and dropouts beside the products
    loss_passes=24.0,  # counted: vocabulary-parallel cross-entropy in float32, element-wise operations one by one
    step_overhead=5e-3,  # gradient clipping, loss scale and learning rate on the host: order of magnitude
    hides_gradients=False,  # gradients are reduced after the last backward pass
    sync_every_microbatch=False,
    splits_hops=True,  # scatter and gather between stages (SC21, section 4.1)
    order=("zone", "stage", "data", "fsdp", "context", "tensor"),  # tensor ranks next to each other, then data
)
"""Habits of Megatron-LM and Megatron-DeepSpeed, 2021 and 2022, float16."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runs:
    """Runs of one trainer on one kind of cluster, priced by the same functions as a plan.

    Every array has the runs one after the other, and that once for each choice that the source does not print; the
    fastest choice that `allowed` marks counts, since those who published a run had tuned it.

    Attributes:
        count: runs.
        allowed: [choices, runs].
    """

    work: Work
    where: StepBytes
    candidates: Candidates
    cluster: Cluster
    count: int
    allowed: np.ndarray

    def seconds(self, assumptions: Assumptions) -> np.ndarray:
        """Predicted seconds of each run."""
        parts, _ = seconds(self.work, self.where, self.cluster, self.candidates, assumptions)
        total = np.sum(list(parts.values()), axis=0).reshape(self.allowed.shape)
        return np.min(np.where(self.allowed, total, np.inf), axis=0)

    def features(self) -> np.ndarray:
        """What the work of one device is like: log2 of its tokens, the model's width and the tensor axis."""
        tokens = self.candidates.microbatch // self.candidates.replicas * self.work.sequence
        columns = (tokens, self.work.width, self.candidates.sizes["tensor"])
        return np.column_stack([np.log2(np.asarray(c, dtype=float)[: self.count]) for c in columns])


def a100(network: float) -> Cluster:
    """Nodes of eight A100 whose network carries `network` bytes/s for each device in one direction.

    The share of it that collectives reach is the planner's own figure for A100 nodes.
    """
    cluster = nodes("A100-80", 64)
    inner, outer = cluster.tiers
    share = outer.bandwidth / 25.0e9
    return dataclasses.replace(cluster, tiers=(inner, dataclasses.replace(outer, bandwidth=network * share)))


def runs(
    *,
    cluster: Cluster,
    layers: np.ndarray,
    width: np.ndarray,
    heads: np.ndarray,
    sequence: np.ndarray,
    vocabulary: np.ndarray,
    batch: np.ndarray,
    tensor: np.ndarray,
    data: np.ndarray,
    stage: np.ndarray,
    remat: np.ndarray,
    microbatches: tuple[np.ndarray, ...],
    virtual: tuple[np.ndarray, ...],
    sequence_parallel: np.ndarray | bool = False,
) -> Runs:
    """GPT models in float16: four h x h products and two of h x 4h per block, learned positions, a tied head.

    Args:
        cluster: what they ran on.
        layers, width, heads, sequence, vocabulary, batch, tensor, data, stage: one entry per run.
        remat: position in `REMATS` of each run.
        microbatches: sequences of one replica's microbatch, one array per option.
        virtual: stages per device, one array per option of it.
        sequence_parallel: activations between blocks are split over the tensor axis.
    """
    choices = [(each, stages) for each in microbatches for stages in virtual]
    copies = len(choices)
    each = np.concatenate([one for one, _ in choices])
    stages = np.concatenate([many for _, many in choices])
    layers, width, heads, sequence, vocabulary, batch, tensor, data, stage, remat, split = (
        np.tile(column, copies)
        for column in np.broadcast_arrays(
            layers, width, heads, sequence, vocabulary, batch, tensor, data, stage, remat, sequence_parallel
        )
    )
    h, s, t = width.astype(float), sequence.astype(float), tensor.astype(float)
    work = Work(
        batch=batch,
        sequence=s,
        layers=layers,
        width=h,
        block_flops=24.0 * layers * h * h,
        attention_flops=4.0 * layers * h * s,
        head_flops=2.0 * h * vocabulary,
        compute_dtype="float16",
        kernel="xla",
        matmuls=(
            Matmul(inputs=h, outputs=3 * h, split="outputs"),
            Matmul(inputs=h, outputs=h, split="inputs"),
            Matmul(inputs=h, outputs=4 * h, split="outputs"),
            Matmul(inputs=4 * h, outputs=h, split="inputs"),
        ),
        heads=heads,
        keys_values=2.0 * h,
        scores_bytes=5.0 * heads * s,
    )
    around = np.where(split, t, 1.0)
    deep = np.ceil(layers / stage)
    here = deep * 12.0 * h * h / t + vocabulary * h / t
    where = StepBytes(
        parameters=2.0 * here,
        optimizer=12.0 * here,
        gradients=2.0 * here,
        layer=24.0 * h * h / t,
        others=2.0 * vocabulary * h / t,
        activations=s * h * (10.0 / around + 24.0 / t) + 5.0 * heads * s * s / t,  # Korthikanti et al., equation 2
        carry=2.0 * s * h / around,
        logits=2.0 * s * vocabulary / t,
    )
    whole = (batch % (data * each) == 0) & (layers / stage % stages == 0) & ((stages == 1) | (stage > 1))
    kept = s * each * h * 2.0 * deep * (1.0 + (stage - 1) / stage / stages)
    fits = 16.0 * here + kept < ROOM
    smallest = (each == 1) & (stages == 1)
    allowed = (whole & (fits | smallest)) if copies > 1 else np.ones(len(h), dtype=bool)
    candidates = Candidates.of(
        {"data": data, "stage": stage, "tensor": tensor},
        microbatch=np.where(whole, each, 1) * data,
        remat=remat,
        virtual=stages,
        sequence=split,
        remats=REMATS,
    )
    return Runs(
        work=work,
        where=where,
        candidates=candidates,
        cluster=cluster,
        count=len(h) // copies,
        allowed=allowed.reshape(copies, -1),
    )

"""Bytes on every pipeline stage of a trainer that keeps activations by formula, and the chance that they do not fit.

`memory` reads tensors off a traced model; this module needs only a model's dimensions, so it also judges
layouts that others ran (Megatron-style trainers: tensor, pipeline and sequence parallelism, 1F1B, ZeRO).
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from planners.candidates import Candidates
from planners.work import Number

GIB = 2**30


def _counted(value: Any, source: str) -> Any:
    return dataclasses.field(default=value, metadata={"source": source})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shape:
    """Dimensions of a decoder, floats or one number per row.

    Attributes:
        layers: blocks.
        width: of the residual stream.
        heads: of the attention.
        feedforward: inner width of the block's last part.
        vocabulary: rows of the embedding; the head is a matrix of its own.
        sequence: tokens of one sequence.
        gated: the feed-forward part has a gate (three matrices instead of two).
    """

    layers: Number
    width: Number
    heads: Number
    feedforward: Number
    vocabulary: Number
    sequence: Number
    gated: bool = True

    @property
    def block_parameters(self) -> Number:
        return 4.0 * self.width * self.width + (3.0 if self.gated else 2.0) * self.width * self.feedforward


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Habits:
    """What a trainer keeps, each a number or one number per row; the defaults are a Megatron-style bfloat16 trainer.

    Units: `*_width` are bytes per token and unit of model width, `*_feedforward` per token and unit of inner width,
    `scores*` per pair of positions and head, `logits*` per token and entry of the vocabulary.

    Attributes:
        weight_bytes: per parameter.
        gradient_bytes: per parameter.
        state_bytes: of the optimizer, per parameter.
        zero: stage of ZeRO over the data axis where `Candidates.zero` is set: 1 optimizer, 2 and gradients, 3 all.
        ends_are_layers: stages split embedding, blocks, last norm and head evenly; else the blocks alone.
        residual_width: inputs of both norms; split over the tensor axis under sequence parallelism.
        normed_width: outputs of both norms.
        normed_whole: sequence parallelism gathers the norms' outputs before they are kept.
        norm_width: what an unfused norm keeps besides.
        attention_width: what attention keeps besides scores, split over the tensor axis.
        feedforward: what the feed-forward part keeps, split over the tensor axis.
        scores: kept by attention that stores its scores; 0 for fused kernels.
        scores_working: besides, while the gradient of one block is computed.
        input_width: input of a block, kept where the block is recomputed.
        working_width: gradients alive beside one block, not split.
        working_feedforward: likewise, split over the tensor axis.
        logits: at the peak of the loss.
        logits_doubling: further, for every doubling of the tensor axis that gathers them.
        logits_whole: every tensor rank holds the whole vocabulary's logits.
        logits_held: after the loss, while blocks are differentiated.
        fragments: share of a recomputed block's memory that the allocator cannot give to the logits.
        bucket: bytes per parameter of one bucket of reduced gradients.
        bucket_parameters: parameters in one bucket, at most.
        update: bytes per owned parameter besides, while the optimizer runs.
        state_scale: correction of everything at rest; 1 counts it exactly.
        runtime: bytes of CUDA, NCCL and kernels on each device.
        group: bytes for each kind of communicator besides data parallelism (tensor, pipeline).
    """

    weight_bytes: Number = _counted(2.0, "bfloat16")
    gradient_bytes: Number = _counted(2.0, "bfloat16 gradients, summed in place")
    state_bytes: Number = _counted(12.0, "float32 master, two moments (planners.md 3.2)")
    zero: int = _counted(1, "ZeRO-1")
    ends_are_layers: bool = _counted(False, "blocks split evenly, embedding and head besides")
    residual_width: Number = _counted(4.0, "two norms' inputs, 2 bytes each")
    normed_width: Number = _counted(4.0, "two norms' outputs, 2 bytes each")
    normed_whole: bool = _counted(False, "Megatron keeps the shard and gathers again (arXiv:2205.05198)")
    norm_width: Number = _counted(0.0, "fused norms keep no copy")
    attention_width: Number = _counted(10.0, "query, key, value, context and its copy, 2 bytes each")
    feedforward: Number = _counted(8.0, "gate, up, activation and product, 2 bytes each")
    scores: Number = _counted(0.0, "fused attention stores no scores")
    scores_working: Number = _counted(0.0, "fused attention stores no scores")
    input_width: Number = _counted(2.0, "one 16-bit input (planners.md 3.3)")
    working_width: Number = _counted(6.0, "gradient in, gradient out and one more, 2 bytes each")
    working_feedforward: Number = _counted(6.0, "gradients of gate, up and product, 2 bytes each")
    logits: Number = _counted(14.0, "16-bit and float32 logits, their log-softmax and one gradient")
    logits_doubling: Number = _counted(0.0, "nothing is gathered where logits stay split")
    logits_whole: bool = _counted(False, "vocabulary-parallel cross-entropy (Megatron)")
    logits_held: Number = _counted(2.0, "16-bit logits")
    fragments: Number = _counted(0.0, "no fragmentation")
    bucket: Number = _counted(6.0, "16-bit copy and float32 copy")
    bucket_parameters: Number = _counted(5e8, "DeepSpeed's default bucket")
    update: Number = _counted(4.0, "float32 gradients of the parameters that a device updates")
    state_scale: Number = _counted(1.0, "exact")
    runtime: Number = _counted(1.5 * GIB, "CUDA context 0.5 GiB, NCCL 1 GiB (planners.md 3.3: 2 to 4 GB)")
    group: Number = _counted(0.5 * GIB, "buffers of one more NCCL communicator")

    def sources(self) -> dict[str, str]:
        """Name -> where the default comes from."""
        return {item.name: item.metadata["source"] for item in dataclasses.fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Occupancy:
    """Bytes of every stage of every candidate at that stage's peak.

    Attributes:
        parts: name -> array [stages, n]; parts add up. Stages that a candidate does not have hold zeros.
        moments: what is going on at the peak: array [stages, n] of positions in `MOMENTS`.
    """

    parts: dict[str, np.ndarray]
    moments: np.ndarray

    @property
    def stages(self) -> np.ndarray:
        """Bytes [stages, n]."""
        return np.sum(list(self.parts.values()), axis=0)

    @property
    def peak(self) -> np.ndarray:
        """Bytes of the fullest stage [n]."""
        return self.stages.max(axis=0)


MOMENTS = ("loss", "block", "update")
"""When memory can peak: in the loss, in the gradient of a block, or in the optimizer's step."""


def stage_layers(shape: Shape, stages: np.ndarray, stage: int, *, ends_are_layers: bool) -> np.ndarray:
    """Blocks on one stage, earlier stages taking what does not divide."""
    extra = 3 if ends_are_layers else 0
    pieces = np.asarray(shape.layers) + extra
    size = pieces // stages + (stage < pieces % stages)
    if ends_are_layers:
        size = size - (stage == 0) - 2 * (stage == stages - 1)
    return np.maximum(size, 0)


def occupancy(shape: Shape, batch: Number, candidates: Candidates, habits: Habits) -> Occupancy:
    """Bytes on every stage; `batch` is the number of sequences of the global batch.

    1F1B keeps min(m, p - i) microbatches in flight at stage i of p; interleaving multiplies the first stage's
    activations by 1 + (p - 1) / (p v) (arXiv:2205.05198, section 4.2.3; planners.md 3.3).
    """
    p, t = candidates.sizes["stage"], candidates.sizes["tensor"]
    data, fsdp = candidates.replicas // candidates.sizes["fsdp"], candidates.sizes["fsdp"]
    sequences = candidates.microbatch // candidates.replicas
    microbatches = np.asarray(batch) // candidates.microbatch
    tokens = sequences * shape.sequence / candidates.sizes["context"]
    full = candidates.remat == candidates.remats.index("full")
    around = np.where(candidates.sequence, t, 1)
    sharded = np.where(candidates.zero, data, 1)
    per_parameter = {
        "weights": habits.weight_bytes / fsdp / (sharded if habits.zero >= 3 else 1),
        "gradients": habits.gradient_bytes / fsdp / (sharded if habits.zero >= 2 else 1),
        "optimizer": habits.state_bytes / fsdp / sharded,
    }
    normed = habits.normed_width / (1 if habits.normed_whole else around)
    scores = shape.heads * shape.sequence / t
    block = tokens * (
        shape.width * ((habits.residual_width + habits.norm_width) / around + normed + habits.attention_width / t)
        + habits.feedforward * shape.feedforward / t
        + habits.scores * scores
    )
    working = tokens * (
        habits.working_width * shape.width
        + habits.working_feedforward * shape.feedforward / t
        + habits.scores_working * scores
    )
    saved = tokens * habits.input_width * shape.width / around
    whole = habits.logits + habits.logits_doubling * np.log2(t)
    vocabulary = tokens * shape.vocabulary * (1.0 if habits.logits_whole else 1.0 / t)
    runtime = habits.runtime + habits.group * ((t > 1).astype(float) + (p > 1))

    columns: dict[str, list[np.ndarray]] = {}
    moments: list[np.ndarray] = []
    for stage in range(int(p.max())):
        exists, last = stage < p, np.asarray(stage == p - 1)
        layers = stage_layers(shape, p, stage, ends_are_layers=habits.ends_are_layers)
        ends = ((stage == 0) + last.astype(float)) * shape.vocabulary * shape.width
        parameters = (layers * shape.block_parameters + ends) / t
        flight = np.minimum(microbatches, p - stage) * layers
        interleaved = 1.0 + (p - 1) / (p * candidates.virtual)
        flight = np.where((candidates.virtual > 1) & (stage == 0), p * layers * interleaved, flight)
        kept = flight * np.where(full, saved, block)
        state = {name: habits.state_scale * parameters * each for name, each in per_parameter.items()}
        held = last * vocabulary * habits.logits_held
        update = (
            habits.bucket * np.minimum(parameters, habits.bucket_parameters)
            + habits.update * parameters / sharded / fsdp
        )
        options = [  # activations, logits, working: one row per entry of MOMENTS
            (kept, last * vocabulary * whole, np.where(full, habits.fragments * (block + working), 0.0)),
            (kept + np.where(full, block, 0.0), held, working),
            (0.0 * kept, held, update),
        ]
        moment = np.argmax([sum(option) for option in options], axis=0)
        picked = [np.choose(moment, [option[i] for option in options]) for i in range(3)]
        names = ("activations", "logits", "working")
        found = {**state, **dict(zip(names, picked, strict=True)), "runtime": runtime}
        for name, size in found.items():
            columns.setdefault(name, []).append(np.where(exists, size, 0.0))
        moments.append(moment)
    return Occupancy(parts={name: np.array(rows) for name, rows in columns.items()}, moments=np.array(moments))


def chance(peak: np.ndarray, limit: float, spread: float) -> np.ndarray:
    """Probability that a predicted peak does not fit into `limit` bytes.

    The true peak is taken as logistic around the prediction; `spread` is its scale as a share of the limit.
    """
    return 0.5 * (1.0 + np.tanh(0.5 * (peak / limit - 1.0) / spread))


def spread_of(error: float) -> float:
    """Scale of the logistic law whose standard deviation is `error`, a share of the memory."""
    return error * math.sqrt(3.0) / math.pi

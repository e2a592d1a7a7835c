"""Memory of the Aleph-Alpha layouts: which of them run out of it, judged by models whose rows were not seen.

The trainer's habits are counted from its published source (github.com/Aleph-Alpha/scaling: a flat bfloat16 model with
bfloat16 gradients, ZeRO-1, stages that split embedding, blocks, last norm and head evenly, logits gathered on every
tensor rank, two pipeline buffers) and moved by rows of other models. Rows are for internal checks: CC BY-NC-SA.
"""

from dataclasses import dataclass

import numpy as np

from experiments.benchmarks.published.posterior import Coefficients, Prior, classify
from experiments.benchmarks.published.tables import Table
from planners.candidates import Candidates
from planners.prices.occupancy import GIB, Habits, Shape, occupancy

LIMIT = 81251 * 2**20
"""Bytes of an A100-SXM4-80GB as nvidia-smi reports it (planners/facts/devices.yaml)."""

SPREAD = 0.03
"""Scale of the error of a prediction, as a share of the limit: what trainers' own formulas reach (planners.md 4.5)."""

PRIORS = {
    "runtime": Prior(value=1.5, deviation=0.7, source="GiB: CUDA context and NCCL, the low end of planners.md 3.3"),
    "group": Prior(value=0.5, deviation=0.3, source="GiB: one more NCCL communicator"),
    "state": Prior(value=1.0, deviation=0.02, source="weights, gradients and optimizer are counted exactly"),
    "logits": Prior(
        value=20.0,
        deviation=3.0,
        source="bytes: two buffers of 16-bit logits, float32 logits, log-softmax, two gradients",
    ),
    "logits_doubling": Prior(value=2.0, deviation=2.0, source="bytes: the gathered logits once more"),
    "logits_held": Prior(value=4.0, deviation=2.0, source="bytes: two buffers of 16-bit logits"),
    "norm": Prior(value=12.0, deviation=3.0, source="bytes: two norms in float32, 4 + 2 bytes each"),
    "attention": Prior(value=14.0, deviation=2.0, source="bytes: fused qkv product 6, rotated q and k 4, context 4"),
    "feedforward": Prior(value=8.0, deviation=0.5, source="bytes: gate, up, activation, product"),
    "flash1": Prior(value=2.0, deviation=2.0, source="bytes: first FlashAttention copies its inputs"),
    "torch": Prior(value=8.0, deviation=2.0, source="bytes: scores 2, float32 softmax 4, cast 2"),
    "torch_working": Prior(value=8.0, deviation=3.0, source="bytes: float32 gradients of softmax and scores"),
    "fused": Prior(value=6.0, deviation=2.0, source="bytes: scores 2, softmax 2, cast 2"),
    "fused_working": Prior(value=6.0, deviation=3.0, source="bytes: gradients of the same"),
    "working": Prior(value=6.0, deviation=3.0, source="bytes: three gradients of the residual stream"),
    "fragments": Prior(value=0.3, deviation=0.2, source="share of a recomputed block the allocator cannot reuse"),
}
"""What is known of the trainer's memory before a row is seen; bytes per token and unit (planners.prices.occupancy)."""


@dataclass(frozen=True, slots=True, eq=False)
class Layouts:
    """Rows as the arguments of `planners.prices.occupancy.occupancy`."""

    shape: Shape
    batch: np.ndarray
    candidates: Candidates
    fused_norm: np.ndarray
    kernel: np.ndarray

    @classmethod
    def of(cls, rows: Table) -> "Layouts":
        def numbers(name: str) -> np.ndarray:
            return rows.numbers(name).astype(np.int64)

        data = numbers("dp")
        candidates = Candidates.of(
            {"data": data, "stage": numbers("pp"), "tensor": numbers("tp")},
            microbatch=numbers("micro_batch") * data,
            remat=(rows.text("recompute") != "disabled").astype(int),
            zero=True,
            sequence=rows.text("sequence_parallel") == "True",
        )
        shape = Shape(
            layers=numbers("layers"),
            width=rows.numbers("hidden"),
            heads=rows.numbers("heads"),
            feedforward=rows.numbers("ffn"),
            vocabulary=rows.numbers("vocab"),
            sequence=rows.numbers("seq_len"),
        )
        kernel = rows.text("kernel")
        fused_norm = np.array(["RMS" in name for name in kernel])
        return cls(shape, numbers("global_batch"), candidates, fused_norm, kernel)

    def habits(self, found: Coefficients) -> Habits:
        first = np.array(["v1" in name for name in self.kernel])
        fused = self.kernel == "fused"
        torch = np.array(["flash" not in name for name in self.kernel]) & ~fused
        return Habits(
            ends_are_layers=True,
            normed_whole=True,
            norm_width=np.where(self.fused_norm, 0.0, found["norm"]),
            attention_width=found["attention"] + np.where(first, found["flash1"], 0.0),
            feedforward=found["feedforward"],
            scores=np.where(torch, found["torch"], np.where(fused, found["fused"], 0.0)),
            scores_working=np.where(torch, found["torch_working"], np.where(fused, found["fused_working"], 0.0)),
            working_width=found["working"],
            working_feedforward=found["working"],
            logits=found["logits"],
            logits_doubling=found["logits_doubling"],
            logits_whole=True,
            logits_held=found["logits_held"],
            fragments=found["fragments"],
            state_scale=found["state"],
            runtime=found["runtime"] * GIB,
            group=found["group"] * GIB,
        )

    def peak(self, found: Coefficients) -> np.ndarray:
        """Bytes of the fullest device."""
        return occupancy(self.shape, self.batch, self.candidates, self.habits(found)).peak


def counted() -> Coefficients:
    return {name: prior.value for name, prior in PRIORS.items()}


def fit(rows: Table) -> Coefficients:
    """Coefficients after seeing which of these rows ran out of memory."""
    layouts = Layouts.of(rows)
    return classify(layouts.peak, rows.text("status") != "ok", PRIORS, limit=LIMIT, spread=SPREAD)


def folds(judged: Table, other: Table) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows to judge, rows to fit on) as masks: other models, or where there is one model only, its other sheets.

    A sheet is one study of one model: sequence length, GPUs and what was varied.
    """
    found = []
    models, sheets = judged.text("model"), judged.text("source")
    for model in dict.fromkeys(models):
        rest = other.text("model") != model
        if rest.any():
            found.append((models == model, rest))
            continue
        found += [
            ((models == model) & (sheets == sheet), other.text("source") != sheet)
            for sheet in dict.fromkeys(sheets[models == model])
        ]
    return found


def cut(sizes: np.ndarray, exceeds: np.ndarray) -> float:
    """Bytes above which a layout is refused, from rows whose outcome is known.

    Halfway between the device's memory and the cut that refuses fewest fitting rows while at most 2% of what it lets
    through runs out: that cut is chosen on the rows the coefficients were fitted to, so it is believed by half.
    """
    order = np.unique(sizes)
    tried = np.append(0.5 * (order[1:] + order[:-1]), LIMIT)
    let = sizes[None, :] <= tried[:, None]
    false = (let & exceeds).sum(axis=1) / np.maximum(let.sum(axis=1), 1)
    refused = (~let & ~exceeds).sum(axis=1)
    good = false <= 0.02
    if not good.any():
        return float(LIMIT)
    best = tried[good & (refused == refused[good].min())]
    return float(0.5 * (LIMIT + 0.5 * (best.min() + best.max())))


def closed_form(rows: Table) -> np.ndarray:
    """Bytes by the closed form of planners.md 3.3 (the baseline): unfitted, logits split, stages of equal blocks."""
    layouts = Layouts.of(rows)
    shape, candidates = layouts.shape, layouts.candidates
    p, t, data = (candidates.sizes[axis] for axis in ("stage", "tensor", "data"))
    tokens = candidates.microbatch // data * shape.sequence
    microbatches = layouts.batch / candidates.microbatch
    full = candidates.remat == candidates.remats.index("full")
    ends = np.where(p == 1, 2.0, 1.0) * shape.vocabulary * shape.width / t
    parameters = shape.layers * shape.block_parameters / (p * t) + ends
    around = np.where(candidates.sequence, t, 1)
    flash = np.array(["flash" in name for name in layouts.kernel])
    replicated = (8.0 + np.where(layouts.fused_norm, 0.0, 12.0)) * shape.width
    layer = replicated / around + (12.0 * shape.width + 8.0 * shape.feedforward) / t
    layer = layer + np.where(flash, 0.0, 5.0 * shape.heads * shape.sequence / t)
    saved, blocks = 2.0 * shape.width / around, shape.layers / p
    flight = np.minimum(p, microbatches)
    first = np.where(full, saved * blocks * flight + layer, layer * blocks * flight)
    last = np.where(full, saved * blocks + layer, layer * blocks) + 6.0 * shape.vocabulary / t
    return parameters * (4.0 + 12.0 / data) + tokens * np.maximum(first, last)


CLOSED_FORM_LIMIT = 66 * GIB
"""The limit at which planners.md P4c quotes that form: 91.1% accuracy, 14% of predicted fits false."""

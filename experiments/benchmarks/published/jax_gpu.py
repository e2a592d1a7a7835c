"""JAX on H100: step times and scaling curves of MaxText and PaxML, from 16 to 2,048 GPUs.

Files: jax_gpu.csv (NVIDIA/dgxc-benchmarking, MIT); nvidia_dgxc_scaling.csv (the same repository's Megatron runs), of
which only the growth of a step with the number of nodes is used. A curve is one model in one precision on at least
three sizes of cluster; rows that do not print their rematerialisation cannot be priced and are left out.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.benchmarks.published.judge import Verdict, errors
from experiments.benchmarks.published.posterior import Coefficients, Prior, regress
from experiments.benchmarks.published.step_bytes import StepBytes
from experiments.benchmarks.published.tables import Source, Table
from planners.candidates import Candidates
from planners.machines.presets import nodes
from planners.machines.topology import Cluster
from planners.prices.assumptions import Assumptions
from planners.prices.cost import seconds
from planners.work import Matmul, Work

FILE, GROWTH = "jax_gpu", "nvidia_dgxc_scaling"

EIGHT_BIT = 2.0
"""FP8 over bfloat16 peak of an H100: 1,979 over 989.5 dense TFLOP/s (its datasheet, sparse figures halved)."""

REMATS = ("none", "selective", "full")

SPREAD = 0.15
"""How much the same constants are off from one model to the next: simulators that were not tuned to a set miss it by
15 to 20% (planners.md 1a: vTrain 14.7, Calculon 19.8)."""

PRIORS = {
    "bf16": Prior(
        value=0.75, deviation=0.06, source="share of the bfloat16 peak: 0.80 of large products, less what power allows"
    ),
    "fp8": Prior(
        value=0.60,
        deviation=0.06,
        source="share of the FP8 peak: as in bfloat16, less casts and transposes around them",
    ),
    "exposed": Prior(
        value=0.1256, deviation=0.15, source="seconds that a hidden second of communication costs (planners.md 3.7)"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Dimensions of a published model; `gated` has three matrices in its feed-forward part."""

    layers: int
    width: int
    heads: int
    groups: int
    feedforward: int
    vocabulary: int
    gated: bool

    @property
    def matmuls(self) -> tuple[Matmul, ...]:
        h, f, kept = self.width, self.feedforward, self.width * self.groups // self.heads
        rise = (2 if self.gated else 1) * f
        return (
            Matmul(inputs=h, outputs=h + 2 * kept, split="outputs"),
            Matmul(inputs=h, outputs=h, split="inputs"),
            Matmul(inputs=h, outputs=rise, split="outputs"),
            Matmul(inputs=f, outputs=h, split="inputs"),
        )

    @property
    def block(self) -> float:
        """Parameters of one block."""
        return float(sum(m.inputs * m.outputs for m in self.matmuls))

    @property
    def rising(self) -> float:
        """Share of a block's products that lead from the attention's output to the feed-forward's inner width."""
        rise = self.matmuls[2]
        return float(rise.inputs * rise.outputs / self.block)

    @property
    def leaving(self) -> float:
        """Share of the attention's output projection."""
        out = self.matmuls[1]
        return float(out.inputs * out.outputs / self.block)


MODELS = {
    "llama2-7b": Model(
        layers=32, width=4096, heads=32, groups=32, feedforward=11008, vocabulary=32000, gated=True
    ),  # arXiv:2307.09288
    "llama2-70b": Model(layers=80, width=8192, heads=64, groups=8, feedforward=28672, vocabulary=32000, gated=True),
    "llama3-8b": Model(
        layers=32, width=4096, heads=32, groups=8, feedforward=14336, vocabulary=128256, gated=True
    ),  # arXiv:2407.21783
    "llama3-70b": Model(layers=80, width=8192, heads=64, groups=8, feedforward=28672, vocabulary=128256, gated=True),
    "gpt3-126m": Model(
        layers=12, width=768, heads=12, groups=12, feedforward=3072, vocabulary=50304, gated=False
    ),  # paxml.contrib.gpu.scripts_gpu.configs
    "gpt3-5b": Model(layers=24, width=4096, heads=32, groups=32, feedforward=16384, vocabulary=50304, gated=False),
    "gpt3-175b": Model(layers=96, width=12288, heads=96, groups=96, feedforward=49152, vocabulary=50304, gated=False),
}

IN_NODE_FSDP = {"gpt3-5b": 8, "gpt3-126m": 8, "gpt3-175b": 128}
"""FSDP degree of PaxML rows that leave it out: eight devices of a node times DCN_MESH_SHAPE's FSDP, which is 1 for 5B
and 16 for 175B (NVIDIA/dgxc-benchmarking, paxml/configure.sh)."""


def verdicts(source: Source, seed: int) -> list[Verdict]:
    """Empty where the file is missing. `seed` is unused: nothing is drawn."""
    judged, other = source.judged(FILE), source.other(FILE)
    if judged is None or other is None:
        return []
    judged, other = judged.where(_priceable), other.where(_priceable)
    growth = source.other(GROWTH)
    curves = curves_of(judged)
    rows = np.array(sorted(position for curve in curves for position in curve), dtype=int)
    if not len(rows):
        return []
    counted = predict(judged, _counted(), growth)
    fitted, folds = held_out(judged.take(rows), other, growth)
    held = np.array(counted)
    held[rows] = fitted
    constant = _constant_mfu(judged, other)
    leagues = (
        (
            "held-out model",
            held,
            {"folds": folds},
            "shares of the peak and exposed communication from other models, growth from Megatron runs of other models",
        ),
        (
            "zero-shot",
            counted,
            {},
            "datasheets and counted values, growth from Megatron runs of other models",
        ),
    )
    large = [curve for curve in curves if judged.numbers("gpus")[curve[-1]] >= LARGE]
    small = [curve for curve in curves if judged.numbers("gpus")[curve[-1]] < LARGE]
    return [
        verdict
        for what, some in ((f"curves to {LARGE} GPUs and more", large), (f"curves below {LARGE} GPUs", small))
        for league, values, seen, constants in leagues
        if some
        for verdict in _judge(
            judged,
            some,
            values,
            constant,
            what=f"jax_gpu, H100 {what}",
            league=league,
            constants=constants,
            **_seen(seen, judged, some),
        )
    ]


LARGE = 512
"""Curves that reach this many GPUs are judged apart from those of one to sixteen nodes."""


def _seen(seen: Mapping[str, Any], judged: Table, curves: list[np.ndarray]) -> dict[str, Any]:
    """Who was fitted and judged, of the rows of these curves."""
    digests = np.array(judged.digests)
    mine = frozenset(digests[np.concatenate(curves)])
    if "folds" not in seen:
        return {"judged": mine}
    return {"folds": tuple((fitted, own & mine) for fitted, own in seen["folds"] if own & mine)}


def _judge(
    rows: Table, curves: list[np.ndarray], values: np.ndarray, constant: np.ndarray, **common: Any
) -> list[Verdict]:
    measured, mine = rows.numbers("step_time_s"), np.concatenate(curves)
    slopes = [(_slope(values, curve), _slope(measured, curve)) for curve in curves]
    return [
        Verdict(
            **common,
            quantity="step time error, %",
            ours=errors(values[mine], measured[mine]),
            baselines={"MFU of the other models": errors(constant[mine], measured[mine])},
            targets={"mean": 5.0},
        ),
        Verdict(
            **common,
            quantity="slope of a curve, points off",
            ours=np.array([abs(ours - theirs) for ours, theirs in slopes]),
            baselines={"no growth at all": np.array([abs(theirs) for _, theirs in slopes])},
            targets={"max": 1.0},
            details={
                "curves": [
                    {
                        "model": rows.rows[curve[0]]["model"],
                        "precision": rows.rows[curve[0]]["precision"],
                        "gpus": [rows.rows[i]["gpus"] for i in curve],
                        "measured": theirs,
                        "predicted": ours,
                    }
                    for curve, (ours, theirs) in zip(curves, slopes, strict=True)
                ]
            },
        ),
    ]


def curves_of(rows: Table, least: int = 3) -> list[np.ndarray]:
    """Positions of the rows of every curve, smallest cluster first."""
    keys = list(zip(*(rows.text(name) for name in ("framework", "model", "precision", "remat_policy")), strict=True))
    sizes = rows.numbers("gpus")
    found = []
    for key in dict.fromkeys(keys):
        mine = np.array([i for i, one in enumerate(keys) if one == key])
        if len(set(sizes[mine])) >= least:
            found.append(mine[np.argsort(sizes[mine], kind="stable")])
    return found


def _slope(values: np.ndarray, curve: np.ndarray) -> float:
    """Growth of the step from the smallest to the largest cluster of a curve, %."""
    return float(100.0 * (values[curve[-1]] / values[curve[0]] - 1.0))


def _priceable(row: Mapping[str, str]) -> bool:
    return bool(
        row["step_time_s"]
        and row["gpus"]
        and row["gpu"].startswith("H100")
        and row["remat_policy"]
        and row["model"] in MODELS
    )


def growth_per_doubling(rows: Table | None, model: str) -> dict[str, float]:
    """Share of a step that every doubling of the nodes adds, by precision: the median over Megatron's weak-scaling
    curves of other models."""
    default = Assumptions().stragglers
    if rows is None:
        return {"bf16": default, "fp8": default}
    curves: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for row in rows.rows:
        weak = row["gbs"] and row["gpu"] == "H100" and row["ep"] in ("", "NA", "1")
        if weak and "Finetuning" not in row["workload"] and not _same(row["workload"], model):
            key = (row["release"], row["workload"], f"{float(row['gbs']) / float(row['gpus']):.3f}")
            curves.setdefault(key, []).append((float(row["gpus"]), float(row["step_time_s"])))
    found: dict[str, list[float]] = {"bf16": [], "fp8": []}
    for (_, workload, _), points in curves.items():
        if len({gpus for gpus, _ in points}) >= 3:
            gpus, times = np.log2(np.array(points)).T
            slope = float(np.polyfit(gpus, times, 1)[0])
            found["fp8" if "FP8" in workload else "bf16"].append(2.0**slope - 1.0)
    return {name: float(np.median(slopes)) if slopes else default for name, slopes in found.items()}


def _same(workload: str, model: str) -> bool:
    """Whether a Megatron workload is the judged model, in any of its minor versions."""
    family, _, size = model.partition("-")
    said = workload.replace(" ", "").lower()
    if family == "gpt3":  # "NeMo Megatron" is GPT-3 175B
        return said.startswith("nemomegatron") and size == "175b"
    return said.startswith(family) and size in said


def predict(rows: Table, found: Coefficients, growth: Table | None) -> np.ndarray:
    """Seconds of one step of each row."""
    cache = {model: growth_per_doubling(growth, model) for model in dict.fromkeys(rows.text("model"))}
    return np.array([_one(row, found, cache[row["model"]]) for row in rows.rows])


def _one(row: Mapping[str, str], found: Coefficients, growth: Mapping[str, float]) -> float:
    """One row by the planner's own functions; recomputing a part of the weights lies between none and all of it."""
    model = MODELS[row["model"]]
    precision = "fp8" if "fp8" in row["precision"] else "bf16"
    share = found[precision]
    plain = Assumptions()
    assumptions = dataclasses.replace(
        plain,
        matmul_efficiency=share,
        contention=found["exposed"],
        # Attention stays in bfloat16, whose peak is half of what the cluster then claims.
        flash_efficiency=plain.flash_efficiency
        * (found["bf16"] / PRIORS["bf16"].value)
        / (EIGHT_BIT if precision == "fp8" else 1.0),
        stragglers=growth[precision],
    )
    work, where, fsdp, data = _work(row, model)
    cluster = _cluster(int(row["gpus"]), precision)
    again, attention = _recomputed(row["remat_policy"], model)
    options = Candidates.of(
        {"fsdp": fsdp, "data": data}, microbatch=int(row["global_batch"]), remat=np.arange(3), remats=REMATS
    )
    parts, _ = seconds(work, where, cluster, options, assumptions)
    none, selective, full = np.sum(list(parts.values()), axis=0)
    return float((selective if attention else none) + again * (full - selective))


def _recomputed(policy: str, model: Model) -> tuple[float, bool]:
    """Share of a block's products with weights, and whether its attention, that a policy runs once more.

    MaxText and Pax (`maxtext/layers/decoders.py`, `praxis/layers/checkpoint_policy.py`): saving query, key,
    value and output projection leaves the rising products and the attention's core, and the output projection where
    that is not saved either; saving every product leaves the core; `minimal_with_context` saves both.
    """
    name = policy.lower()
    if "minimal" in name:
        return 0.0, False
    if "dot_only" in name:
        return 0.0, True
    if "qkv" in name:
        return model.rising + (0.0 if "out" in name else model.leaving), True
    if "full" in name:
        return 1.0, True
    raise ValueError(f"remat policy {policy!r} is not known; add what it recomputes")


def _work(row: Mapping[str, str], model: Model) -> tuple[Work, StepBytes, int, int]:
    gpus, sequence, batch = int(row["gpus"]), float(row["seq_len"]), float(row["global_batch"])

    def ranks(*names: str) -> int:
        return int(np.prod([int(row[name]) for name in names if row[name]], dtype=int))

    fsdp = int(row["fsdp_total"]) if row["fsdp_total"] else ranks("dcn_fsdp", "ici_fsdp")
    if not any(row[name] for name in ("fsdp_total", "dcn_fsdp", "ici_fsdp")):
        fsdp = min(IN_NODE_FSDP[row["model"]], gpus)
    h, f, vocabulary = model.width, model.feedforward, model.vocabulary
    keys_values = 2.0 * h * model.groups / model.heads
    parameters = model.layers * model.block + 2.0 * vocabulary * h
    work = Work(
        batch=np.array([batch]),
        sequence=np.array([sequence]),
        layers=model.layers,
        width=float(h),
        block_flops=2.0 * model.layers * model.block,
        attention_flops=4.0 * model.layers * h * sequence,
        head_flops=2.0 * h * vocabulary,
        compute_dtype="bfloat16",
        kernel="cudnn_flash",  # NVTE_FUSED_ATTN=1 and cudnn_flash_te
        matmuls=model.matmuls,
        heads=model.heads,
        keys_values=keys_values,
    )
    inner = (3.0 if model.gated else 2.0) * f
    where = StepBytes(
        parameters=4.0 * parameters / fsdp,
        optimizer=8.0 * parameters / fsdp,
        gradients=4.0 * parameters / fsdp,
        layer=2.0 * model.block,
        others=4.0 * vocabulary * h,
        activations=sequence * 2.0 * (6.0 * h + keys_values + inner),
        carry=2.0 * sequence * h,
        logits=2.0 * sequence * vocabulary,
    )
    return work, where, fsdp, gpus // fsdp


def _cluster(gpus: int, precision: str) -> Cluster:
    cluster = nodes("H100", max(gpus, 8))
    if precision == "bf16":
        return cluster
    peak = {**cluster.device.peak, "bfloat16": EIGHT_BIT * cluster.device.peak["bfloat16"]}
    return dataclasses.replace(cluster, device=dataclasses.replace(cluster.device, peak=peak))


def held_out(
    judged: Table, other: Table, growth: Table | None
) -> tuple[np.ndarray, tuple[tuple[frozenset[str], frozenset[str]], ...]]:
    """Predictions of each model's rows by coefficients from the other models, and who saw what."""
    digests = np.array(judged.digests)
    predicted, folds = np.zeros(len(judged)), []
    for mine, known in splits(judged, other):
        found = _counted()
        if len(known):
            found = regress(
                lambda c, known=known: predict(known, c, growth),
                known.numbers("step_time_s"),
                PRIORS,
                spread=SPREAD,
                rounds=20,
            )
        predicted[mine] = predict(judged.take(mine), found, growth)
        folds.append((frozenset(known.digests), frozenset(digests[mine])))
    return predicted, tuple(folds)


def splits(judged: Table, other: Table) -> list[tuple[np.ndarray, Table]]:
    """For every model its rows as a mask, and the rows of other models that its coefficients come from."""
    models, theirs = judged.text("model"), other.text("model")
    return [(models == model, _one_per_curve(other.take(theirs != model))) for model in dict.fromkeys(models)]


def _one_per_curve(rows: Table) -> Table:
    """The middle row of every curve, and the rows of no curve: sizes of one curve are no independent measurements."""
    curves = curves_of(rows)
    gone = {position for curve in curves for position in curve} - {curve[len(curve) // 2] for curve in curves}
    return rows.take(np.array([i for i in range(len(rows)) if i not in gone], dtype=int))


def _constant_mfu(judged: Table, other: Table) -> np.ndarray:
    """Seconds of each row at the median MFU of other models in the same precision (the baseline)."""
    flops, theirs = _model_flops(judged), _model_flops(other)
    reached = theirs / other.numbers("step_time_s")
    found = np.zeros(len(judged))
    for i, row in enumerate(judged.rows):
        same = (other.text("model") != row["model"]) & (other.text("precision") == row["precision"])
        found[i] = flops[i] / np.median(reached[same]) if same.any() else np.nan
    return np.where(np.isnan(found), flops / np.median(reached), found)


def _model_flops(rows: Table) -> np.ndarray:
    """FLOPs of one step per device, attention not halved."""
    made = [_work(row, MODELS[row["model"]])[0].model_flops / float(row["gpus"]) for row in rows.rows]
    return np.array([float(np.squeeze(one)) for one in made])


def _counted() -> Coefficients:
    return {name: prior.value for name, prior in PRIORS.items()}

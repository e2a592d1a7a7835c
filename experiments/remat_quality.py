"""The same translation model, with equal seeds, under several rematerialisation policies: does any change its BLEU?

It must not: a policy says which values wait for the backward pass and which are computed once more, from the same
inputs by the same operations. The paper's table 4 and its figures 3 and 11 show BLEU that moves with the policy (29.1
to 29.3); with equal seeds that cannot come from rematerialisation.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.report import Row
from experiments.runs import Sections, merged, run_of, sections, trained
from experiments.translation import Sentences, Translated, require_scores, to_translate, translate
from jaxlm.config import Run
from jaxlm.decode import ConfigError
from jaxlm.folder import Folder
from jaxlm.trainer.plot import read_curve
from planners.plan import Plan, Segment, describe
from planners.wishes import REMATS


@dataclass(frozen=True, slots=True, kw_only=True)
class Printed:
    """One row of the paper's table 4, whose model and data are not named."""

    peak_gb: float
    recompute_seconds: float
    bleu: float


PAPER = {
    "none": Printed(peak_gb=31.6, recompute_seconds=0.0, bleu=29.2),
    "static": Printed(peak_gb=21.5, recompute_seconds=6.8, bleu=29.1),
    "dynamic": Printed(peak_gb=18.3, recompute_seconds=7.1, bleu=29.3),
}

NOT_MEASURED = "not measured: give --parallel DIR --source en --target de"
ALONE = ("none", "full")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Who decides what is rematerialised, and within which memory.

    Attributes:
        remat: as `plan.remat` of `jaxlm train`.
        memory: what may be used, from 0 (what `full` is predicted to need) to 1 (`none`); these two need no such word.
    """

    remat: str
    memory: float | None = None

    def __post_init__(self) -> None:
        if self.remat not in REMATS or self.remat == "auto":
            raise ValueError(f"remat={self.remat!r} must be one of {', '.join(REMATS[1:])}")
        if self.remat in ALONE and self.memory is not None:
            raise ValueError(f"remat={self.remat} takes what it needs; leave memory out")
        if self.remat not in ALONE and (self.memory is None or not 0.0 <= self.memory <= 1.0):
            raise ValueError(f"remat={self.remat} needs memory between 0 (as full) and 1 (as none), not {self.memory}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A translation model under several policies.

    Attributes:
        parallel: the pairs: a folder (train.en, train.de, val.*, test*.*), a .tsv or a .jsonl file; null: not measured.
        source: language that is read: what ends its file names, heads its column or is its key.
        target: language that is written.
        test: the test set to translate, by name, such as test_2016_flickr; null: the first.
        sentences: at most this many of them, from the first on; 0: all.
        run: a file for `jaxlm train`, or its sections written here: the model and its training.
        steps: training steps, in place of those of `run`.
        seeds: other seeds with which the first policy is trained again, to see how far chance alone moves BLEU.
        apart: whether each training has a process of its own.
    """

    parallel: str | None = None
    source: str = "en"
    target: str = "de"
    test: str | None = None
    sentences: int = 0
    run: Any = dataclasses.field(default_factory=dict)
    steps: int | None = None
    seeds: int = 1
    apart: bool = False

    def __post_init__(self) -> None:
        if self.sentences < 0 or self.seeds < 0:
            raise ValueError(f"sentences={self.sentences} and seeds={self.seeds} must not be negative")

    def base(self) -> Sections:
        """The sections of all trainings."""
        parallel = {"source": self.source, "target": self.target}
        data = {"path": self.parallel, "parallel": parallel, "mode": "truncate"}
        given = sections(self.run, "run", self.steps)
        return merged(given, {"data": data, "sample": {"prompt": None}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What one policy gave.

    Attributes:
        policy: its name.
        remat: segments of the plan.
        same_as: an earlier policy that chose the same segments, whose run this is.
        loss: at each logged step, nats per target token: float64 [records].
        predicted_bytes, predicted_seconds: of the plan, per device and per step.
        compiled_bytes: arguments, temporaries and new outputs of the compiled step; None for too short a run.
        step_seconds: median of the measured steps; None for too short a run.
    """

    policy: str
    remat: tuple[Segment, ...]
    same_as: str | None
    translated: Translated
    loss: np.ndarray
    predicted_bytes: float
    predicted_seconds: float
    compiled_bytes: float | None
    step_seconds: float | None

    def says(self) -> str:
        return ", ".join(map(describe, self.remat))


@dataclass(frozen=True, slots=True)
class Found:
    """All policies on one test set, by name; the first is what the others are compared with. `seeds` are runs of the
    first one with other seeds."""

    test: Sentences
    policies: dict[str, Quality]
    seeds: dict[str, Quality]

    @property
    def first(self) -> Quality:
        return next(iter(self.policies.values()))

    def moved(self, one: Quality) -> int:
        """Translations that are not those of the first policy."""
        pairs = zip(one.translated.translations, self.first.translated.translations, strict=True)
        return sum(ours != theirs for ours, theirs in pairs)

    def apart(self, one: Quality) -> float:
        """Largest difference of a logged training loss from that of the first policy, nats per token."""
        return float(np.abs(one.loss - self.first.loss).max())


def measure_quality(config: Config, policies: dict[str, Policy], out: Path) -> Found | None:
    """Trains, translates and scores under each policy; None where no pairs are given.

    Only the rematerialisation differs: mesh, microbatch and loss chunks are those of a plan without any. Runs are kept
    in `out`/runs, and what is trained is not trained again; equal plans are trained once.
    """
    if config.parallel is None:
        return None
    require_scores()
    if not policies:
        raise ConfigError("policies is empty: name at least one, such as none: {remat: none}")
    base = config.base()
    test = to_translate(run_of(base, {}, "none", "run").data, config.test).first(config.sentences)
    planned, found = _planned(base, policies), dict[str, Quality]()

    def one(name: str, run: Run, plan: Plan) -> Quality:
        _check_before(out / "runs" / name, plan)
        folder = trained(run, out / "runs" / name, apart=config.apart)
        return _quality(name, plan, folder, translate(folder.path, test, out / "translations"))

    for name, (run, plan) in planned.items():
        twin = next((each for each in found.values() if each.remat == plan.remat), None)
        if twin is not None:
            found[name] = dataclasses.replace(twin, policy=name, same_as=twin.same_as or twin.policy)
        else:
            found[name] = one(name, run, plan)
    first, (run, plan) = next(iter(planned.items()))
    seeds = {
        name: one(name, dataclasses.replace(run, name=name, seed=seed), plan)
        for seed in range(run.seed + 1, run.seed + 1 + config.seeds)
        if (name := f"{first}-seed-{seed}")
    }
    return Found(test, found, seeds)


def _planned(base: Sections, policies: dict[str, Policy]) -> dict[str, tuple[Run, Plan]]:
    """The run of each policy, and the plan that it will follow."""
    from jaxlm.inspect import described
    from planners.search import plan

    fixed, least, most = but_for_remat(base)
    workload, cluster = described(run_of(base, {"plan": fixed}, "none", "run"), None)
    made = {}
    for name, policy in policies.items():
        changes: Sections = {**fixed, "remat": policy.remat}
        if policy.memory is not None:
            changes["memory_budget"] = f"{least + policy.memory * (most - least):.0f}"
        run = run_of(base, {"plan": changes}, name, f"policies.{name}")
        made[name] = (run, plan(workload, cluster, run.plan))
    return made


def but_for_remat(base: Sections) -> tuple[Sections, float, float]:
    """A plan section that decides all but the rematerialisation, as a plan without any would; and the bytes that such a
    plan is predicted to need with all of it and with none."""
    from jaxlm.inspect import described
    from planners.search import plan, price

    fixed: Sections = {"shard_optimizer": False, "calibrate": False, "balance": "never"}
    run = run_of(base, {"plan": {**fixed, "remat": "none"}}, "none", "run")
    workload, cluster = described(run, None)
    none = plan(workload, cluster, run.plan)
    fixed |= {"mesh": none.mesh, "microbatch": none.batch.microbatch, "loss_chunks": none.compile.loss_chunks}
    least, most = (
        price(workload, cluster, run.plan, none.mesh, none.batch.microbatch, remat, none.compile.loss_chunks)
        for remat in ("full", "none")
    )
    return fixed, least.memory_bytes, most.memory_bytes


def _check_before(path: Path, plan: Plan) -> None:
    """Raises ConfigError where a run was trained there under another rematerialisation."""
    folder = Folder(path)
    if folder.plan.exists() and (before := Plan.load(folder.plan)).remat != plan.remat:
        raise ConfigError(
            f"{path} was trained with remat {', '.join(map(describe, before.remat))}, and now it would be "
            f"{', '.join(map(describe, plan.remat))}: choose another --out, or remove {path}"
        )


def _quality(name: str, plan: Plan, folder: Folder, translated: Translated) -> Quality:
    measured = json.loads(folder.comparison.read_text()) if folder.comparison.exists() else {}
    assert plan.predicted is not None
    return Quality(
        policy=name,
        remat=plan.remat,
        same_as=None,
        translated=translated,
        loss=read_curve(folder.path, unit="loss").loss,
        predicted_bytes=plan.predicted.memory_bytes - plan.predicted.memory.get("runtime", 0.0),
        predicted_seconds=plan.predicted.step_seconds,
        compiled_bytes=measured.get("memory_bytes", {}).get("compiled"),
        step_seconds=measured.get("step_seconds", {}).get("measured"),
    )


def quality_rows(found: Found | None, policies: dict[str, Policy]) -> list[Row]:
    """BLEU beside the paper's, chrF, and what differs from the first policy; without pairs, only the paper's."""
    if found is None:
        names = dict.fromkeys([*PAPER, *policies])
        return [Row(what=name, quantity="BLEU", paper=_bleu(name), note=NOT_MEASURED) for name in names]
    rows = []
    for name, one in found.policies.items():
        note = one.says() + (f" (the run of {one.same_as})" if one.same_as else "")
        scores = one.translated.scores
        rows.append(Row(what=name, quantity="BLEU", paper=_bleu(name), measured=scores.bleu, note=note))
        rows.append(Row(what=name, quantity="chrF", measured=scores.chrf))
        if one is found.first or one.same_as == found.first.policy:
            continue
        than = f"than {found.first.policy}"
        equal = one.translated.weights == found.first.translated.weights
        rows += [
            Row(what=name, quantity=f"translations other {than}", measured=found.moved(one),
                note=f"of {len(one.translated.translations):,}"),
            Row(what=name, quantity=f"training loss other {than}, at most", measured=found.apart(one),
                note="nats per token"),
            Row(what=name, quantity="final weights", measured="the same bits" if equal else "rounded otherwise"),
        ]  # fmt: skip
    for name, one in found.seeds.items():
        note = f"another seed: {found.moved(one):,} of {len(one.translated.translations):,} translations are other"
        rows.append(Row(what=name, quantity="BLEU", measured=one.translated.scores.bleu, note=note))
    return rows


def _bleu(name: str) -> float | None:
    return PAPER[name].bleu if name in PAPER else None


def price_rows(found: Found) -> list[Row]:
    """What each policy takes for the model that was trained here: memory and time of a step."""
    rows = []
    for name, one in found.policies.items():
        note = f"the run of {one.same_as}" if one.same_as else ""
        mib = None if one.compiled_bytes is None else one.compiled_bytes / 2**20
        rows += [
            Row(what=name, quantity="memory of a step of this small model, MiB", compiled=mib,
                predicted=one.predicted_bytes / 2**20, note=note),
            Row(what=name, quantity="seconds of its step", measured=one.step_seconds, predicted=one.predicted_seconds),
        ]  # fmt: skip
    return rows


def quality_remarks(found: Found | None) -> list[str]:
    """What was translated and how it was scored."""
    why = (
        "Rematerialisation computes the same values from the same inputs, so with equal seeds it cannot change BLEU; "
        "the paper's table 4 has 29.1 to 29.3 and names no seeds. The compiler adds up some gradients in another "
        "order, so they agree to rounding (1e-6 of their norm), and a long training lets rounding grow. What is left "
        "of that in BLEU is chance, as between seeds, and no effect of the policy."
    )
    if found is None:
        return [f"BLEU is {NOT_MEASURED}. {why}"]
    scores = found.first.translated.scores
    left_out = f", {found.test.unusable} pairs left out as empty or broken" if found.test.unusable else ""
    return [
        f"Translated greedily: {found.test.name}, {len(found.test.sources):,} sentences{left_out}. "
        f"BLEU {scores.bleu_signature}; chrF {scores.chrf_signature}.",
        why,
    ]


def quality_details(found: Found | None) -> dict[str, Any]:
    """The same for machines."""
    if found is None:
        return {}
    return {
        "test": {"name": found.test.name, "sentences": len(found.test.sources), "unusable": found.test.unusable},
        "seeds": {name: one.translated.scores.bleu for name, one in found.seeds.items()},
        "policies": {
            name: {
                "remat": [dataclasses.asdict(segment) for segment in one.remat],
                "same_as": one.same_as,
                **dataclasses.asdict(one.translated.scores),
                "weights": one.translated.weights,
                "translations_moved": found.moved(one),
                "loss_apart": found.apart(one),
                "predicted_bytes": one.predicted_bytes,
                "compiled_bytes": one.compiled_bytes,
                "predicted_seconds": one.predicted_seconds,
                "measured_seconds": one.step_seconds,
            }
            for name, one in found.policies.items()
        },
    }

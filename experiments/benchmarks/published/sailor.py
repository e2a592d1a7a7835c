"""Unequal devices: step time of pipelines and replicas over RTX-3090, RTX-2080 and Titan-RTX nodes, and GH200 nodes.

File: sailor_measured.csv (github.com/eth-easl/sailor, MIT). Seconds of one layer on each kind of GPU are the authors'
own profile (facts/sailor_profile.yaml), as their simulator has them: the league is "full profile". What the planner
adds is `planners.space.uneven`: which stage sets the pace, what transfers cost it, and what replicas wait for.
"""

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from experiments.benchmarks.published.judge import Verdict, errors, groups, mean_regret, regret
from experiments.benchmarks.published.posterior import Coefficients, Prior, regress
from experiments.benchmarks.published.tables import Source, Table
from planners.space.uneven import pipeline_seconds

FILE = "sailor_measured"
PROFILE = Path(__file__).parent / "facts" / "sailor_profile.yaml"
FLOAT = 4
"""Bytes of a number: the runs are float32 (`float_size` of the authors' simulator)."""

SEQUENCE = 2048

PRIORS = {
    "compute": Prior(value=1.0, deviation=0.1, source="the profile, a layer at a time"),
    "link": Prior(value=1.0, deviation=0.2, source="bandwidth between two nodes, one stream"),
}
"""What is known before a row is seen."""

SPREAD = 0.08
"""Error of a profile-based simulator: Sailor's 8.9% on equal devices (planners.md 1a)."""


@dataclass(frozen=True, slots=True)
class Run:
    """One row: kinds of GPU of every stage and replica, and the items (embedding, blocks, head) of every stage."""

    model: str
    kinds: tuple[tuple[str, ...], ...]
    items: tuple[int, ...]
    microbatch: int
    tensor: int
    batch: int
    seconds: float

    @classmethod
    def of(cls, row: Mapping[str, str]) -> "Run":
        stages = tuple(
            tuple(node.rsplit("x", 1)[0] for node in stage.strip().split("+"))
            for stage in row["devices_per_stage"].split("|")
        )
        return cls(
            model=row["model"],
            kinds=stages,
            items=tuple(int(n) for n in row["layers_per_stage"].split("/")),
            microbatch=int(row["micro_batch"]),
            tensor=int(row["tp"]),
            batch=int(row["global_batch"]),
            seconds=float(row["iter_time_s"]),
        )

    @property
    def replicas(self) -> int:
        return len(self.kinds[0])

    def predict(self, found: Coefficients) -> float:
        """Seconds of one step.

        A stage receives the activations of one microbatch and hands back their gradients before it goes on (blocking
        transfers on the compute stream), so what it exchanges with the stage before it counts into its pace. The
        slowest replica decides, then gradients are summed over replicas, a ring over their nodes.
        """
        sizes = _profile()["models"][self.model]
        hop = 2.0 * self.microbatch * SEQUENCE * sizes["width"] * FLOAT
        paces = np.zeros((len(self.kinds), self.replicas))
        for stage, kinds in enumerate(self.kinds):
            for replica, kind in enumerate(kinds):
                paces[stage, replica] = found["compute"] * self.work(stage, kind)
                if stage:
                    before = self.kinds[stage - 1][replica]
                    paces[stage, replica] += hop / (found["link"] * bandwidth(before, kind))
        microbatches = self.batch / self.microbatch / self.replicas
        pipeline = pipeline_seconds(paces, microbatches).max()
        ends = [self._ends(stage) for stage in range(len(self.kinds))]
        stored = [FLOAT * (e * sizes["embedding"] + b * sizes["block"] + h * sizes["head"]) for e, b, h in ends]
        ring = [
            min(bandwidth(a, b) for a, b in zip(kinds, (*kinds[1:], kinds[0]), strict=True)) for kinds in self.kinds
        ]
        share = 2.0 * (self.replicas - 1) / self.replicas
        sync = max(share * size / (found["link"] * wire) for size, wire in zip(stored, ring, strict=True))
        update = max(self._seconds(kind)["update"] for kinds in self.kinds for kind in kinds)
        return float(pipeline + sync + update)

    def _ends(self, stage: int) -> tuple[bool, int, bool]:
        """Whether the stage has the embedding, its blocks, and whether it has the head."""
        first, last = stage == 0, stage == len(self.items) - 1
        return first, self.items[stage] - first - last, last

    def work(self, stage: int, kind: str) -> float:
        embedding, blocks, head = self._ends(stage)
        each = self._seconds(kind)
        return embedding * each["embedding"] + blocks * each["block"] + head * each["head"]

    def _seconds(self, kind: str) -> dict[str, float]:
        return _profile()["seconds"][self.model, kind, self.microbatch, self.tensor]


@functools.cache
def _profile() -> dict[str, Any]:
    raw = yaml.safe_load(PROFILE.read_text())
    raw["seconds"] = {(row["model"], row["gpu"], row["microbatch"], row["tensor"]): row for row in raw["seconds"]}
    return raw


def bandwidth(one: str, other: str) -> float:
    """Bytes/s between a node of each kind: the slowest entry that speaks of the pair."""
    return min(
        row["bandwidth"]
        for row in _profile()["links"]
        if sorted(row["between"]) == sorted((one, other))
        or ("any" in row["between"] and (one in row["between"] or other in row["between"]))
    )


def verdicts(source: Source, seed: int) -> list[Verdict]:
    """Empty where the file is missing. `seed` is unused: nothing is drawn."""
    judged, other = source.judged(FILE), source.other(FILE)
    if judged is None or other is None:
        return []
    judged, other = (table.where(lambda row: _known(row)) for table in (judged, other))
    mixed, equal = judged.take(unequal(judged)), judged.take(~unequal(judged))
    found: list[Verdict] = []
    if len(mixed):
        found += _mixed(mixed, other.take(unequal(other)), source)
    if len(equal):
        found += _equal(equal, other.take(~unequal(other)), source)
    return found


def _mixed(mixed: Table, other: Table, source: Source) -> list[Verdict]:
    measured = mixed.numbers("iter_time_s")
    what = "sailor_measured, unequal devices"
    league, zero = "full profile, other runs", "full profile, nothing fitted"
    baselines = _simulators(source, mixed) | _simple(mixed)
    counted = predict(mixed, _counted())
    # Two rows share one measured time (59.45533 s, on three and on six nodes), so a fold is all rows of one time.
    fitted, folds = held_out(mixed, other, "iter_time_s")
    members = groups(zip(mixed.text("nodes"), mixed.text("global_batch"), strict=True))
    common: dict[str, Any] = {"what": what, "quantity": "step time error, %"}
    targets = {"mean": 9.0, "max": 20.0}
    found = [
        Verdict(
            **common,
            league=league,
            ours=errors(fitted, measured),
            baselines=baselines,
            targets=targets,
            folds=folds,
            constants="profile; two scales (layers in place, links with several streams) from runs on other nodes",
        ),
        Verdict(
            **common,
            league=zero,
            ours=errors(counted, measured),
            baselines=baselines,
            targets=targets,
            judged=frozenset(mixed.digests),
            constants="the authors' profile and link figures as they are",
        ),
    ]
    if members:
        found.append(
            Verdict(
                what=what,
                league=league,
                quantity="regret, %",
                ours=regret(fitted, measured, members),
                baselines={
                    "random": mean_regret(measured, members),
                    "replicas only": regret(mixed.numbers("pp"), measured, members),
                    "deepest pipeline": regret(-mixed.numbers("pp"), measured, members),
                },
                folds=folds,
                constants="as the step time",
            )
        )
    return found


def _equal(equal: Table, other: Table, source: Source) -> list[Verdict]:
    measured = equal.numbers("iter_time_s")
    fitted, folds = held_out(equal, other, "model")
    common: dict[str, Any] = {
        "what": "sailor_measured, equal devices (GH200)",
        "quantity": "step time error, %",
        "baselines": _simulators(source, equal) | _simple(equal),
    }
    return [
        Verdict(
            **common,
            league="full profile, held-out model",
            ours=errors(fitted, measured),
            folds=folds,
            constants="profile; the two scales from the other model",
        ),
        Verdict(
            **common,
            league="full profile, nothing fitted",
            ours=errors(predict(equal, _counted()), measured),
            judged=frozenset(equal.digests),
            constants="the authors' profile and link figures as they are",
        ),
    ]


def predict(rows: Table, found: Coefficients) -> np.ndarray:
    return np.array([Run.of(row).predict(found) for row in rows.rows])


def held_out(
    judged: Table, other: Table, column: str
) -> tuple[np.ndarray, tuple[tuple[frozenset[str], frozenset[str]], ...]]:
    """Predictions of each row with scales from the other rows that differ in a column, and who saw what."""
    own, theirs = judged.text(column), other.text(column)
    predicted, folds = np.zeros(len(judged)), []
    digests = np.array(judged.digests)
    for value in dict.fromkeys(own):
        mine, known = own == value, other.take(theirs != value)
        found = _counted()
        if len(known):
            measured = known.numbers("iter_time_s")
            found = regress(lambda c, known=known: predict(known, c), measured, PRIORS, spread=SPREAD)
        predicted[mine] = predict(judged.take(mine), found)
        folds.append((frozenset(known.digests), frozenset(digests[mine])))
    return predicted, tuple(folds)


def unequal(rows: Table) -> np.ndarray:
    """Whether a run mixes kinds of GPU."""
    return np.array([len({kind for stage in Run.of(row).kinds for kind in stage}) > 1 for row in rows.rows], dtype=bool)


def _counted() -> Coefficients:
    return {name: prior.value for name, prior in PRIORS.items()}


def _known(row: Mapping[str, str]) -> bool:
    run = Run.of(row)
    have = _profile()["seconds"]
    return all((run.model, kind, run.microbatch, run.tensor) in have for stage in run.kinds for kind in stage)


def _simple(rows: Table) -> dict[str, np.ndarray]:
    """Predictions of two rules with the same profile: transfers are free, and every device is an average one."""
    measured = rows.numbers("iter_time_s")
    free, average = [], []
    for row in rows.rows:
        run = Run.of(row)
        microbatches = run.batch / run.microbatch / run.replicas
        paces = np.array([[run.work(i, kind) for kind in kinds] for i, kinds in enumerate(run.kinds)])
        free.append(pipeline_seconds(paces, microbatches).max())
        average.append(pipeline_seconds(paces.mean(axis=1), microbatches))
    return {
        "same profile, no communication": errors(np.array(free), measured),
        "same profile, average devices, no communication": errors(np.array(average), measured),
    }


def _simulators(source: Source, rows: Table) -> dict[str, np.ndarray]:
    """Errors of the simulators that Sailor's authors compare, from their harness, on the rows that it knows."""
    path = source.groundtruth / "planner_simulator_errors.csv"
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        theirs = [row for row in csv.DictReader(file) if row["mode"] == "time"]
    found: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(row["sim"] for row in theirs):
        mine = {
            (float(r["real"]), int(r["N"]), int(r["pp"])): float(r["abs_err_pct"]) for r in theirs if r["sim"] == name
        }
        keys = [(float(r["iter_time_s"]), int(r["nodes"]), int(r["pp"])) for r in rows.rows]
        values = [mine[key] for key in keys if key in mine]
        if values:
            found[f"{name}'s simulator, {len(values)} rows"] = np.array(values)
    return found

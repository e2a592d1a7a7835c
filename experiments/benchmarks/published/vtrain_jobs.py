"""The jobs of the vTrain tables, each predicted by the closed form fitted to other models alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from experiments.benchmarks.published.closed_form import LINKS, PARTS, Runs, fit, parts
from experiments.benchmarks.published.judge import groups
from experiments.benchmarks.published.replay import Job
from experiments.benchmarks.published.tables import Source, Table
from planners.learning.agent import Arm
from planners.learning.belief import Evidence

MODEL = {"vtrain_single": ("hidden", "layers"), "vtrain_multi": ("params_b",)}
GROUP = {
    "vtrain_single": ("gpus", "hidden", "layers", "seq_len", "global_batch"),
    "vtrain_multi": ("params_b",),
}
"""Columns that name a model, and a job: plans of one job are compared with each other."""


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """All jobs of one model, and the hashes of the rows that its predictor saw and that it is judged on."""

    model: str
    jobs: tuple[Job, ...]
    fitted: frozenset[str]
    judged: frozenset[str]


def folds(source: Source, name: str) -> Iterator[Fold]:
    """One fold per model of the table `name`; nothing where the file is missing."""
    judged, other = source.judged(name), source.other(name)
    if judged is None or other is None:
        return
    models, seen_models = _named(judged, MODEL[name]), _named(other, MODEL[name])
    for model in dict.fromkeys(models):
        here, there = judged.take(models == model), other.take(seen_models != model).without(judged.digests)
        if source.split is False:
            there = other.take(seen_models != model)
        if not len(there):
            continue
        yield _fold(model, here, there, name)


def _named(table: Table, columns: tuple[str, ...]) -> np.ndarray:
    return np.array([" ".join(row[column] for column in columns) for row in table.rows])


def _fold(model: str, here: Table, there: Table, name: str) -> Fold:
    seen, runs = Runs.of(there), Runs.of(here)
    coefficients = fit(seen)
    learnt = tuple(
        Evidence(job=job, parts=row, sizes=size, seconds=float(second))
        for job, row, size, second in zip(
            _named(there, MODEL[name]), _rows(coefficients, seen), _sizes(seen), seen.seconds, strict=True
        )
    )
    arms = [
        Arm(key=digest, summary=str(size), parts=row, sizes=size, memory=0.0)
        for digest, row, size in zip(here.digests, _rows(coefficients, runs), _sizes(runs), strict=True)
    ]
    jobs = tuple(
        Job(arms=tuple(arms[i] for i in rows), seconds=runs.seconds[rows], links=LINKS, evidence=learnt)
        for rows in groups(zip(*(here.text(column) for column in GROUP[name]), strict=True))
    )
    return Fold(model, jobs, frozenset(there.digests), frozenset(here.digests))


def _rows(coefficients: np.ndarray, runs: Runs) -> list[dict[str, float]]:
    return [dict(zip(PARTS, map(float, row), strict=True)) for row in parts(coefficients, runs)]


def _sizes(runs: Runs) -> list[tuple[float, ...]]:
    """What makes plans alike: degrees of each kind, sequences of a microbatch, microbatches; and half as much, which is
    what the roots do, the width and depth of the model."""
    times = runs.batch / (runs.data * runs.microbatch)
    columns = (
        *(runs.tensor, runs.data, runs.stage, runs.microbatch, times),
        *(np.sqrt(runs.hidden), np.sqrt(runs.layers)),
    )
    return [tuple(map(float, row)) for row in zip(*columns, strict=True)]

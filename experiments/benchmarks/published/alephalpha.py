"""The Aleph-Alpha layouts: which ones run out of memory, and which of the rest is chosen, no outcome known.

Files: alephalpha_layouts.csv (LLaMA on A100-80GB, arXiv:2311.05610; CC BY-NC-SA, internal checks only).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.benchmarks.published import alephalpha_memory as memory
from experiments.benchmarks.published import alephalpha_time as time
from experiments.benchmarks.published.judge import Verdict, errors, groups, mean_regret
from experiments.benchmarks.published.tables import Source, Table
from planners.learning.calibration import Calibration

FILE = "alephalpha_layouts"

FAILED = 100.0
"""Regret, %, that is charged for choosing a layout that ran out of memory: a run lost before the best one starts."""


def verdicts(source: Source, seed: int) -> list[Verdict]:
    """Empty where the file is missing. `seed` is unused: nothing is drawn."""
    judged, other = source.judged(FILE), source.other(FILE)
    if judged is None or other is None:
        return []
    judged, other = (table.where(lambda row: row["status"] in ("ok", "OOM Error")) for table in (judged, other))
    held = held_out(judged, other)
    first = Predicted(
        sizes=memory.Layouts.of(judged).peak(memory.counted()) / memory.LIMIT,
        seconds=time.predict(judged),
        folds=(),
        league="zero-shot",
        constants="counted from the trainer's source, datasheets; the form was chosen knowing rows of this set",
    )
    found = [v for one in (held, first) for v in (*classification(judged, one), *choices(judged, one))]
    everything = frozenset(judged.digests)
    return [v if v.folds else v.replace(judged=everything) for v in found]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predicted:
    """What a league says of every row.

    Attributes:
        sizes: bytes over what a device can hold: above 1 a layout is refused.
        seconds: of one step.
        folds: hashes of the rows fitted on and judged, by fit.
        league: what the predictor was allowed to see.
        constants: where they come from.
    """

    sizes: np.ndarray
    seconds: np.ndarray
    folds: tuple[tuple[frozenset[str], frozenset[str]], ...]
    league: str
    constants: str


def held_out(judged: Table, other: Table) -> Predicted:
    """Memory and time of every row by coefficients from other models, or where there is one, from its other sheets."""
    digests = np.array(judged.digests)
    sizes, seconds, folds = np.zeros(len(judged)), np.zeros(len(judged)), []
    for mine, rest in memory.folds(judged, other):
        known, rows = other.take(rest), judged.take(mine)
        found = memory.fit(known)
        limit = memory.cut(memory.Layouts.of(known).peak(found), known.text("status") != "ok")
        sizes[mine] = memory.Layouts.of(rows).peak(found) / limit
        ran = known.where(lambda row: row["status"] == "ok")
        calibration = Calibration.prior(time.HABITS)
        if len(ran):
            calibration = calibration.update(lambda a, ran=ran: time.predict(ran, a), ran.numbers("step_time_s"))
        seconds[mine] = time.predict(rows, calibration.assumptions)
        folds.append((frozenset(known.digests), frozenset(digests[mine])))
    return Predicted(
        sizes=sizes,
        seconds=seconds,
        folds=tuple(folds),
        league="held-out models or sheets",
        constants="counted and datasheets, moved by rows of other models or sheets",
    )


def classification(judged: Table, predicted: Predicted) -> list[Verdict]:
    """Which layouts run out of memory: ranked, and refused or not."""
    exceeds = judged.text("status") != "ok"
    return [
        v.replace(folds=predicted.folds, constants=predicted.constants)
        for v in _classified(predicted.league, predicted.sizes, exceeds, rivals(judged))
    ]


def choices(judged: Table, predicted: Predicted) -> list[Verdict]:
    """The layout chosen in every group among ALL of its rows, none of which says whether it ran."""
    ran = judged.text("status") == "ok"
    measured = np.where(ran, judged.numbers("step_time_s"), np.inf)
    keys = zip(*(judged.text(name) for name in ("model", "seq_len", "gpus")), strict=True)
    members = [rows for rows in groups(keys) if ran[rows].any()]
    rules = simple_rules(judged)

    def fastest(rows: np.ndarray) -> int:
        score = np.where(predicted.sizes[rows] <= 1.0, predicted.seconds[rows], np.inf)
        if not np.isfinite(score).any():
            return int(rows[np.argmin(predicted.sizes[rows])])
        return int(rows[np.argmin(score)])

    def picked(choose: Callable[[np.ndarray], int], *, labels: bool) -> np.ndarray:
        return np.array([choose(rows[ran[rows]] if labels else rows) for rows in members])

    ours = picked(fastest, labels=False)
    labelled = {f"{name}, told which ran": picked(rule, labels=True) for name, rule in rules.items()}
    blind = {f"{name}, not told": picked(rule, labels=False) for name, rule in rules.items()}
    others = labelled | blind
    random = mean_regret(measured, [rows[ran[rows]] for rows in members])
    common = {
        "what": FILE,
        "league": predicted.league,
        "folds": predicted.folds,
        "constants": predicted.constants,
    }
    return [
        Verdict(
            **common,
            quantity="regret of the chosen layout, %",
            ours=_regret(ours, measured, members),
            baselines={name: _regret(rows, measured, members) for name, rows in others.items()}
            | {"random, told which ran": random},
            published={"rule told which ran, whole set": {"mean": 0.59, "max": 5.9}},
            targets={"mean": 0.5, "max": 5.0},
            details={"groups": len(members), "charged_for_running_out": FAILED},
        ),
        Verdict(
            **common,
            quantity="choices that ran out of memory, %",
            ours=100.0 * ~ran[ours],
            baselines={name: 100.0 * ~ran[rows] for name, rows in others.items()},
            shown=("mean",),
        ),
        Verdict(
            **common,
            quantity="step time error, %",
            ours=errors(predicted.seconds[ran], measured[ran]),
        ),
    ]


def _regret(chosen: np.ndarray, measured: np.ndarray, members: Sequence[np.ndarray]) -> np.ndarray:
    lost = [
        100.0 * (measured[row] / np.min(measured[rows]) - 1.0) if np.isfinite(measured[row]) else FAILED
        for row, rows in zip(chosen, members, strict=True)
    ]
    return np.array(lost)


def simple_rules(judged: Table) -> dict[str, Callable[[np.ndarray], int]]:
    """Rules of thumb (planners.md 5): each takes the rows it may choose from and gives one of them."""
    tensor, stage, micro = (judged.numbers(name) for name in ("tp", "pp", "micro_batch"))
    unfused = np.array(["RMS" not in name for name in judged.text("kernel")])
    again = judged.text("recompute") != "disabled"

    def first(*keys: np.ndarray) -> Callable[[np.ndarray], int]:
        return lambda rows: int(rows[np.lexsort([key[rows] for key in reversed(keys)])[0]])

    return {
        "rule: best kernel, no recomputation, microbatch 1, least tp pp, then least tp": first(
            unfused, again, micro, tensor * stage, tensor
        ),
        "Megatron rule: best kernel, most tp, least pp, least microbatch": first(unfused, -tensor, stage, micro, again),
        "data parallel first: least tp pp, recomputation, largest microbatch": first(
            tensor * stage, ~again, unfused, -micro
        ),
    }


def rivals(judged: Table) -> dict[str, np.ndarray]:
    """What others say a layout takes, in units of what they say a device can hold."""
    return {
        "closed form, limit 66 GiB": memory.closed_form(judged) / memory.CLOSED_FORM_LIMIT,
        "everything fits": np.zeros(len(judged)),
        "weights, gradients and optimizer alone": _state(judged) / memory.LIMIT,
    }


def _classified(league: str, size: np.ndarray, exceeds: np.ndarray, others: dict[str, np.ndarray]) -> list[Verdict]:
    """Three verdicts for sizes in units of what a device can hold."""
    quantities = (
        (
            "AUC of running out of memory",
            placements,
            True,
            {"mean": 0.985},
            {"closed form, whole set": {"mean": 0.957}},
        ),
        (
            "predicted fits that ran out, %",
            false_fits,
            False,
            {"mean": 2.0},
            {"closed form at 66 GiB, whole set": {"mean": 14.0}},
        ),
        ("fits that were refused, %", false_refusals, False, {"mean": 5.0}, {}),
    )
    return [
        Verdict(
            what="alephalpha_layouts",
            league=league,
            quantity=quantity,
            ours=measure(size, exceeds),
            baselines={name: measure(values, exceeds) for name, values in others.items()},
            published=published,
            targets=targets,
            larger=larger,
            shown=("mean",),
        )
        for quantity, measure, larger, targets, published in quantities
    ]


def placements(size: np.ndarray, exceeds: np.ndarray) -> np.ndarray:
    """Share of the fitting rows that each row that ran out lies above (ties count half); the mean is the AUC."""
    out, fits = size[exceeds][:, None], size[~exceeds][None, :]
    return (out > fits).mean(axis=1) + 0.5 * (out == fits).mean(axis=1)


def false_fits(size: np.ndarray, exceeds: np.ndarray) -> np.ndarray:
    """100 for each predicted fit that ran out, 0 for each that fitted."""
    return 100.0 * exceeds[size <= 1.0]


def false_refusals(size: np.ndarray, exceeds: np.ndarray) -> np.ndarray:
    """100 for each fitting row that was refused, 0 for each that was not."""
    return 100.0 * (size[~exceeds] > 1.0)


def _state(rows: Table) -> np.ndarray:
    layouts = memory.Layouts.of(rows)
    parts = memory.occupancy(layouts.shape, layouts.batch, layouts.candidates, memory.Habits()).parts
    return sum((parts[name] for name in ("weights", "gradients", "optimizer")), np.zeros(1)).max(axis=0)

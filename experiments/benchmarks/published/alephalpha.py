"""The Aleph-Alpha layouts: which ones run out of memory, and which of the rest is chosen, no outcome known.

Files: alephalpha_layouts.csv (LLaMA on A100-80GB, arXiv:2311.05610; CC BY-NC-SA, internal checks only).
"""

import numpy as np

from experiments.benchmarks.published import alephalpha_memory as memory
from experiments.benchmarks.published.judge import Verdict
from experiments.benchmarks.published.tables import Source, Table

FILE = "alephalpha_layouts"


def verdicts(source: Source, seed: int) -> list[Verdict]:
    """Empty where the file is missing. `seed` is unused: nothing is drawn."""
    judged, other = source.judged(FILE), source.other(FILE)
    if judged is None or other is None:
        return []
    judged, other = (table.where(lambda row: row["status"] in ("ok", "OOM Error")) for table in (judged, other))
    return classification(judged, other)


def classification(judged: Table, other: Table) -> list[Verdict]:
    """Which layouts run out of memory: ranked, and refused or not."""
    exceeds = judged.text("status") != "ok"
    digests = np.array(judged.digests)
    counted = memory.Layouts.of(judged).peak(memory.counted())
    sizes, cuts = np.zeros(len(judged)), np.zeros(len(judged))
    folds = []
    for mine, rest in memory.folds(judged, other):
        known = other.take(rest)
        found = memory.fit(known)
        sizes[mine] = memory.Layouts.of(judged.take(mine)).peak(found)
        cuts[mine] = memory.cut(memory.Layouts.of(known).peak(found), known.text("status") != "ok")
        folds.append((frozenset(known.digests), frozenset(digests[mine])))
    everything = frozenset(judged.digests)
    held = _classified("held-out models or sheets", sizes / cuts, exceeds, rivals(judged))
    first = _classified("zero-shot", counted / memory.LIMIT, exceeds, rivals(judged))
    return [
        *(v.replace(folds=tuple(folds), constants="counted, moved by rows of other models or sheets") for v in held),
        *(
            v.replace(
                judged=everything, constants="counted from the trainer's source; the form was chosen knowing rows"
            )
            for v in first
        ),
    ]


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

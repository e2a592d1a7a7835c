"""Comparing frontiers of (accuracy, gap) over the same seeds: hypervolumes, and who dominates whom."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.fairness.intervals import Paired, paired

WIDEST = 0.5
"""Gap of the reference point of hypervolumes; its accuracy is the share of the larger label."""

Points = Sequence[Mapping[str, Any]]
"""The grid of one method on one seed: each with `strength`, and `validation` and `test` (figures by name)."""


def front(points: Points) -> list[int]:
    """Which points no other one beats in both accuracy and gap on the validation rows."""
    v = [(p["validation"]["accuracy"], p["validation"]["gap"]) for p in points]
    beaten = lambda i: any(
        a >= v[i][0] and g <= v[i][1] and (a, g) != v[i] for j, (a, g) in enumerate(v) if j != i
    )  # fmt: skip
    return [i for i in range(len(points)) if not beaten(i)]


def hypervolume(points: Points, reference: float) -> float:
    """Area between the reference point and the test figures of what validation keeps, in (accuracy, 1 - gap)."""
    kept = [points[i]["test"] for i in front(points)]
    found = sorted((t["gap"], t["accuracy"]) for t in kept if t["gap"] < WIDEST and t["accuracy"] > reference)
    area, best = 0.0, reference
    for i, (g, accuracy) in enumerate(found):
        best = max(best, accuracy)
        area += ((found[i + 1][0] if i + 1 < len(found) else WIDEST) - g) * (best - reference)
    return area


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One of our strengths against one point of a rival: ours minus theirs on test, paired over seeds."""

    strength: float
    accuracy: Paired
    gap: Paired

    @property
    def word(self) -> str:
        better = (self.accuracy.better, self.gap.worse)
        worse = (self.accuracy.worse, self.gap.better)
        if all(better):
            return "ours dominates in both, outside the intervals"
        if any(better) and not any(worse):
            return f"ours dominates: {'accuracy' if better[0] else 'gap'} outside its interval, the other within"
        if all(worse):
            return "DOMINATED in both, outside the intervals"
        if any(worse) and not any(better):
            return f"DOMINATED: {'accuracy' if worse[0] else 'gap'} outside its interval, the other within"
        return "neither dominates" if any(better) else "no difference outside the intervals"

    @property
    def dominates(self) -> bool:
        return self.word.startswith("ours")

    @property
    def dominated(self) -> bool:
        return self.word.startswith("DOMINATED")


def verdict(ours: Sequence[Points], theirs: Sequence[Points], at: int) -> Verdict:
    """Point `at` of a rival against that of our strengths that looks most dominating on the validation rows.

    `ours` and `theirs` hold one grid per seed, in the same order. Test rows have no say in the choice: it is the
    strength whose smaller lead, of accuracy and of gap in units of the rival's spread over seeds, is largest.
    """
    series = lambda grids, i, side, name: np.asarray([g[i][side][name] for g in grids])
    spread = lambda name: max(float(series(theirs, at, "validation", name).std()), 1e-3)

    def lead(i: int) -> float:
        accuracy = series(ours, i, "validation", "accuracy") - series(theirs, at, "validation", "accuracy")
        gap = series(theirs, at, "validation", "gap") - series(ours, i, "validation", "gap")
        return min(float(accuracy.mean()) / spread("accuracy"), float(gap.mean()) / spread("gap"))

    best = max(range(len(ours[0])), key=lead)
    compare = lambda name: paired(series(ours, best, "test", name), series(theirs, at, "test", name))
    return Verdict(strength=float(ours[0][best]["strength"]), accuracy=compare("accuracy"), gap=compare("gap"))


def draw(
    title: str, gap: str, curves: Mapping[str, Sequence[tuple[float, float]]], ours: Sequence[str], path: Path
) -> None:
    """Mean accuracy against mean gap of every method, ours with thick lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    for i, (name, points) in enumerate(curves.items()):
        style = dict(marker="o", linewidth=2.5) if name in ours else dict(marker="x", linewidth=1, linestyle="--")
        gaps, accuracies = [g for _, g in points], [a for a, _ in points]
        axes.plot(gaps, accuracies, label=name, color=f"C{i % 10}", **style)  # pyright: ignore[reportArgumentType]
    axes.set_xlabel(f"{gap.replace('_', ' ')} difference on test rows (less is fairer)")
    axes.set_ylabel("accuracy on test rows")
    axes.set_title(title)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)

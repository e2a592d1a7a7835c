"""AUC gaps between groups of texts, without what chance alone would show.

Axes: N rows.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxlm.data.labelled.lists import membership
from jaxlm.fairness.metrics import expected_calibration_error
from jaxlm.fairness.ranking import auc


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Largest minus smallest subgroup AUC.

    Attributes:
        raw: as measured.
        floor: mean of the same for groups drawn at random, of the same sizes and labels.
        low, high: 95 % interval of `corrected`, by a bootstrap of rows around the raw gap (percentiles of what the
            resampled gap adds to the raw one, so that its own upward bias cancels).
    """

    raw: float
    floor: float
    low: float
    high: float

    @property
    def corrected(self) -> float:
        return max(self.raw - self.floor, 0.0)


def gaps_of(texts: Sequence[Sequence[str]], groups: Mapping[str, Sequence[str]], least: int) -> dict[str, np.ndarray]:
    """Who belongs to each group, bool [N]; groups of fewer rows than `least` are left out."""
    found = membership(texts, groups)
    return {name: found[:, i] for i, name in enumerate(groups) if found[:, i].sum() >= least}


def gap(labels: np.ndarray, scores: np.ndarray, places: Sequence[np.ndarray]) -> float:
    """Of groups given as row numbers."""
    areas = [auc(labels[rows], scores[rows]) for rows in places]
    return max(areas) - min(areas)


def corrected(
    labels: np.ndarray,
    scores: np.ndarray,
    groups: Mapping[str, np.ndarray],
    permutations: int,
    resamples: int,
    seed: int,
) -> Gap:
    """The gap of bool labels [N] and scores [N], its noise floor and interval."""
    random = np.random.default_rng(seed)
    places = [np.flatnonzero(member) for member in groups.values()]
    raw = gap(labels, scores, places)
    sides = [np.flatnonzero(labels), np.flatnonzero(~labels)]
    drawn = []
    for _ in range(permutations):
        others = []
        for rows in places:
            counts = (int(labels[rows].sum()), int((~labels[rows]).sum()))
            parts = [random.choice(side, n, replace=False) for side, n in zip(sides, counts, strict=True)]
            others.append(np.concatenate(parts))
        drawn.append(gap(labels, scores, others))
    again = [gap(labels, scores, [random.choice(rows, len(rows)) for rows in places]) for _ in range(resamples)]
    floor = float(np.mean(drawn))
    low, high = np.percentile(again, [2.5, 97.5])
    return Gap(raw=raw, floor=floor, low=max(2 * raw - high - floor, 0.0), high=max(2 * raw - low - floor, 0.0))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ByGroup:
    """What decisions and scores are worth in the groups of an attribute.

    Attributes:
        opportunity: EOD, the largest difference between groups in the share of harmful texts called harmful.
        calibration: CWG, the largest expected calibration error of a group, over ten bins of equal mass.
        accuracy: the lowest share of right decisions in a cell of group and label.
        worst: that cell.
    """

    opportunity: float
    calibration: float
    accuracy: float
    worst: str


def by_group(labels: np.ndarray, scores: np.ndarray, groups: Mapping[str, np.ndarray]) -> ByGroup:
    """Of bool labels [N], scores [N], the probability of True, and bool groups [N]; decided at one half."""
    right = (scores > 0.5) == labels
    cells = {
        f"{name}, {'harmful' if side else 'harmless'}": float(right[member & (labels == side)].mean())
        for name, member in groups.items()
        for side in (True, False)
        if (member & (labels == side)).any()
    }
    rates = [value for cell, value in cells.items() if cell.endswith(", harmful")]
    worst = min(cells, key=lambda cell: cells[cell])
    return ByGroup(
        opportunity=max(rates) - min(rates),
        calibration=max(expected_calibration_error(labels[m], scores[m]) for m in groups.values()),
        accuracy=cells[worst],
        worst=worst,
    )

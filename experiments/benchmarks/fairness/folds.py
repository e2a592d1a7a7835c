"""Splits of a table, the same for every method, and what a method hands back."""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxlm.fairness.groups import Criterion
from jaxlm.fairness.metrics import Report, report
from jaxlm.fairness.tables import Table

TEST, VALIDATION = 0.3, 0.2
"""Shares: of all rows, and of what is left. Both stratified by label and group."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows of one side: standardised features without the attribute, labels, group codes (0 and 1)."""

    x: np.ndarray
    y: np.ndarray
    a: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """One seed's split. `few` says that the table has few columns, so that their products may be features too."""

    train: Part
    validation: Part
    test: Part
    criterion: Criterion
    seed: int
    few: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Decisions of one fit on validation and test rows; scores are probabilities, None if decisions are randomised."""

    strength: float
    validation: tuple[np.ndarray, np.ndarray | None]
    test: tuple[np.ndarray, np.ndarray | None]
    seconds: float


Method = Callable[[Fold, int], list[Outcome]]
"""Fits a fold at each strength of its grid (whose size is given), lowest first."""


def fold(table: Table, attribute: str, criterion: Criterion, seed: int, other: Table | None = None) -> Fold:
    """Splits by seed; the test rows are those of `other` where it is given."""
    groups, a = np.unique(table.attributes[attribute], return_inverse=True)
    rng = np.random.default_rng(seed)
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    for group in (0, 1):
        for label in (0, 1):
            rows = rng.permutation(np.flatnonzero((a == group) & (table.labels == label)))
            test = round(len(rows) * TEST)
            validation = round((len(rows) - test) * VALIDATION)
            for part, some in zip(parts, np.split(rows, [test, test + validation]), strict=True):
                part.append(some)
    test, validation, train = (np.sort(np.concatenate(part)) for part in parts)
    mean, scale = table.features[train].mean(0), table.features[train].std(0)
    used = scale > 1e-9
    of = lambda t, codes, rows: Part(
        x=(t.features[rows][:, used] - mean[used]) / scale[used], y=t.labels[rows], a=codes[rows]
    )
    held = of(table, a, test)
    if other is not None:
        codes = np.searchsorted(groups, other.attributes[attribute])
        held = of(other.like(table), codes, np.arange(len(other)))
    few = int(used.sum()) <= 10
    return Fold(
        train=of(table, a, train), validation=of(table, a, validation), test=held, criterion=criterion, seed=seed,
        few=few,
    )  # fmt: skip


def judge(part: Part, said: tuple[np.ndarray, np.ndarray | None]) -> Report:
    """The group report of some decisions and scores."""
    return report(part.y, said[0], part.a, said[1])


def gap(found: Report, criterion: Criterion) -> float:
    """The gap that the criterion is about."""
    return {
        "demographic_parity": found.demographic_parity,
        "equalized_odds": found.equalized_odds,
        "equal_opportunity": found.equal_opportunity,
    }[criterion]

"""How far predictions are off, how much a chosen plan loses, and how sure both figures are."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

STATISTICS = ("mean", "median", "p95", "max")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Verdict:
    """One quantity of one league on one set of rows, for our planner and for everyone else on the same rows.

    Attributes:
        what: the set, e.g. `vtrain_multi`.
        league: `zero-shot`, `16 runs`, `full profile`, `held-out model`, ...: what the predictor was allowed to see.
        quantity: e.g. `step time error, %`; every value below is in this unit, and smaller is better unless `larger`.
        ours: one value per row, or per group of rows where a plan is chosen.
        baselines: name -> values of the same rows, rerun here.
        published: name -> statistic -> figure that others print for the whole set (not rerun here).
        targets: statistic -> the most (with `larger`, the least) that counts as met.
        fitted: hashes of every row that any coefficient of ours saw.
        judged: hashes of the rows that `ours` was judged on. The two never meet.
        folds: where several fits share one verdict (each row judged by the fit that did not see it): the hashes of
            the fitted and of the judged rows of each fit. They never meet within a fold, and every judged row is in
            one fold only.
        constants: where the coefficients come from, in a few words.
        larger: larger values are better (AUC, rank correlation).
        shown: statistics that say something; of shares and of an AUC only the mean does.
        details: for machines.
    """

    what: str
    league: str
    quantity: str
    ours: np.ndarray
    baselines: dict[str, np.ndarray] = field(default_factory=dict)
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)
    fitted: frozenset[str] = frozenset()
    judged: frozenset[str] = frozenset()
    folds: tuple[tuple[frozenset[str], frozenset[str]], ...] = ()
    constants: str = ""
    larger: bool = False
    shown: tuple[str, ...] = STATISTICS
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if both := self.fitted & self.judged:
            raise ValueError(f"{self.what}, {self.league}: {len(both)} rows were fitted and are judged")
        seen: set[str] = set()
        for fitted, judged in self.folds:
            if both := (fitted & judged) | (seen & judged):
                raise ValueError(f"{self.what}, {self.league}: {len(both)} rows of a fold were fitted or judged before")
            seen |= judged
        if unknown := set(self.targets) - set(STATISTICS):
            raise ValueError(f"{self.what}: unknown statistic {sorted(unknown)}; it is one of {STATISTICS}")

    def met(self, name: str) -> bool | None:
        """Whether the target of a statistic is met; None where there is none."""
        if name not in self.targets:
            return None
        value = statistic(name, self.ours)
        return value >= self.targets[name] if self.larger else value <= self.targets[name]

    def replace(self, **changes: Any) -> "Verdict":
        return dataclasses.replace(self, **changes)


def statistic(name: str, values: np.ndarray) -> float:
    """mean, median, p95 or max of the values."""
    match name:
        case "mean":
            return float(np.mean(values))
        case "median":
            return float(np.median(values))
        case "p95":
            return float(np.percentile(values, 95))
        case "max":
            return float(np.max(values))
    raise ValueError(f"unknown statistic {name!r}; it is one of {STATISTICS}")


def interval(name: str, values: np.ndarray, *, samples: int, seed: int) -> tuple[float, float]:
    """95% bootstrap interval of a statistic, rows (or groups) drawn with replacement."""
    random = np.random.default_rng(seed)
    picks = random.integers(0, len(values), (samples, len(values)))
    found = [statistic(name, values[pick]) for pick in picks]
    return float(np.percentile(found, 2.5)), float(np.percentile(found, 97.5))


def errors(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Absolute error of each row, % of the measured value."""
    return 100.0 * np.abs(predicted / measured - 1.0)


def groups(keys: Iterable[Sequence[Any]], least: int = 2) -> list[np.ndarray]:
    """Positions of rows whose keys agree, one array per group of at least `least` rows."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for position, key in enumerate(keys):
        found.setdefault(tuple(key), []).append(position)
    return [np.array(rows) for rows in found.values() if len(rows) >= least]


def regret(score: np.ndarray, measured: np.ndarray, members: Sequence[np.ndarray], probes: int = 1) -> np.ndarray:
    """What the plan of smallest score loses against the best measured one, %, per group.

    With several probes the best of that many plans of smallest score is taken.
    """
    lost = []
    for rows in members:
        tried = rows[np.argsort(score[rows], kind="stable")[:probes]]
        lost.append(100.0 * (np.min(measured[tried]) / np.min(measured[rows]) - 1.0))
    return np.array(lost)


def mean_regret(measured: np.ndarray, members: Sequence[np.ndarray]) -> np.ndarray:
    """What a plan drawn at random loses on average, %, per group."""
    return np.array([100.0 * (np.mean(measured[rows]) / np.min(measured[rows]) - 1.0) for rows in members])

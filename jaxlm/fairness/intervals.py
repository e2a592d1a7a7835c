"""How sure a figure is: bootstrap intervals over rows, and paired comparisons over seeds."""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import stats


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A figure with its interval. `reason` says why there is none (value and bounds are then NaN)."""

    value: float
    low: float
    high: float
    resamples: int
    reason: str = ""


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    strata: np.ndarray,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap interval of `statistic`, which is handed row indices.

    Rows are drawn with replacement within each value of `strata` (for a gap: group and label together, so that every
    cell keeps its size). Two models are compared on the same rows by a statistic that is their difference. A resample
    whose statistic is NaN is left out; where that is more than one in ten, or the figure itself is NaN, it is refused.
    """
    rows = np.arange(len(strata))
    value = float(statistic(rows))
    if np.isnan(value):
        return refused("the figure itself is not defined on these rows")
    rng = np.random.default_rng(seed)
    _, codes = np.unique(np.asarray(strata).astype(str), return_inverse=True)
    cells = [np.flatnonzero(codes == c) for c in range(codes.max() + 1)]
    drawn = np.asarray(
        [statistic(np.concatenate([rng.choice(c, len(c)) for c in cells])) for _ in range(resamples)], np.float64
    )
    known = drawn[~np.isnan(drawn)]
    if known.size < 0.9 * resamples:
        return refused(f"{resamples - known.size} of {resamples} resamples are not defined")
    tail = (1 - confidence) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Interval(value=value, low=float(low), high=float(high), resamples=int(known.size))


def refused(reason: str) -> Interval:
    """No figure, and why."""
    return Interval(value=float("nan"), low=float("nan"), high=float("nan"), resamples=0, reason=reason)


def strata_of(*columns: np.ndarray) -> np.ndarray:
    """One label per row for the combination of some columns."""
    return np.asarray(["|".join(map(str, row)) for row in zip(*columns, strict=True)])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Ours minus theirs over the same seeds and splits: mean, its 95 % interval (Student's t) and two p-values.

    `p` is that of the paired t-test, `p_signs` that of Wilcoxon's signed ranks, which assumes no normality.
    """

    mean: float
    low: float
    high: float
    p: float
    p_signs: float
    seeds: int

    @property
    def better(self) -> bool:
        """Above zero outside the interval."""
        return self.low > 0

    @property
    def worse(self) -> bool:
        return self.high < 0


def paired(ours: np.ndarray, theirs: np.ndarray, confidence: float = 0.95) -> Paired:
    """Compares one figure per seed. Raises ValueError for other than two equally long series of at least three."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 3:
        raise ValueError(f"a paired comparison needs two equally long series of at least 3 seeds: {a.shape}, {b.shape}")
    d = a - b
    mean, error = float(d.mean()), float(d.std(ddof=1) / np.sqrt(len(d)))
    if error == 0.0:
        same = 1.0 if mean == 0.0 else 0.0
        return Paired(mean=mean, low=mean, high=mean, p=same, p_signs=same, seeds=len(d))
    reach = float(stats.t.ppf(0.5 + confidence / 2, len(d) - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, len(d) - 1))
    signs = float(np.asarray(stats.wilcoxon(d))[1])
    return Paired(mean=mean, low=mean - reach, high=mean + reach, p=p, p_signs=signs, seeds=len(d))

"""alpha(t) (eqs. 5 and 6): how many microbatches of a step each replica computes, from its measured throughput.

Eq. 5 weighs two groups of one global batch, L = alpha L_data + (1 - alpha) L_model, and eq. 6 moves the weight with
the throughput of the groups: alpha = 1 / (1 + exp(-gamma (eta_data - eta_model))). Here alpha is the share of the batch
that a replica computes, so loss and gradient stay what they are, and any number of replicas have one each:

    alpha_i = exp(gamma eta_i) / sum_j exp(gamma eta_j)                          (two replicas: eq. 6 itself)

With eta the natural logarithm of measured tokens/s and gamma = 1 this is throughput_i / sum of throughputs: the shares
with which all replicas finish together. Raw tokens/s as eta, to the letter of the paper, saturate (a gap of 500
tokens/s gives 1); `literal` keeps them as an option.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

EVIDENCE = 3
"""Steps measured before shares move, and steps in a row that make a change of speed: the fewest with a median that one
outlier does not reach."""

MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation (1 / 0.6745)."""

MAD_SMALL = {2: 1.196, 3: 1.495, 4: 1.363, 5: 1.206, 6: 1.200, 7: 1.140, 8: 1.129, 9: 1.107}
"""What the deviation of few samples is multiplied by to be unbiased, for more n / (n - 0.8). Croux and Rousseeuw,
Time-efficient algorithms for two highly robust estimators of scale, 1992, table of b_n."""

MEDIAN_ERROR = 1.2533
"""Standard error of the median over that of the mean for normal noise: sqrt(pi / 2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """How shares follow throughput.

    Attributes:
        gamma: sensitivity of eq. 6; 1 makes all replicas finish together, 0 keeps the shares even.
        hysteresis: shares move only where the slowest replica is then expected to finish earlier by more than this
            fraction.
        confidence: and by more than this many standard errors of what was measured.
        window: most steps that a throughput is estimated from; fewer after a change of speed.
        ceiling: most microbatches of one replica, as a multiple of the even share; also the room kept for them.
        literal: take tokens/s themselves as eta, as eq. 6 is printed, and not their logarithm.
    """

    gamma: float = 1.0
    hysteresis: float = 0.05
    confidence: float = 3.0
    window: int = 32
    ceiling: float = 2.0
    literal: bool = False

    def __post_init__(self) -> None:
        for name in ("gamma", "hysteresis", "confidence"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"{name}={value} must be a finite number, at least 0")
        if self.window < 2 * EVIDENCE:
            raise ValueError(f"window={self.window} must be at least {2 * EVIDENCE} steps")
        if not (math.isfinite(self.ceiling) and self.ceiling >= 1.0):
            raise ValueError(f"ceiling={self.ceiling} must be a finite number, at least 1: the even share")

    def bounds(self, replicas: int, total: int) -> tuple[int, int]:
        """Fewest and most microbatches of one replica. One at least, or its throughput would not be known.

        Raises ValueError where there are fewer microbatches than replicas.
        """
        if replicas < 1 or total < replicas:
            raise ValueError(
                f"{total} microbatches cannot be shared by {replicas} replicas: each computes at least one"
            )
        return 1, min(math.ceil(self.ceiling * total / replicas), total - replicas + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Who computes how much of the next step, and what that is decided from. Plain data, equal on all processes.

    Attributes:
        microbatches: of each replica; they add up to those of the whole step.
        alpha: the share of each replica by eq. 6, before it is rounded to whole microbatches; adds up to 1.
        measured: log tokens/s of each replica, one row per step since its speed last changed, oldest first.
    """

    microbatches: tuple[int, ...]
    alpha: tuple[float, ...]
    measured: tuple[tuple[float, ...], ...] = ()

    @property
    def total(self) -> int:
        return sum(self.microbatches)

    def to_json(self) -> dict[str, Any]:
        return {
            "microbatches": list(self.microbatches),
            "alpha": list(self.alpha),
            "measured": [list(row) for row in self.measured],
        }


def begin(balance: Balance, replicas: int, total: int, weights: Sequence[float] = ()) -> Shares:
    """The shares of a run's first step: in proportion to `weights` (a plan's initial shares), even without.

    Raises ValueError where there are not as many weights as replicas, or one is not positive.
    """
    given = np.asarray(weights or [1.0] * replicas, np.float64)
    if given.shape != (replicas,) or not (np.isfinite(given).all() and (given > 0).all()):
        raise ValueError(f"shares {tuple(weights)} must be one positive number for each of {replicas} replicas")
    alpha = given / given.sum()
    quota = quotas(np.log(alpha), total, *balance.bounds(replicas, total))
    return Shares(microbatches=whole(quota, total), alpha=tuple(map(float, alpha)))


def resume(balance: Balance, saved: Mapping[str, Any], replicas: int, total: int) -> Shares:
    """The shares that a checkpoint holds (`Shares.to_json`), for as many replicas and microbatches as there are now.

    With other replicas, each takes over the part of the batch at its place: replica i of N stands for [i/N, (i+1)/N),
    and what the old ones were measured to do says nothing of the new ones. Raises ValueError for what is no Shares.
    """
    try:
        microbatches = tuple(int(count) for count in saved["microbatches"])
        alpha = np.asarray(saved["alpha"], np.float64)
        measured = tuple(tuple(float(value) for value in row) for row in saved["measured"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no shares can be read from {saved!r}: {error}") from None
    if len(microbatches) == replicas and sum(microbatches) == total:
        low, high = balance.bounds(replicas, total)
        if min(microbatches) >= low and max(microbatches) <= high:
            return Shares(microbatches=microbatches, alpha=tuple(map(float, alpha)), measured=measured)
    before = np.concatenate([[0.0], np.cumsum(alpha / alpha.sum())])
    edges = np.interp(np.linspace(0.0, 1.0, replicas + 1), np.linspace(0.0, 1.0, len(before)), before)
    shares = begin(balance, replicas, total, tuple(np.diff(edges)))
    return shares if replicas != len(microbatches) else dataclasses.replace(shares, measured=measured)


def forget(shares: Shares) -> Shares:
    """The same shares, to be judged by measurements from now on: the speed of a replica is known to have changed."""
    return dataclasses.replace(shares, measured=())


def observe(balance: Balance, shares: Shares, tokens_per_second: Sequence[float] | np.ndarray) -> Shares:
    """The shares after one more step, in which each replica computed at `tokens_per_second` while it was computing.

    They are those before unless eq. 6 asks for others by more than the hysteresis and the noise of the measurements.
    Deterministic: processes that call it with equal arguments agree. Raises ValueError for a throughput that is not
    positive, or another number of them than replicas.
    """
    rates = np.asarray(tokens_per_second, np.float64)
    replicas = len(shares.microbatches)
    if rates.shape != (replicas,) or not (np.isfinite(rates).all() and (rates > 0).all()):
        raise ValueError(f"throughputs {tuple(tokens_per_second)} must be one positive number for each of {replicas}")
    rows = np.asarray([*shares.measured, np.log(rates)])[-balance.window :]
    rows = _since_change(balance, rows)
    measured = tuple(tuple(map(float, row)) for row in rows)
    if len(rows) < EVIDENCE:
        return dataclasses.replace(shares, measured=measured)
    log_alpha = eq6(balance, np.median(rows, axis=0))
    alpha = tuple(map(float, np.exp(log_alpha)))
    quota = quotas(log_alpha, shares.total, *balance.bounds(replicas, shares.total))
    proposed = whole(quota, shares.total)
    gain = math.log(_latest(shares.microbatches, quota) / _latest(proposed, quota))
    # Raw throughputs as eta have no error of comparable size: any noise saturates them.
    error = 0.0 if balance.literal else balance.gamma * float(np.max(noise(rows))) * MEDIAN_ERROR / math.sqrt(len(rows))
    moved = gain > max(balance.hysteresis, balance.confidence * error)
    return Shares(microbatches=proposed if moved else shares.microbatches, alpha=alpha, measured=measured)


def eq6(balance: Balance, log_rates: np.ndarray) -> np.ndarray:
    """Logarithm of each replica's alpha, [replicas], from log tokens/s: the softmax of gamma eta."""
    eta = balance.gamma * (np.exp(log_rates) if balance.literal else log_rates)
    eta = eta - eta.max()
    return eta - math.log(float(np.exp(eta).sum()))


def quotas(log_alpha: np.ndarray, total: int, low: int, high: int) -> np.ndarray:
    """Fractions of microbatches, [replicas], that add up to `total`: proportional to alpha where the bounds allow.

    A replica at a bound stays there, and the others share the rest in proportion. In logarithms, because alpha may be
    too small to be a number.
    """
    quota, free = np.zeros(len(log_alpha)), np.ones(len(log_alpha), bool)
    while free.any():
        weight = np.exp(log_alpha[free] - log_alpha[free].max())
        quota[free] = (total - quota[~free].sum()) * weight / weight.sum()
        above, below = np.maximum(quota - high, 0.0) * free, np.maximum(low - quota, 0.0) * free
        if above.sum() + below.sum() <= 1e-9 * total:
            break
        # Who is on the side that is further out reaches its bound in the end, whatever becomes of the others.
        beyond, bound = (above > 0, high) if above.sum() >= below.sum() else (below > 0, low)
        quota[beyond], free = bound, free & ~beyond
    return quota


def whole(quota: np.ndarray, total: int) -> tuple[int, ...]:
    """Whole microbatches that add up to `total`, each replica's less than one away from its quota.

    What is left after rounding down goes, one each, to those who would then finish first.
    """
    counts = np.floor(quota + 1e-6).astype(int)
    after = np.where(quota > counts + 1e-6, (counts + 1) / quota, np.inf)
    for replica in np.argsort(after, kind="stable")[: total - int(counts.sum())]:
        counts[replica] += 1
    return tuple(int(count) for count in counts)


def noise(rows: np.ndarray) -> np.ndarray:
    """Standard deviation of each replica's measurements from step to step, [replicas], of rows [steps, replicas].

    From median absolute deviations, so that a step that was interrupted does not count as noise; that of few steps is
    no lower than that of all replicas together.
    """
    deviations = np.abs(rows - np.median(rows, axis=0))
    steps = len(rows)
    scale = MAD_TO_SIGMA * MAD_SMALL.get(steps, steps / (steps - 0.8))
    each = np.median(deviations, axis=0)
    return scale * np.maximum(each, np.median(deviations))


def _since_change(balance: Balance, rows: np.ndarray) -> np.ndarray:
    """The rows that tell of the present: the newest alone where all of them say that a replica's speed has changed."""
    if len(rows) < 2 * EVIDENCE:
        return rows
    before, now = rows[:-EVIDENCE], rows[-EVIDENCE:]
    limit = np.maximum(balance.hysteresis, balance.confidence * noise(before))
    apart = now - np.median(before, axis=0)
    changed = (apart.min(axis=0) > limit) | (apart.max(axis=0) < -limit)
    return now if changed.any() else rows


def _latest(microbatches: Sequence[int], quota: np.ndarray) -> float:
    """When the last replica finishes, where those that compute just their quota finish at 1."""
    return float(np.max(np.asarray(microbatches) / quota))

"""Notices when a plan that has been running steadily takes another time per step, and not when a step is merely odd."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Alertness:
    """How much must change, and how sure one must be.

    Attributes:
        settle: steps from which the usual time and its spread are first learned.
        window: steps over which they are kept up to date.
        recent: the newest steps; a change is looked for among them, and what is usual is learned from those before.
        least: steps that must have changed before a change is believed.
        shift: smallest lasting change of the log step time that matters: half of it at least must be seen. 0.05 is
            5 %, several times the 1 % to which step times repeat (planners.md 5, rule 5).
        outlier: a step counts for at most this many standard deviations, so no few of them raise an alarm.
        threshold: standard deviations, of a mean of so many steps, at which a change is declared.
        decay: how fast a machine that wanders forgets where it was: what is left of a correlation one step later.
        lags: steps apart of which correlations are read.
        floor: least spread of the log step time that is believed, of a clock and a scheduler.
    """

    settle: int = 30
    window: int = 200
    recent: int = 20
    least: int = 5
    shift: float = 0.05
    outlier: float = 3.0
    threshold: float = 5.0
    decay: float = 0.9
    lags: int = 8
    floor: float = 0.005


@dataclass(slots=True)
class Drift:
    """A generalised likelihood ratio over when the change came (Willsky and Jones 1976; Lai 1995, windows of limited
    length), whose variance of a mean counts that neighbouring steps resemble each other.

    Of the newest steps, the last `least`, one more, and so on up to all are compared with what was usual before. Where
    the machine wanders, a mean of n steps is far less sure than n of them should make it: correlations decay with
    distance, from a height that is read off the steps, with one standard error for safety.

    `seen` holds the log seconds of the steps that say what is usual, `newest` those after them, and `since` those that
    the change was declared upon.
    """

    alertness: Alertness = field(default_factory=Alertness)
    seen: list[float] = field(default_factory=list)
    newest: list[float] = field(default_factory=list)
    since: list[float] = field(default_factory=list)

    def __call__(self, seconds: float) -> bool:
        """Takes the next step's seconds; true when the time has changed for good, with the new steps in `since`."""
        a, value = self.alertness, math.log(seconds)
        if len(self.seen) < a.settle:
            self.seen.append(value)
            return False
        self.newest.append(value)
        if len(self.newest) > a.recent:
            self.seen = [*self.seen, self.newest.pop(0)][-a.window :]
        usual, spread = self.usual()
        alike, known = self.resemblance(), np.array(len(self.seen))
        # Nor is the usual time known exactly; the variance of a median is pi / 2 times that of a mean.
        doubt = 0.5 * math.pi * _of_mean(known, alike, a.decay)
        # A lasting shift must be able to pass, so the cut-off grows with half the shift that matters, and with what a
        # mean of all the newest steps has to reach where they resemble each other.
        reach = 1.25 * a.threshold * math.sqrt(float(_of_mean(np.array(a.recent), alike, a.decay) + doubt))
        most = max(a.outlier, 0.5 * (a.shift / spread + a.outlier), reach)
        excess = np.clip((np.array(self.newest[::-1]) - usual) / spread, -most, most)
        count = np.arange(1, len(excess) + 1)
        means = np.abs(np.cumsum(excess)) / count
        variance = _of_mean(count, alike, a.decay) + doubt
        sure = np.where((count >= a.least) & (means * spread >= 0.5 * a.shift), means / np.sqrt(variance), 0.0)
        best = int(np.argmax(sure))
        if sure[best] <= a.threshold:
            return False
        self.since = self.newest[-best - 1 :]
        return True

    def usual(self) -> tuple[float, float]:
        """The median log seconds of a step and their spread, before any change."""
        seen = np.array(self.seen)
        middle = float(np.median(seen))
        # 1.4826 makes the median absolute deviation of a Gaussian its standard deviation. Few steps do not show how
        # far a machine wanders: the first `settle` count for two thirds of what they are.
        spread = 1.4826 * float(np.median(np.abs(seen - middle))) * (1.0 + 0.5 * self.alertness.settle / len(seen))
        return middle, max(spread, self.alertness.floor)

    def resemblance(self) -> float:
        """Correlation of neighbouring steps, extrapolated to a distance of none: 0 for noise, 1 for a slow wave."""
        a = self.alertness
        middle, spread = self.usual()
        seen = np.clip((np.array(self.seen) - middle) / spread, -a.outlier, a.outlier)
        seen -= seen.mean()
        power, count = float(seen @ seen), len(seen)
        if power == 0.0:
            return 0.0
        apart = np.arange(1, min(a.lags, count // 2) + 1)
        measured = np.array([seen[:-k] @ seen[k:] / (count - k) for k in apart]) * count / power
        decays = a.decay**apart
        height = float(measured @ decays / (decays @ decays))
        return float(np.clip(height + 1.0 / math.sqrt(count * float(decays @ decays)), 0.0, 1.0))

    def shift(self) -> float:
        """How far the log seconds of the steps in `since` lie from what was usual."""
        return float(np.median(self.since)) - self.usual()[0] if self.since else 0.0

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("seen", "newest", "since")}

    @staticmethod
    def restore(alertness: Alertness, saved: dict[str, Any]) -> "Drift":
        """From `to_json`, or from what a CUSUM left, whose steps under suspicion, of any number, were in `since`."""
        if "newest" in saved:
            return Drift(alertness, list(saved["seen"]), list(saved["newest"]), list(saved["since"]))
        steps = [*saved["seen"], *saved["since"]]
        cut = max(len(saved["seen"]), len(steps) - alertness.recent, min(alertness.settle, len(steps)))
        return Drift(alertness, steps[:cut][-alertness.window :], steps[cut:])


def _of_mean(count: np.ndarray, alike: float, decay: float) -> np.ndarray:
    """Variance of the mean of `count` neighbours of variance 1 whose correlation is alike * decay^distance."""
    pairs = decay / (1 - decay) - decay * (1 - decay**count) / (count * (1 - decay) ** 2)
    return (1 + 2 * alike * pairs) / count

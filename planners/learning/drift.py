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
        window: steps over which they are kept up to date, so that slow wandering counts as spread and not as change.
        shift: smallest lasting change of the log step time that matters; 0.05 is 5 %, several times the 1 % to which
            step times repeat (planners.md 5, rule 5).
        spreads: the same in standard deviations of a step, for a noisy machine; the larger of the two counts.
        outlier: a step counts for at most this many standard deviations, so no single one raises an alarm.
        threshold: accumulated excess, in standard deviations, at which a change is declared. With half of `spreads`
            as the reference, steady Gaussian steps reach it about once in exp(spreads x threshold) steps (Siegmund's
            approximation for a CUSUM, exp(2 k h)).
        floor: least spread of the log step time that is believed, of a clock and a scheduler.
    """

    settle: int = 20
    window: int = 200
    shift: float = 0.05
    spreads: float = 3.0
    outlier: float = 4.0
    threshold: float = 10.0
    floor: float = 0.005


@dataclass(slots=True)
class Drift:
    """A two-sided CUSUM on the log step time (Page 1954), its terms cut off at `outlier` spreads.

    `seen` holds the last steps before the one that is judged, `up` and `down` the accumulated excess over what is usual
    among them, and `since` the log seconds of the steps that the excess has accumulated over.
    """

    alertness: Alertness = field(default_factory=Alertness)
    seen: list[float] = field(default_factory=list)
    up: float = 0.0
    down: float = 0.0
    since: list[float] = field(default_factory=list)

    def __call__(self, seconds: float) -> bool:
        """Takes the next step's seconds; true when the time has changed for good, with the new steps in `since`."""
        a, value = self.alertness, math.log(seconds)
        if len(self.seen) < a.settle:
            self.seen.append(value)
            return False
        usual, spread = self.usual()
        slack = 0.5 * max(a.spreads, a.shift / spread)
        # A shift of many spreads must be able to pass the slack: the cut-off grows with it.
        most = max(a.outlier, slack + 0.5 * a.outlier)
        excess = float(np.clip((value - usual) / spread, -most, most))
        self.up, self.down = max(self.up + excess - slack, 0.0), max(self.down - excess - slack, 0.0)
        if self.up == self.down == 0.0:
            self.seen = [*self.seen, *self.since, value][-a.window :]
            self.since = []
            return False
        self.since.append(value)
        return max(self.up, self.down) > a.threshold

    def usual(self) -> tuple[float, float]:
        """The median log seconds of a step and their spread, before any change."""
        seen = np.array(self.seen)
        middle = float(np.median(seen))
        # 1.4826 makes the median absolute deviation of a Gaussian its standard deviation. Few steps do not show how
        # far a machine wanders: the first `settle` count for two thirds of what they are.
        spread = 1.4826 * float(np.median(np.abs(seen - middle))) * (1.0 + 0.5 * self.alertness.settle / len(seen))
        return middle, max(spread, self.alertness.floor)

    def shift(self) -> float:
        """How far the log seconds of the steps in `since` lie from what was usual."""
        return float(np.median(self.since)) - self.usual()[0] if self.since else 0.0

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("seen", "up", "down", "since")}

    @staticmethod
    def restore(alertness: Alertness, saved: dict[str, Any]) -> "Drift":
        return Drift(alertness=alertness, **saved)

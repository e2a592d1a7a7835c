"""The learning agent: chooses among plans that fit, by Thompson sampling, from what steps really take.

States: what is believed of every plan's step time (`belief.py`), the plan that runs, steps that are left.
Actions: go on; probe another plan for a few steps; adopt one until the machine changes. An arm is a plan together
with a setting of alpha(t) (gamma and hysteresis of eq. 6), so both are chosen by the same rule.
Reward: measured tokens/s, that is, minus the log of the step seconds: the batch is the same under every plan.

A change of plan costs seconds (resharding, compiling), so it must be expected to win them back in the steps that are
left: that price is what ends the exploration. No arm that does not fit is ever an action.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from planners.learning.belief import Belief, Evidence, Uncertainty
from planners.learning.drift import Alertness, Drift
from planners.plan import PlanError

Kind = Literal["keep", "probe", "adopt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One action: a plan, and how alpha(t) moves under it.

    Attributes:
        key: names it for ever.
        summary: what a person calls it.
        parts: predicted seconds of a step, by part.
        sizes: positive quantities by which plans resemble each other, the same ones for each arm.
        memory: predicted bytes of the fullest device.
        gamma: sensitivity of alpha to the difference in throughput (eq. 6); None where shares are equal.
        hysteresis: relative difference in shares below which alpha rests; None likewise.
    """

    key: str
    summary: str
    parts: dict[str, float]
    sizes: tuple[float, ...]
    memory: float
    gamma: float | None = None
    hysteresis: float | None = None

    @property
    def predicted(self) -> float:
        """Predicted seconds of a step."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How the agent decides.

    Attributes:
        draws: samples of the belief per decision; the arm that is best in most of them is taken. 1 is Thompson
            sampling as printed (Thompson 1933), which with a handful of probes wastes some on unlikely arms.
        probes: most probes from one change of the machine to the next; 0: as many as there are arms.
        worth: a change must be expected to save this share of the remaining time. Differences below about 1 % are
            within the noise of a measurement (planners.md 5, rule 5); half of that is not worth a recompilation.
        noise: spread of one log step time before any was seen, as `Uncertainty.own`.
        steady: spread between two visits to one plan that no number of steps removes (planners.md 5, rule 5).
        sure: share of the draws in which a plan that was measured before must be faster to be returned to.
        other: how far parts that are no links may be the cause of a change, against a link: a device that heats up
            loses about a fifth of its clock, a link that fails over loses half of its bandwidth.
        seed: of the draws.
    """

    draws: int = 256
    probes: int = 0
    worth: float = 0.005
    noise: float = 0.01
    steady: float = 0.01
    sure: float = 0.9
    other: float = 0.3
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do next, and why.

    Attributes:
        arm: index of the arm to run.
        kind: `probe`: for a few steps, then decide again; `adopt`: change to it; `keep`: stay with what runs.
        reason: one sentence.
        seconds: its expected step seconds, and `spread` the standard deviation of their logarithm.
        gain: seconds that the change is expected to save in the steps that are left, its price paid.
    """

    arm: int
    kind: Kind
    reason: str
    seconds: float
    spread: float
    gain: float


class Agent:
    """Decides between arms, learns from step times, watches for a change of the machine.

    Args:
        arms: the candidates, best prediction first; those above `budget` are left out.
        budget: bytes that a plan may use on a device.
        links: names of the parts that are communication.
        evidence: earlier measurements, of this job or of others.
        job: the name that evidence of this very job carries.

    Raises:
        PlanError: no arm fits.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        budget: float,
        *,
        links: Sequence[str] = (),
        evidence: Sequence[Evidence] = (),
        job: str = "",
        habits: Habits | None = None,
        uncertainty: Uncertainty | None = None,
        alertness: Alertness | None = None,
    ):
        self.arms = tuple(arm for arm in arms if arm.memory <= budget)
        if not self.arms:
            least = min((arm.memory for arm in arms), default=0.0)
            raise PlanError(f"none of {len(arms)} plans fits {budget:.3g} bytes; the smallest needs {least:.3g}")
        self.links, self.habits = tuple(links), habits or Habits()
        self.alertness = alertness or Alertness()
        self.belief = Belief(
            [arm.parts for arm in self.arms],
            [arm.sizes for arm in self.arms],
            links=links,
            evidence=evidence,
            job=job,
            uncertainty=uncertainty,
        )
        self.drift = Drift(self.alertness)
        self.measured = [0] * len(self.arms)
        self.refused: set[int] = set()
        self.probes = 0
        self.decisions = 0

    def refuse(self, arm: int) -> None:
        """The compiler says that this arm does not fit: it is never an action again."""
        self.refused.add(arm)

    def observe(self, arm: int, seconds: Sequence[float]) -> None:
        """Learns from steps of an arm, none of them the first after a change."""
        values = np.log(np.asarray(seconds, float))
        count = len(values)
        # The spread of a step: two pseudo-steps of the assumed noise, and what these steps say.
        spread = (2 * self.habits.noise**2 + float(np.sum((values - values.mean()) ** 2))) / (count + 1)
        # The variance of a median is pi / 2 times that of a mean.
        variance = 0.5 * np.pi * spread / count + self.habits.steady**2
        self.belief.update(arm, float(np.median(values)), variance)
        self.measured[arm] += count

    def decide(
        self,
        current: int,
        left: int,
        switch: Sequence[float],
        back: float,
        steps: int,
    ) -> Decision:
        """The next action.

        Args:
            current: the arm that runs.
            left: steps until the end of the run.
            switch: seconds it costs to change to each arm; that of `current` is not read.
            back: seconds it costs to return from a probe to a plan that is compiled.
            steps: steps of a probe.
        """
        random = np.random.default_rng((self.habits.seed, self.decisions))
        self.decisions += 1
        samples, price = self.belief.draw(random, self.habits.draws), np.asarray(switch, float)
        means, spreads = self.belief.log_seconds()
        known = np.array(self.measured) > 0
        known[current] = True
        known[list(self.refused)] = False
        home = int(np.argmin(np.where(known, means, np.inf)))
        worth = self.habits.worth * left * float(np.exp(means[home]))

        gains = trial_gains(samples, home, left, price, back, steps)
        expected = gains.mean(axis=0)
        open_ = ~known & (expected > worth)
        open_[list(self.refused)] = False
        if open_.any() and self.probes < (self.habits.probes or len(self.arms)):
            wins = np.bincount(np.where(open_, gains, -np.inf).argmax(axis=1), minlength=len(self.arms))
            best = int(np.lexsort((expected, np.where(open_, wins, -1)))[-1])
            ahead = float(np.mean(samples[:, best] < samples[:, home]))
            why = (
                f"expected {_faster(means[best] - means[home])} than the best measured, and faster in {ahead:.0%} of "
                f"{self.habits.draws} draws; to try it is worth {expected[best]:.3g} s in {left} steps, its price paid"
            )
            return self._say(best, "probe", why, means, spreads, float(expected[best]))

        saved = float(np.mean(samples[:, current] - samples[:, home])) * left - price[home]
        ahead = float(np.mean(samples[:, home] < samples[:, current]))
        if home != current and saved > worth and ahead >= self.habits.sure:
            why = f"measured {_faster(means[home] - means[current])}, which saves {saved:.3g} s in {left} steps"
            return self._say(home, "adopt", why, means, spreads, saved)
        if not (~known).any():
            why = "every plan that fits has been measured, and none is faster by more than its price"
        else:
            why = f"no other plan is expected to win back its price: the best gains {expected[~known].max():.3g} s"
        return self._say(current, "keep", why, means, spreads, 0.0)

    def _say(self, arm: int, kind: Kind, reason: str, means: np.ndarray, spreads: np.ndarray, gain: float) -> Decision:
        return Decision(
            arm=arm,
            kind=kind,
            reason=reason,
            seconds=float(np.exp(means[arm])),
            spread=float(spreads[arm]),
            gain=gain,
        )

    def begin(self, decision: Decision) -> None:
        """The decision is being carried out: a probe is counted, a plan to stay with is watched from here."""
        if decision.kind == "probe":
            self.probes += 1
        else:
            self.drift = Drift(self.alertness)

    def watch(self, arm: int, seconds: float) -> bool:
        """Takes a step of a plan that is no probe; true when the machine has changed, and then what other plans took
        before is known no longer."""
        if not self.drift(seconds):
            return False
        self.belief.relax(arm, self.drift.shift(), self.habits.other, self.links)
        evidence, self.drift = self.drift.since, Drift(self.alertness)
        self.measured, self.probes = [0] * len(self.arms), 0
        self.observe(arm, [math.exp(value) for value in evidence])
        return True

    def best(self) -> int:
        """The arm with the least expected log seconds."""
        return int(np.argmin(self.belief.log_seconds()[0]))

    def to_json(self) -> dict[str, Any]:
        return {
            "arms": [arm.key for arm in self.arms],
            "belief": self.belief.to_json(),
            "drift": self.drift.to_json(),
            "measured": self.measured,
            "refused": sorted(self.refused),
            "probes": self.probes,
            "decisions": self.decisions,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Goes on from `to_json`. Raises ValueError when that is of other arms."""
        if saved["arms"] != [arm.key for arm in self.arms]:
            raise ValueError("the saved agent chose among other plans")
        self.belief.restore(saved["belief"])
        self.drift = Drift.restore(self.alertness, saved["drift"])
        self.measured, self.probes = list(saved["measured"]), saved["probes"]
        self.refused, self.decisions = set(saved["refused"]), saved["decisions"]


def _faster(difference: float) -> str:
    """`3.1% faster`, or slower, for a difference of log seconds."""
    return f"{abs(math.expm1(difference)):.1%} {'faster' if difference < 0 else 'slower'}"


def trial_gains(samples: np.ndarray, home: int, left: int, switch: np.ndarray, back: float, steps: int) -> np.ndarray:
    """Seconds saved [draws, arms] by trying each arm for `steps` of the `left` steps instead of running `home`: kept if
    it proves faster, else left again. `samples` are step seconds [draws, arms]."""
    faster = samples[:, home, None] - samples
    kept = faster * left - switch
    returned = faster * min(steps, left) - switch - back
    return np.where(faster > 0, np.maximum(kept, returned), returned)

"""What recomputing costs and keeping takes, corrected by what steps really took: the feedback profiles of eq. 13.

A step under a mix of policies is predicted to take

    base + sum over policies k of layers_k x seconds_k

and its peak is the largest of the `moments` of `planners.remat.policy`, which is linear in the kept bytes of the
policies too. Both are Bayesian linear regressions on factors whose mean is 1 before anything was measured:

    seconds_k = predicted seconds_k x factor_k
    kept_k    = predicted kept_k x factor_k, and a number of bytes that every moment needs beyond what is predicted

The factors of all policies have a part in common, so a step that is slow under one says that the others are slow as
well. Nominal rates of a host may be far off, so the first measurement sets the unit of seconds.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planners.remat.policy import Around, Policy, Problem, Run

Key = tuple[tuple[str, ...] | None, tuple[str, ...], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """How wrong predictions may be: standard deviations of factors.

    Attributes:
        base: seconds of the step without recomputation, once the first step has set the unit.
        seconds: seconds of recomputing, all policies alike. On a CPU a predicted recomputation misses by half.
        own_seconds: likewise of one policy alone.
        kept: kept bytes, all policies alike; and `own_kept` of one (compiled steps: within a few per cent).
        beyond: bytes that every mix needs beyond the prediction, as a share of the first peak.
        steady: spread between two epochs of one mix that no number of steps removes (planners.md 5, rule 5), before
            two were seen.
        noise: spread of one step time before any was seen.
        bytes: relative error of a peak read off a compiled program, for what is linear here and not there.
    """

    base: float = 0.3
    seconds: float = 0.5
    own_seconds: float = 0.3
    kept: float = 0.1
    own_kept: float = 0.05
    beyond: float = 0.1
    steady: float = 0.01
    noise: float = 0.02
    bytes: float = 0.002


@dataclass(slots=True)
class Gaussian:
    """A belief about a vector, learned from measured linear combinations of it."""

    mean: np.ndarray
    covariance: np.ndarray

    def learn(self, weights: np.ndarray, value: float, variance: float) -> None:
        """`weights @ vector` was measured to be `value`, with that variance."""
        gain = self.covariance @ weights
        gain /= weights @ gain + variance
        self.mean = self.mean + gain * (value - weights @ self.mean)
        rest = np.eye(len(gain)) - np.outer(gain, weights)
        # Joseph's form stays positive definite however often it is rounded.
        self.covariance = rest @ self.covariance @ rest.T + variance * np.outer(gain, gain)

    def draw(self, random: np.random.Generator, count: int) -> np.ndarray:
        """Samples [count, n]."""
        return random.multivariate_normal(self.mean, self.covariance, count, method="eigh")

    def to_json(self) -> dict[str, Any]:
        return {"mean": self.mean.tolist(), "covariance": self.covariance.tolist()}

    @classmethod
    def restore(cls, saved: dict[str, Any]) -> "Gaussian":
        return cls(np.array(saved["mean"]), np.array(saved["covariance"]))


class RematCosts:
    """Seconds and bytes of each policy as they are believed.

    Args:
        policies: what a layer may do, as predicted; their seconds are those of a whole step.
        base: predicted seconds of a step without any recomputation.
        doubt: how wrong predictions may be.
        around: what else takes memory.
    """

    def __init__(
        self, policies: Sequence[Policy], base: float, doubt: Doubt | None = None, around: Around | None = None
    ):
        self.around = around or Around()
        self.policies = tuple(sorted(policies, key=lambda each: (each.seconds, -each.kept)))
        self.keys = [key(each) for each in self.policies]
        self.base, self.doubt = base, doubt or Doubt()
        self.unit: float | None = None
        self.measured = 0
        # What is known of the spread between epochs: two pseudo-pairs of the assumed one, and the pairs that were seen.
        self.pairs, self.apart = 2.0, 2 * self.doubt.steady**2
        self.last: dict[str, float] = {}
        count, doubts = len(self.policies), self.doubt
        self.again = np.array([each.seconds for each in self.policies], float)
        own, alike = np.full(count, doubts.own_seconds**2), np.full((count, count), doubts.seconds**2)
        covariance = np.zeros((count + 1, count + 1))
        covariance[0, 0] = doubts.base**2
        covariance[1:, 1:] = alike + np.diag(own)
        self.time = Gaussian(np.ones(count + 1), covariance)
        covariance = np.zeros((count + 1, count + 1))
        covariance[1:, 1:] = doubts.kept**2 + np.diag(np.full(count, doubts.own_kept**2))
        self.room = Gaussian(np.concatenate([[0.0], np.ones(count)]), covariance)

    def layers(self, runs: Sequence[Run]) -> np.ndarray:
        """Layers by policy: int [policies]."""
        counts = np.zeros(len(self.policies), int)
        for run in runs:
            counts[self.keys.index(key(run.policy))] += run.layers
        return counts

    def _weights(self, runs: Sequence[Run]) -> np.ndarray:
        """What the seconds of a step are, as a combination of base and factors: float [1 + policies]."""
        return np.concatenate([[self.base], self.layers(runs) * self.again])

    def learn_seconds(self, runs: Sequence[Run], seconds: Sequence[float]) -> float:
        """Learns from the steps of an epoch under a mix; their median."""
        values, doubt = np.asarray(seconds, float), self.doubt
        median = float(np.median(values))
        weights = self._weights(runs)
        if self.unit is None:
            self.unit = median / float(weights.sum())
        spread = (2 * doubt.noise**2 + float(np.sum((values / median - 1.0) ** 2))) / (len(values) + 1)
        # The variance of a median is pi / 2 times that of a mean.
        share = 0.5 * np.pi * spread / len(values) + self._between(str(self.layers(runs).tolist()), median)
        self.time.learn(weights, median / self.unit, share * (median / self.unit) ** 2)
        self.measured += 1
        return median

    def _between(self, mix: str, median: float) -> float:
        """Variance between epochs of one mix, as a share: half of the squared difference of two that follow."""
        if mix in self.last:
            self.pairs += 1
            self.apart += 0.5 * float(np.log(median / self.last[mix])) ** 2
        self.last[mix] = median
        return self.apart / self.pairs

    def learn_peak(self, runs: Sequence[Run], peak: float) -> None:
        """Learns from the peak of a mix: bytes, counted as budgets are."""
        if not self.room.covariance[0, 0]:
            self.room.covariance[0, 0] = (self.doubt.beyond * peak) ** 2
        found = self._around().moments(self.believed_runs(runs))
        if self.around.update >= max(found):
            return  # the peak is not that of the layers
        top = int(np.argmax(found))
        predicted = self.around.moments(runs)[top]
        weights = np.zeros(1 + len(self.policies))
        weights[0] = 1.0
        for at, run in enumerate(runs):
            weights[1 + self.keys.index(key(run.policy))] += run.layers * run.policy.kept * (at <= top)
        self.room.learn(weights, peak - predicted + weights[1:].sum(), (self.doubt.bytes * peak) ** 2)

    def step_seconds(self, mixes: Sequence[Sequence[Run]], factors: np.ndarray) -> np.ndarray:
        """Seconds of a step under each mix if the factors are these: [draws, mixes] of [draws, 1 + policies]."""
        weights = np.array([self._weights(runs) for runs in mixes])
        return (self.unit or 1.0) * factors @ weights.T

    def believed(self, factors: np.ndarray | None = None) -> tuple[Policy, ...]:
        """The policies with believed costs, or with those of one draw of the factors; never below nothing."""
        seconds = (
            np.maximum((self.time.mean if factors is None else factors)[1:], 0.0) * self.again * (self.unit or 1.0)
        )
        beyond, kept = self.room.mean[0], self.room.mean[1:]
        return tuple(
            dataclasses.replace(
                each,
                seconds=float(seconds[at]),
                kept=max(float(each.kept * kept[at]), 0.0),
                transient=max(float(each.transient + beyond), 0.0),
            )
            for at, each in enumerate(self.policies)
        )

    def believed_runs(self, runs: Sequence[Run]) -> tuple[Run, ...]:
        """The same runs with believed costs."""
        policies = dict(zip(self.keys, self.believed(), strict=True))
        return tuple(run._replace(policy=policies[key(run.policy)]) for run in runs)

    def predicted_runs(self, runs: Sequence[Run]) -> tuple[Run, ...]:
        """The same runs with predicted costs."""
        policies = dict(zip(self.keys, self.policies, strict=True))
        return tuple(run._replace(policy=policies[key(run.policy)]) for run in runs)

    def problem(self, budget: float, layers: int, factors: np.ndarray | None = None) -> Problem:
        """The rematerialisation problem at believed costs."""
        return self._around().problem(layers, self.believed(factors), budget)

    def peak(self, runs: Sequence[Run]) -> float:
        """Bytes of these runs of layers, which carry believed costs."""
        return max(*self._around().moments(runs), self.around.update)

    def _around(self) -> Around:
        """What is around the layers, at believed costs."""
        if (loss := self.around.loss) is None:
            return self.around
        believed = max(loss.transient + float(self.room.mean[0]), 0.0)
        return dataclasses.replace(self.around, loss=dataclasses.replace(loss, transient=believed))

    def spread(self) -> np.ndarray:
        """Standard deviation of the believed seconds of each policy."""
        return np.sqrt(np.maximum(np.diag(self.time.covariance)[1:], 0.0)) * self.again * (self.unit or 1.0)

    def to_json(self) -> dict[str, Any]:
        return {
            "policies": [each.name for each in self.policies],
            "unit": self.unit,
            "measured": self.measured,
            "between": [self.pairs, self.apart, self.last],
            "time": self.time.to_json(),
            "room": self.room.to_json(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Goes on from `to_json`. Raises ValueError when that is of other policies."""
        if saved["policies"] != [each.name for each in self.policies]:
            raise ValueError("the saved costs are those of other policies")
        self.unit, self.measured = saved["unit"], saved["measured"]
        self.pairs, self.apart, self.last = saved["between"]
        self.time, self.room = Gaussian.restore(saved["time"]), Gaussian.restore(saved["room"])


def key(policy: Policy) -> Key:
    """What a policy does, whatever it costs."""
    return policy.save, policy.offload, policy.group

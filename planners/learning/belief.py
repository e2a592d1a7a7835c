"""What is believed about the step seconds of several plans: one Gaussian, so that measuring one teaches about all.

The cost model predicts a step as a sum of parts (compute, each collective, bubble, ...). Its errors are of three kinds:
a scale that all plans share, a factor on each part, and a residual of each plan, alike where plans are alike:

    log seconds of plan i = scale + log sum_k parts[i, k] exp(factor_k) + residual_i

All three are Gaussian in logarithms. A measurement of one plan is Bayesian linear regression on the fractions of its
parts (the gradient of the line above), so a slow all-reduce seen in one plan is expected in every plan that has one.
Measurements of other jobs (`Evidence`) move the prior in the same way.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ITERATIONS = 5
"""Gauss-Newton steps of one update; the sum of a few exponentials is nearly linear in the logarithm after two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncertainty:
    """How wrong the cost model may be: standard deviations of natural logarithms, so 0.1 is about 10 %.

    Attributes:
        scale: all plans on one machine together (nominal rates of an unknown host are far off).
        job_scale: all plans of one job together, beyond what other jobs on the machine share.
        part: one part of the step on one machine (closed forms miss held-out models by 8 to 13 %, planners.md 0.1).
        link: likewise a part that is communication (one bandwidth per link is 37 % wrong, planners.md 0.7).
        job_part: a part in one job, beyond what other jobs share: half of `part`.
        residual: what parts do not explain, alike in plans that are alike, in all jobs (as `part`).
        job_residual: likewise in one job: half of it.
        own: of one plan alone (step times repeat to about 1 %, planners.md 5 rule 5).
        length: distance, in doublings of any of a plan's sizes, over which residuals are alike: one doubling, the
            spacing of the plans themselves.
    """

    scale: float = 0.5
    job_scale: float = 0.1
    part: float = 0.1
    link: float = 0.3
    job_part: float = 0.05
    residual: float = 0.1
    job_residual: float = 0.05
    own: float = 0.01
    length: float = 1.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f"uncertainty {field.name}={getattr(self, field.name)} must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One measured step of a plan, of this job or another: predicted parts, the plan's sizes, measured seconds.

    `sizes` are the same quantities, in the same order, as those of the plans to judge; all are positive.
    """

    job: str
    parts: dict[str, float]
    sizes: tuple[float, ...]
    seconds: float


class Belief:
    """A Gaussian over scale, factors and residuals of n plans.

    Args:
        parts: predicted seconds by part, for each of n plans.
        sizes: of each plan, n x any number; compared by their logarithms.
        links: the parts that are communication.
        evidence: earlier measurements.
        job: the name that evidence of this very job carries.
        uncertainty: how wrong predictions may be.

    Attributes:
        names: the K parts, in order.
        mean: [1 + K + n] of (scale, factors, residuals).
        covariance: their covariance.
    """

    def __init__(
        self,
        parts: Sequence[dict[str, float]],
        sizes: Sequence[Sequence[float]],
        *,
        links: Iterable[str] = (),
        evidence: Sequence[Evidence] = (),
        job: str = "",
        uncertainty: Uncertainty | None = None,
    ):
        u = uncertainty or Uncertainty()
        if not parts or len(parts) != len(sizes):
            raise ValueError(f"{len(parts)} predictions and {len(sizes)} rows of sizes: give one of each per plan")
        self.names = tuple(sorted({name for row in [*parts, *(e.parts for e in evidence)] for name in row}))
        self.parts = _table(parts, self.names)
        where = np.log2(np.asarray(sizes, float))
        links = set(links)
        shared = np.array([u.link if name in links else u.part for name in self.names])
        alike = _alike(where, where, u.length)
        blocks = (
            np.array([[u.scale**2 + u.job_scale**2]]),
            np.diag(shared**2 + u.job_part**2),
            (u.residual**2 + u.job_residual**2) * alike + u.own**2 * np.eye(len(parts)),
        )
        self.mean = np.zeros(sum(len(block) for block in blocks))
        self.covariance = _block_diagonal(blocks)
        if evidence:
            self._learn(evidence, where, shared, job, u)

    @property
    def plans(self) -> int:
        return len(self.parts)

    def _learn(
        self, evidence: Sequence[Evidence], where: np.ndarray, shared: np.ndarray, job: str, u: Uncertainty
    ) -> None:
        """Conditions the prior on measurements of this and other jobs, all at once."""
        seen = _table([e.parts for e in evidence], self.names)
        predicted = seen.sum(axis=1)
        fractions = seen / predicted[:, None]
        places = np.log2(np.asarray([e.sizes for e in evidence], float))
        jobs = np.array([e.job for e in evidence])
        error = np.log([e.seconds for e in evidence]) - np.log(predicted)
        same, here = jobs[:, None] == jobs[None, :], jobs == job
        alike = _alike(places, places, u.length)
        covariance = (
            u.scale**2
            + u.job_scale**2 * same
            + (fractions * shared**2) @ fractions.T
            + u.job_part**2 * same * (fractions @ fractions.T)
            + (u.residual**2 + u.job_residual**2 * same) * alike
            + 2 * u.own**2 * np.eye(len(evidence))  # of the plan and of the measurement
        )
        cross = np.concatenate(
            [
                (u.scale**2 + u.job_scale**2 * here)[None, :],
                (shared[:, None] ** 2 + u.job_part**2 * here[None, :]) * fractions.T,
                (u.residual**2 + u.job_residual**2 * here[None, :]) * _alike(where, places, u.length),
            ]
        )
        gain = np.linalg.solve(covariance, cross.T).T
        self.mean = self.mean + gain @ error
        self.covariance = _symmetric(self.covariance - gain @ cross.T)

    def _seconds(self, states: np.ndarray) -> np.ndarray:
        """Step seconds [..., n] at states [..., 1 + K + n]."""
        factors, residuals = states[..., 1 : 1 + len(self.names)], states[..., 1 + len(self.names) :]
        return (np.exp(factors) @ self.parts.T) * np.exp(states[..., :1] + residuals)

    def _slope(self, state: np.ndarray) -> np.ndarray:
        """Gradient [n, 1 + K + n] of the log seconds at one state: one, the fractions of the parts, the identity."""
        weighted = self.parts * np.exp(state[1 : 1 + len(self.names)])
        fractions = weighted / weighted.sum(axis=1, keepdims=True)
        return np.concatenate([np.ones((self.plans, 1)), fractions, np.eye(self.plans)], axis=1)

    def log_seconds(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean [n] and standard deviation [n] of the log seconds of each plan."""
        slope = self._slope(self.mean)
        variance = np.einsum("ij,jk,ik->i", slope, self.covariance, slope)
        return np.log(self._seconds(self.mean)), np.sqrt(np.maximum(variance, 0.0))

    def draw(self, random: np.random.Generator, count: int) -> np.ndarray:
        """`count` samples of the seconds of all plans, [count, n]."""
        values, vectors = np.linalg.eigh(self.covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        return self._seconds(self.mean + random.standard_normal((count, len(self.mean))) @ root.T)

    def update(self, plan: int, log_seconds: float, variance: float) -> None:
        """Learns from a measured step of one plan: the logarithm of its seconds and the variance of that figure."""
        before, state = self.mean, self.mean
        gain = spread = np.zeros_like(before)
        for _ in range(ITERATIONS):
            row = self._slope(state)[plan]
            error = log_seconds - np.log(self._seconds(state)[plan]) - row @ (before - state)
            spread = self.covariance @ row
            gain = spread / (row @ spread + variance)
            state = before + gain * error
        self.mean = state
        self.covariance = _symmetric(self.covariance - np.outer(gain, spread))

    def relax(self, plan: int, shift: float, share: float, links: Iterable[str]) -> None:
        """The machine has changed: the log seconds of `plan` have moved by `shift`, and it is not known why.

        Any part may be the cause, and must then have moved by as much as explains the shift alone; a part that the plan
        does not have cannot be. Links change most; other parts and the scale get only `share` of that uncertainty.
        """
        links, fractions = set(links), self._slope(self.mean)[plan, 1 : 1 + len(self.names)]
        moved = np.zeros(len(self.mean))
        moved[0] = share * abs(shift)
        for at, (name, fraction) in enumerate(zip(self.names, fractions, strict=True), 1):
            if fraction > 0:
                factor = max(1.0 + np.expm1(shift) / fraction, 0.25)  # no part becomes more than four times as fast
                moved[at] = (1.0 if name in links else share) * abs(np.log(factor))
        self.covariance = self.covariance + np.diag(np.square(moved))

    def to_json(self) -> dict[str, Any]:
        return {"names": list(self.names), "mean": self.mean.tolist(), "covariance": self.covariance.tolist()}

    def restore(self, saved: dict[str, Any]) -> None:
        """Takes the numbers of `to_json`, which may know more parts than these plans have: other evidence was at hand
        then. Raises ValueError when they are of other plans, or a part of these is not among them."""
        names, own = tuple(saved["names"]), [name for at, name in enumerate(self.names) if self.parts[:, at].any()]
        if not set(own) <= set(names) or len(saved["mean"]) != 1 + len(names) + self.plans:
            raise ValueError(f"the saved belief is about parts {saved['names']}, this one about {own}")
        self.parts = _table([dict(zip(self.names, row, strict=True)) for row in self.parts.tolist()], names)
        self.names = names
        self.mean, self.covariance = np.array(saved["mean"]), np.array(saved["covariance"])


def _table(rows: Sequence[dict[str, float]], names: Sequence[str]) -> np.ndarray:
    """Seconds [rows, names]; a part that a row does not have takes no time."""
    return np.array([[row.get(name, 0.0) for name in names] for row in rows])


def _alike(a: np.ndarray, b: np.ndarray, length: float) -> np.ndarray:
    """Squared-exponential kernel [a, b] of places in doublings."""
    apart = ((a[:, None, :] - b[None, :, :]) / length) ** 2
    return np.exp(-0.5 * apart.sum(axis=-1))


def _block_diagonal(blocks: Sequence[np.ndarray]) -> np.ndarray:
    whole = np.zeros((sum(map(len, blocks)),) * 2)
    at = 0
    for block in blocks:
        whole[at : at + len(block), at : at + len(block)] = block
        at += len(block)
    return whole


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return 0.5 * (matrix + matrix.T)

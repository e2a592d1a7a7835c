"""Coefficients moved from counted values by rows of other sets: the largest posterior under a Gaussian prior."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Coefficients = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """A coefficient before any row was seen: its counted value, how far it may be off, and where it comes from."""

    value: float
    deviation: float
    source: str


def classify(
    predict: Callable[[Coefficients], np.ndarray],
    exceeds: np.ndarray,
    priors: Mapping[str, Prior],
    *,
    limit: float,
    spread: float,
    rounds: int = 60,
) -> Coefficients:
    """Coefficients of a size that is known only to lie above or below a limit.

    Args:
        predict: sizes [n] for a set of coefficients.
        exceeds: whether each row's true size was above the limit.
        priors: name -> what is known before.
        limit: the size that could not be exceeded.
        spread: scale of the logistic law of (predicted - true), in units of the limit.
        rounds: damped Newton steps; derivatives are differences.
    """
    scale = spread * limit

    def slope(size: np.ndarray) -> np.ndarray:
        return (0.5 * (1.0 + np.tanh(0.5 * (size - limit) / scale)) - exceeds) / scale

    def curvature(size: np.ndarray) -> np.ndarray:
        share = 0.5 * (1.0 + np.tanh(0.5 * (size - limit) / scale))
        return (share * (1.0 - share) + 0.01) / scale**2

    return _newton(predict, slope, curvature, priors, rounds)


def regress(
    predict: Callable[[Coefficients], np.ndarray],
    measured: np.ndarray,
    priors: Mapping[str, Prior],
    *,
    spread: float,
    rounds: int = 60,
) -> Coefficients:
    """Coefficients of a positive quantity that was measured; errors are shares of it, `spread` of them on average.

    Beyond twice the spread an error counts linearly (Huber), so that a few odd rows do not decide.
    """
    target = np.log(measured)

    def slope(size: np.ndarray) -> np.ndarray:
        return np.clip((np.log(size) - target) / spread, -2.0, 2.0) / spread / size

    def curvature(size: np.ndarray) -> np.ndarray:
        return 1.0 / (spread * size) ** 2

    return _newton(predict, slope, curvature, priors, rounds)


def _newton(
    predict: Callable[[Coefficients], np.ndarray],
    slope: Callable[[np.ndarray], np.ndarray],
    curvature: Callable[[np.ndarray], np.ndarray],
    priors: Mapping[str, Prior],
    rounds: int,
) -> Coefficients:
    names = list(priors)
    centre = np.array([priors[name].value for name in names])
    deviation = np.array([priors[name].deviation for name in names])
    at = centre.copy()

    def named(values: np.ndarray) -> Coefficients:
        return dict(zip(names, map(float, values), strict=True))

    for _ in range(rounds):
        size = predict(named(at))
        gradient = np.empty((len(size), len(names)))
        for i, step in enumerate(0.01 * deviation):
            gradient[:, i] = (predict(named(at + step * (np.arange(len(names)) == i))) - size) / step
        pull = gradient.T @ slope(size) + (at - centre) / deviation**2
        bend = (gradient * curvature(size)[:, None]).T @ gradient + np.diag(1.0 / deviation**2)
        at = at - 0.3 * np.linalg.solve(bend, pull)
    return named(at)

"""What measured steps teach: the coefficients of the cost model, moved from a prior, and how far it is still off.

    calibration = Calibration.prior(Assumptions())
    calibration = calibration.update(lambda a: price(..., assumptions=a).step_seconds, measured)
    calibration.assumptions   # the constants to price with from now on
    calibration.error         # their error bar, as a share of the step time

Coefficients are the assumptions that have a spread. Their logarithms start out normal around the prior; a measured
time is the predicted one times a factor whose logarithm is normal too, except for outliers, which count less. That
makes an update a Bayesian linear regression of log time on log coefficients, repeated where it bends (Gauss-Newton).
What coefficients cannot explain repeats where the work of a device is alike: `features` that describe it carry such
residuals over to new plans (a Gaussian process on top).
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from planners.plan import PlanError
from planners.prices.assumptions import Assumptions, spreads

Predict = Callable[[Assumptions], np.ndarray]
"""Constants -> predicted seconds of each measured step."""

FORMAT = 1
"""Version of the JSON form."""

OUTLIER = 2.0
"""Residuals beyond this many standard deviations count less (Huber's weight)."""

ROUNDS = 12
"""Gauss-Newton rounds at most; two or three are the rule."""

REACH = 0.5
"""Distance of features over which residuals repeat: tiles and launches change with every power of two."""

REPEAT = 0.02
"""Standard deviation of what does not repeat: step times repeat to about 1 % (planners.md 5), the rest is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Residuals:
    """What the coefficients left unexplained, by the features of the steps it was seen on.

    Attributes:
        features: [n, k], each in units over which a change by 1 is a moderate one (e.g. log2 of a size).
        values: [n] logarithm of measured over predicted.
        reach: distance of features over which residuals are alike.
        spread: standard deviation of what repeats.
        noise: standard deviation of what does not.
    """

    features: np.ndarray
    values: np.ndarray
    reach: float
    spread: float
    noise: float

    def at(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the logarithm of measured over predicted at new features [m, k]."""
        own = self._kernel(self.features, self.features) + self.noise**2 * np.eye(len(self.values))
        cross = self._kernel(features, self.features)
        solved = np.linalg.solve(own, np.column_stack([self.values, cross.T]))
        variance = self.spread**2 - np.sum(cross * solved[:, 1:].T, axis=1)
        return cross @ solved[:, 0], np.sqrt(np.maximum(variance, 0.0) + self.noise**2)

    def _kernel(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        distance = np.sum((a[:, None, :] - b[None, :, :]) ** 2, axis=2) / self.reach**2
        return self.spread**2 * np.exp(-0.5 * distance)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """Constants with an error bar, and where they come from.

    Attributes:
        base: the prior's constants.
        names: the coefficients, those of `base` that have a spread and are not 0.
        shift: [k] posterior mean of the logarithm of each coefficient over that of `base`.
        covariance: [k, k] of the same.
        noise: standard deviation of log time around the prediction.
        runs: measured steps that were learnt from.
        source: what they were.
        residuals: what coefficients could not explain, where features were given.
    """

    base: Assumptions
    names: tuple[str, ...]
    shift: np.ndarray
    covariance: np.ndarray
    noise: float
    runs: int = 0
    source: str = "constants as in the table of assumptions, no measured step"
    residuals: Residuals | None = field(default=None)

    @classmethod
    def prior(cls, base: Assumptions | None = None, *, noise: float = 0.15, widen: float = 1.0) -> "Calibration":
        """Before any measured step; `noise` is the error expected of the model itself, `widen` scales all spreads."""
        base = base or Assumptions()
        known = {name: spread for name, spread in spreads().items() if getattr(base, name)}
        variances = np.square(np.array(list(known.values())) * widen)
        names = tuple(known)
        return cls(base=base, names=names, shift=np.zeros(len(names)), covariance=np.diag(variances), noise=noise)

    @property
    def assumptions(self) -> Assumptions:
        """The constants at the posterior mean."""
        return self._at(self.shift)

    @property
    def error(self) -> float:
        """Standard deviation of measured over predicted time that is expected of a new plan."""
        return self.noise if self.residuals is None else float(np.hypot(self.residuals.spread, self.residuals.noise))

    def describe(self) -> str:
        """One line for `jaxlm plan`."""
        learnt = f"{self.runs} measured steps ({self.source})" if self.runs else self.source
        return f"calibration: {learnt}; step times within {100 * self.error:.0f} % (one standard deviation)"

    def habits(self, other: Assumptions) -> "Calibration":
        """The same knowledge of coefficients for a trainer of other habits: what is no coefficient comes from
        `other`, as do coefficients whose value it sets apart from the defaults."""
        plain = Assumptions()
        own: dict[str, Any] = {
            f.name: getattr(other, f.name)
            for f in dataclasses.fields(Assumptions)
            if f.name not in self.names or getattr(other, f.name) != getattr(plain, f.name)
        }
        return dataclasses.replace(self, base=dataclasses.replace(self.base, **own))

    def update(
        self,
        predict: Predict,
        measured: np.ndarray,
        *,
        features: np.ndarray | None = None,
        weights: np.ndarray | None = None,
        source: str = "",
    ) -> "Calibration":
        """The posterior after measured steps.

        Args:
            predict: seconds of the measured steps under given constants.
            measured: their seconds.
            features: [n, k] of each step; where given, residuals are carried over to plans with similar features.
            weights: of each step, 1 where left out.
            source: what these steps were.

        Raises ValueError for times that are not positive, or no step at all.
        """
        log_measured = _logs(measured, "measured")
        prior = np.linalg.inv(self.covariance)
        shift = self.shift
        trust = np.ones(len(log_measured)) if weights is None else np.asarray(weights, dtype=float)
        noise = self.noise
        for _ in range(ROUNDS):
            residual = log_measured - self._log(predict, shift)
            noise = _scale(residual, self.noise, trust)
            slope = self._slope(predict, shift)
            robust = trust / np.maximum(np.abs(residual) / (OUTLIER * noise), 1.0)
            precision = prior + (slope.T * robust) @ slope / noise**2
            right = slope.T @ (robust * residual) / noise**2 - prior @ (shift - self.shift)
            move = np.linalg.solve(precision, right)
            shift, moved = self._step(predict, log_measured, prior, noise, trust, shift, move)
            if moved < 1e-3:
                break
        residual = log_measured - self._log(predict, shift)
        slope = self._slope(predict, shift)
        noise = _scale(residual, self.noise, trust)
        covariance = np.linalg.inv(prior + (slope.T * trust) @ slope / noise**2)
        said = "; ".join(part for part in ((self.source if self.runs else ""), source) if part)
        return dataclasses.replace(
            self,
            shift=shift,
            covariance=(covariance + covariance.T) / 2,
            noise=noise,
            runs=self.runs + len(residual),
            source=said or "steps of this machine",
            residuals=None if features is None else _fit(np.asarray(features, dtype=float), residual),
        )

    def correct(self, seconds: np.ndarray, features: np.ndarray | None) -> np.ndarray:
        """Predicted seconds with the residuals of similar steps carried over."""
        if self.residuals is None or features is None:
            return seconds
        return seconds * np.exp(self.residuals.at(np.asarray(features, dtype=float))[0])

    def to_json(self) -> dict[str, Any]:
        """Plain data; habits of memory have a file of their own and are left out."""
        residuals, plain = self.residuals, Assumptions()
        values = {field.name: getattr(self.base, field.name) for field in dataclasses.fields(Assumptions)}
        return {
            "format": FORMAT,
            "base": {n: v for n, v in values.items() if v != getattr(plain, n) and not isinstance(v, dict)},
            "names": list(self.names),
            "shift": self.shift.tolist(),
            "covariance": self.covariance.tolist(),
            "noise": self.noise,
            "runs": self.runs,
            "source": self.source,
            "residuals": None
            if residuals is None
            else {
                "features": residuals.features.tolist(),
                "values": residuals.values.tolist(),
                "reach": residuals.reach,
                "spread": residuals.spread,
                "noise": residuals.noise,
            },
        }

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Calibration":
        """Raises PlanError when the file is missing or holds no calibration of this version."""
        try:
            return cls.of_json(json.loads(path.read_text()))
        except FileNotFoundError:
            raise PlanError(f"calibration file {path} does not exist") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise PlanError(f"calibration file {path} is not JSON: {error}") from None
        except PlanError as error:
            raise PlanError(f"calibration file {path}: {error}") from None

    @classmethod
    def of_json(cls, raw: Any) -> "Calibration":
        """Raises PlanError, naming what is wrong."""
        keys = {"format", "base", "names", "shift", "covariance", "noise", "runs", "source", "residuals"}
        if not isinstance(raw, dict) or set(raw) != keys:
            raise PlanError(f"a calibration has the keys {', '.join(sorted(keys))}")
        if raw["format"] != FORMAT:
            raise PlanError(f"calibration format {raw['format']} is not supported; this version reads format {FORMAT}")
        known = {f.name for f in dataclasses.fields(Assumptions)}
        if unknown := [name for name in (*raw["base"], *raw["names"]) if name not in known]:
            raise PlanError(f"unknown coefficient {', '.join(unknown)}")
        base: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in raw["base"].items()}
        left = raw["residuals"]
        arrays: dict[str, Any] = {n: np.array(v) if n in ("features", "values") else v for n, v in (left or {}).items()}
        return cls(
            base=Assumptions(**base),
            names=tuple(raw["names"]),
            shift=np.array(raw["shift"]),
            covariance=np.array(raw["covariance"]),
            noise=raw["noise"],
            runs=raw["runs"],
            source=raw["source"],
            residuals=Residuals(**arrays) if left else None,
        )

    def _at(self, shift: np.ndarray) -> Assumptions:
        moved: dict[str, Any] = {
            n: getattr(self.base, n) * float(np.exp(s)) for n, s in zip(self.names, shift, strict=True)
        }
        moved["wave_share"] = min(moved.get("wave_share", self.base.wave_share), 1.0)
        return dataclasses.replace(self.base, **moved)

    def _log(self, predict: Predict, shift: np.ndarray) -> np.ndarray:
        return _logs(predict(self._at(shift)), "predicted")

    def _slope(self, predict: Predict, shift: np.ndarray, by: float = 0.01) -> np.ndarray:
        """[n, k] change of log time with each log coefficient."""
        here = self._log(predict, shift)
        return np.column_stack([(self._log(predict, shift + step) - here) / by for step in by * np.eye(len(shift))])

    def _step(
        self,
        predict: Predict,
        log_measured: np.ndarray,
        prior: np.ndarray,
        noise: float,
        trust: np.ndarray,
        shift: np.ndarray,
        move: np.ndarray,
    ) -> tuple[np.ndarray, float]:
        """The largest of a few shares of the move that does not make the posterior less likely, and its length."""

        def loss(at: np.ndarray) -> float:
            away = np.abs(log_measured - self._log(predict, at)) / noise
            huber = np.where(away < OUTLIER, 0.5 * away**2, OUTLIER * away - 0.5 * OUTLIER**2)
            return float(trust @ huber + 0.5 * (at - self.shift) @ prior @ (at - self.shift))

        before = loss(shift)
        for share in (1.0, 0.5, 0.25, 0.1):
            if loss(shift + share * move) <= before:
                return shift + share * move, share * float(np.max(np.abs(move)))
        return shift, 0.0


def _logs(seconds: np.ndarray, what: str) -> np.ndarray:
    values = np.asarray(seconds, dtype=float)
    if values.ndim != 1 or not len(values) or not np.all(np.isfinite(values)) or np.any(values <= 0):
        raise ValueError(f"{what} step times must be a list of positive seconds")
    return np.log(values)


def _scale(residual: np.ndarray, prior: float, trust: np.ndarray, worth: float = 4.0) -> float:
    """Standard deviation of the residuals, the prior's counting as `worth` of them; outliers hardly count."""
    typical = 1.4826 * np.median(np.abs(residual))
    clipped = np.minimum(np.abs(residual), 3.0 * max(typical, 1e-3))
    return float(np.sqrt((worth * prior**2 + trust @ clipped**2) / (worth + np.sum(trust))))


def _fit(features: np.ndarray, residual: np.ndarray) -> Residuals:
    """A Gaussian process as wide as the residuals."""
    size = max(float(np.sqrt(np.mean(residual**2))), 2.0 * REPEAT)
    return Residuals(features=features, values=residual, reach=REACH, spread=size, noise=REPEAT)

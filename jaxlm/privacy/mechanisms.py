"""The mechanisms that a ledger charges for, and why it refuses everything else.

A charge is a promise about the distribution of an answer: only an answer that is itself drawn by a differentially
private mechanism has one. Everything here is relative to adding or removing one protected row.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxlm.privacy.errors import NotPrivate

Kind = Literal["gaussian", "laplace", "pure"]

REFUSED = {
    "exact": "an exact value computed from protected rows (a loss, an accuracy, a count, a hash) is no differentially "
    "private mechanism, and no epsilon covers it: evaluate held-out text, or add noise and charge for that",
    "inference": "sampling from a model has an epsilon only where each answer is itself a private mechanism on "
    "protected rows; from a privately trained model it is post-processing and costs nothing, and from any other model "
    "it has no epsilon at all",
    "shuffled": "batches of shuffled epochs are no Poisson samples, and the amplification of these is not theirs: "
    "sample with privacy.enabled, or charge a gaussian with sampling_rate 1",
    "truncated": "a Poisson sample that is cut to a largest batch is another mechanism, and a dearer one (at noise "
    "4.0, rate 1024/50000 and 10,000 steps: epsilon 6.87 where 2.09 is accounted): leave room for the whole sample",
    "clt": "a central-limit (Gaussian DP) figure is an approximation from below, no bound: charge the mechanism itself",
    "approximate": "an (epsilon, delta) pair with delta above 0 has no Renyi divergence at any order: charge the "
    "mechanism that it came from",
}
"""Kinds that are known and never charged, with the reason."""


@dataclass(frozen=True, slots=True)
class Mechanism:
    """One query.

    Attributes:
        kind: `gaussian` or `laplace` noise on a sum, or `pure`: any epsilon-DP mechanism.
        noise: standard deviation (laplace: scale) over the sensitivity; of `pure`, its epsilon.
        rate: chance with which each row is in the Poisson sample that is asked; 1 asks all rows.

    Raises:
        NotPrivate: for parameters that no mechanism has.
    """

    kind: Kind
    noise: float
    rate: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("gaussian", "laplace", "pure"):
            raise NotPrivate(_unknown(self.kind))
        for name, value in (("noise_multiplier", self.noise), ("sampling_rate", self.rate)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
                name = "epsilon" if name == "noise_multiplier" and self.kind == "pure" else name
                raise NotPrivate(f"{name}={value} of a {self.kind} mechanism must be a finite number above 0")
        if self.rate > 1:
            raise NotPrivate(f"sampling_rate={self.rate} must be at most 1")
        if self.rate < 1 and self.kind != "gaussian":
            raise NotPrivate(f"sampling_rate={self.rate}: only gaussian mechanisms are charged for a sample")

    def to_json(self) -> dict[str, Any]:
        """As an entry of a log holds it."""
        if self.kind == "pure":
            return {"kind": "pure", "epsilon": self.noise}
        sampling = {"sampling": "poisson", "sampling_rate": self.rate} if self.rate < 1 else {}
        return {"kind": self.kind, "noise_multiplier": self.noise, **sampling}


def mechanism(said: Mapping[str, Any]) -> Mechanism:
    """What `Mechanism.to_json` wrote. Raises NotPrivate for anything else, with the reason."""
    kind = said.get("kind")
    if kind in REFUSED:
        raise NotPrivate(f"a query of kind {kind} is not charged: {REFUSED[str(kind)]}")
    if kind not in ("gaussian", "laplace", "pure"):
        raise NotPrivate(_unknown(kind))
    if said.get("sampling", "poisson") != "poisson":
        raise NotPrivate(f"sampling={said['sampling']!r} is not charged: {REFUSED['shuffled']}")
    number = "epsilon" if kind == "pure" else "noise_multiplier"
    allowed = {"kind", number} | ({"sampling", "sampling_rate"} if kind != "pure" else set())
    if number not in said or said.keys() - allowed:
        odd = ", ".join(sorted(map(str, said.keys() - allowed))) or "nothing"
        raise NotPrivate(
            f"a {kind} mechanism is said by {', '.join(sorted(allowed))}; {number} is needed, {odd} is odd"
        )
    return Mechanism(kind, said[number], said.get("sampling_rate", 1.0))


def _unknown(kind: object) -> str:
    known = ["gaussian", "laplace", "pure", *REFUSED]
    near = difflib.get_close_matches(str(kind), known, 1)
    return f"mechanism kind {kind!r} is unknown" + (f"; did you mean {near[0]}?" if near else "")

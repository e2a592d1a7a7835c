"""What two compiled steps of each rematerialisation policy teach about the memory of all other plans of a model.

Shapes say how large every tensor is, and rules when it is alive; what XLA orders as it likes (`Habits`) it mostly
orders alike for all plans of one model. So a few steps are compiled, and the habits taken that explain them best.

    calibration = calibrate([observe(workload, candidates, temporaries), ...], jaxlib="0.10.2")
    memory(..., habits=calibration.habits)

Habits that differ from mesh to mesh are learned for one plan alone, from two compiles with few layers: `by_layers`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from planners.candidates import Candidates
from planners.plan import PlanError, Workload, structure
from planners.prices.footprint import Footprint, footprint
from planners.prices.memory_phases import Habits, phases, temporaries

BLOCK = tuple(float(round(factor, 2)) for factor in np.arange(0.6, 1.41, 0.02))
"""What is tried; 1.0 is what is believed without a compiled step."""

DOUBT = 3e-4
"""Squared relative error that a habit must explain before it is believed against what goes without saying: 1.7% of the
temporaries, the scatter that compiled steps of one habit show (`experiments/benchmarks/memory.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observation:
    """One compiled step: the plan as the only candidate, and the bytes XLA allocates for the step itself."""

    workload: Workload
    candidate: Candidates
    temporaries: float
    step: Footprint

    @property
    def remat(self) -> str:
        return self.candidate.remats[int(self.candidate.remat[0])]

    def predicted(self, habits: Habits) -> float:
        """Bytes of temporaries, were these the habits."""
        found = phases(self.step, self.workload, self.candidate, {self.remat: habits})
        return float(temporaries(found, 1)[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCalibration:
    """Habits by rematerialisation policy, the version of XLA that showed them, and how well they explain what was
    compiled: the largest relative error of its temporaries."""

    jaxlib: str
    habits: dict[str, Habits] = field(default_factory=dict)
    compiled: int = 0
    error: float = 0.0

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @staticmethod
    def load(path: Path, jaxlib: str) -> "MemoryCalibration":
        """Raises PlanError for a file that is none, or one made with another version of the compiler."""
        try:
            found = structure(json.loads(path.read_text()), MemoryCalibration)
        except FileNotFoundError:
            raise PlanError(f"memory calibration {path} does not exist") from None
        except json.JSONDecodeError as error:
            raise PlanError(f"memory calibration {path} is not JSON: {error}") from None
        if found.jaxlib != jaxlib:
            raise PlanError(f"memory calibration {path} was made with jaxlib {found.jaxlib}, this is {jaxlib}")
        return found


def observe(workload: Workload, candidate: Candidates, temporaries: float) -> Observation:
    """A compiled step to learn from. Raises ValueError unless there is one candidate and some memory."""
    if len(candidate) != 1 or temporaries <= 0:
        raise ValueError(
            f"an observation is one plan and its bytes, not {len(candidate)} plans and {temporaries} bytes"
        )
    step = footprint(workload, candidate.sizes)
    return Observation(workload=workload, candidate=candidate, temporaries=temporaries, step=step)


def calibrate(measured: Sequence[Observation], *, jaxlib: str) -> MemoryCalibration:
    """The habits that explain the compiled steps best, policy by policy; a policy without any keeps what is believed.

    Ties, and gains too small to be more than scatter, go to what is believed.
    """
    habits: dict[str, Habits] = {}
    errors = [0.0]
    for remat in dict.fromkeys(each.remat for each in measured):
        seen = [each for each in measured if each.remat == remat]
        habits[remat] = _best(seen)
        errors += [abs(each.predicted(habits[remat]) / each.temporaries - 1) for each in seen]
    return MemoryCalibration(jaxlib=jaxlib, habits=habits, compiled=len(measured), error=max(errors))


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Bytes of temporaries of one plan beyond what is believed, whatever its depth: what grows with depth is exact."""

    intercept: float

    def predicted(self, workload: Workload, candidate: Candidates) -> float:
        """Bytes of temporaries of the same plan for a model with as many layers as `workload` has."""
        return observe(workload, candidate, 1.0).predicted(Habits()) + self.intercept


def by_layers(first: Observation, second: Observation) -> Line:
    """What two compiles of one plan with different, few layers teach about it with all of its layers, as long as the
    phase that needs most is the same: a large head may make it the loss where layers are few.

    Where XLA ordered the two differently, the larger gap is believed: the safe side. A slope through such a pair would
    be nonsense (gpt2-774m on 32 GPUs: 65% too low). Raises ValueError for equal depths.
    """
    if first.workload.layers == second.workload.layers:
        raise ValueError(f"two compiles of {first.workload.layers} layers each: they must differ in depth")
    gaps = [each.temporaries - each.predicted(Habits()) for each in (first, second)]
    return Line(intercept=max(gaps))


def _best(seen: Sequence[Observation]) -> Habits:
    """By least squares of the relative error, over all habits that are tried."""
    best, least = Habits(), float("inf")
    for block in BLOCK:
        habit = Habits(block=block)
        error = sum((each.predicted(habit) / each.temporaries - 1) ** 2 for each in seen)
        doubt = (block - 1) ** 2 / 0.2**2
        if error + DOUBT * doubt < least:
            best, least = habit, error + DOUBT * doubt
    return best

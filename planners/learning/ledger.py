"""What every run was predicted to cost and then did: one JSON line per run, kept for the next plan to learn from."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from planners.candidates import REMATS, Candidates
from planners.findings import Prediction
from planners.learning.calibration import Calibration
from planners.learning.together import Item, together
from planners.machines.topology import Cluster
from planners.plan import Plan, PlanError, Segment, Workload, structure
from planners.prices.assumptions import Assumptions

FORMAT = 1
"""Version of a line."""

WARM_UP = 2
"""Steps at the start of a run that are not counted: they fill caches and allocate."""

STEADY = 5
"""Counted steps below which a run says nothing about its step time."""

UNKNOWN = 10.0
"""How much wider the prior is for a machine whose rates are nominal: its peak may be off by a factor of three."""

LATEST = 200
"""Runs of one machine that are learnt from, the latest ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one run's steps really took.

    Attributes:
        step_seconds: median of the steady steps.
        spread: half the distance between their quartiles, in seconds.
        steps: how many steady steps there were.
        memory: bytes at the peak of one device, where the device tells; None on CPUs.
    """

    step_seconds: float
    spread: float
    steps: int
    memory: int | None = None

    @classmethod
    def of(cls, seconds: Sequence[float], memory: int | None = None) -> "Measured | None":
        """From the seconds of every step of a run in order; None where too few of them are steady."""
        steady = list(seconds)[WARM_UP:]
        if len(steady) < STEADY:
            return None
        low, middle, high = statistics.quantiles(steady, n=4)
        return cls(step_seconds=middle, spread=(high - low) / 2, steps=len(steady), memory=memory)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One run: the work, the machine, the decisions, and the three figures of each cost, never mixed.

    Attributes:
        date: of its end, ISO 8601.
        machine: which runs it can be compared with: the kind of its devices.
        workload: what one step asked for.
        cluster: what it ran on.
        plan: how it ran, without prediction and alternatives.
        predicted: what was expected before it began.
        compiled: bytes per device by part, from the compiler; empty where it tells none.
        measured: what was seen.
        calibration: what the prediction had learnt from.
        versions: of the packages that ran it.
    """

    date: str
    machine: str
    workload: Workload
    cluster: Cluster
    plan: Plan
    predicted: Prediction | None
    compiled: dict[str, float]
    measured: Measured
    calibration: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def compared(self) -> dict[str, Any]:
        """Predicted, compiled and measured side by side; errors are (predicted - other) / other."""
        seconds = self.predicted.step_seconds if self.predicted else None
        memory = None
        if self.predicted:
            memory = self.predicted.memory_bytes - self.predicted.memory.get("runtime", 0.0)
        compiled = sum(self.compiled.values()) or None
        return {
            "step_seconds": {
                "predicted": seconds,
                "measured": self.measured.step_seconds,
                "error": error(seconds, self.measured.step_seconds),
            },
            "memory_bytes": {
                "predicted": memory,
                "compiled": compiled,
                "measured": self.measured.memory,
                "error_of_predicted_to_compiled": error(memory, compiled),
                "error_of_compiled_to_measured": error(compiled, self.measured.memory),
            },
        }


def error(value: float | None, truth: float | None) -> float | None:
    """How far a value is from the truth, as a share of it."""
    return None if value is None or not truth else value / truth - 1.0


def bare(plan: Plan) -> Plan:
    """The decisions of a plan alone."""
    return dataclasses.replace(plan, predicted=None, compiled=None, assumptions={}, alternatives=())


def append(path: Path, entry: Entry) -> None:
    """Adds a line in one write, so that runs that end at the same time do not tear each other's lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write((json.dumps(entry.to_json(), separators=(",", ":")) + "\n").encode())


def read(path: Path, machine: str | None = None) -> list[Entry]:
    """The runs in a ledger, oldest first, those of one machine if it is named; none where there is no file.

    Lines of other versions and lines that a crash cut off are left out. Raises PlanError for a line that is neither.
    """
    if not path.exists():
        return []
    found = []
    *lines, last = path.read_bytes().split(b"\n")
    for number, line in enumerate([*lines, last], 1):
        try:
            raw = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError):
            if line.strip() and number <= len(lines):
                raise PlanError(f"{path}, line {number}: not JSON; remove the line") from None
            continue
        if raw.get("format") != FORMAT or machine not in (None, raw.get("machine")):
            continue
        try:
            found.append(structure(raw, Entry))
        except PlanError as wrong:
            raise PlanError(f"{path}, line {number}: {wrong}") from None
    return found


def candidate(plan: Plan) -> Candidates | None:
    """A plan as the cost model prices it; None for one that it has no price for."""
    uniform = {None: "none", (): "full"}
    kinds = {uniform.get(segment.save, "") for segment in plan.remat if not segment.offload}
    if len(kinds) != 1 or kinds == {""} or len(kinds) != len({_how(segment) for segment in plan.remat}):
        return None
    return Candidates.of(
        plan.mesh,
        microbatch=plan.batch.microbatch,
        remat=REMATS.index(kinds.pop()),  # pyright: ignore[reportArgumentType]
        loss_chunks=plan.compile.loss_chunks,
        zero=plan.rules.optimizer != plan.rules.parameters,
    )


def _how(segment: Segment) -> tuple[Any, ...]:
    return segment.save, segment.offload


def predict(entries: Sequence[Entry], assumptions: Assumptions) -> np.ndarray:
    """Seconds of the step of each run under given constants; every plan must be one that `candidate` knows."""
    return together([item(entry) for entry in entries])(assumptions)


def item(entry: Entry) -> Item:
    """A run as the cost model prices it. Raises ValueError where it has no price for it."""
    one = candidate(entry.plan)
    if one is None:
        raise ValueError(f"the cost model has no price for {entry.plan.summary()}")
    return Item(workload=entry.workload, cluster=entry.cluster, candidates=one)


def latest(entries: Sequence[Entry]) -> list[Entry]:
    """The runs that the cost model has a price for; of those that repeat a plan for the same work, the latest."""
    found = {
        (entry.workload.name, entry.workload.tokens, entry.cluster.count, entry.plan.digest): entry
        for entry in entries
        if candidate(entry.plan) is not None
    }
    return list(found.values())


def learn(entries: Sequence[Entry]) -> Calibration | None:
    """The constants of the cost model after these runs of one machine; None where none of them can be priced.

    Of runs that repeat a plan for the same work the latest counts. A machine whose peak is known keeps the prior's
    spread; of one that has only nominal rates hardly anything is known before, so its prior is wide.
    """
    runs = latest(entries)
    if not runs:
        return None
    known = all(entry.workload.compute_dtype in entry.cluster.device.peak for entry in runs)
    prior = Calibration.prior(widen=1.0 if known else UNKNOWN)
    measured = np.array([entry.measured.step_seconds for entry in runs])
    days = sorted(entry.date[:10] for entry in runs)
    period = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    return prior.update(together([item(entry) for entry in runs]), measured, source=f"{runs[-1].machine}, {period}")

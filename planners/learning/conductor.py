"""Carries out what the agent decides: which arm runs, which of its steps count, when the next decision is due."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from planners.learning.agent import Agent, Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long a probe takes.

    Attributes:
        warm: steps after a change that do not count: caches, allocators and the pipeline of batches fill up.
        steps: steps of a probe that count.
        compile_seconds: what compiling a plan is taken to cost before one was compiled.
        reshard_seconds: what moving the state to another layout is taken to cost before it was moved.
    """

    warm: int = 2
    steps: int = 5
    compile_seconds: float = 30.0
    reshard_seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.warm < 0 or self.steps < 1:
            raise ValueError(f"warm={self.warm} must not be negative and steps={self.steps} must be positive")


class Conductor:
    """From step to step, one arm runs: a probe ends after a fixed number of steps, anything else when the machine
    changes. Whoever runs the steps calls `finished` with the seconds of each, `decide` when that says true, and
    `compiled` and `moved` with what a change of plan has cost.

    Attributes:
        current: the arm that runs.
        probing: whether it is being probed; the first arm of a run is.
    """

    def __init__(self, agent: Agent, pace: Pace | None = None, programs: Sequence[str] | None = None):
        """`programs` names the program of each arm: arms that share one are compiled once."""
        self.agent, self.pace = agent, pace or Pace()
        self.programs = list(programs or (arm.key for arm in agent.arms))
        self.current, self.probing = 0, True
        self.done = 0
        self.seen: list[float] = []
        self.ready: set[str] = set()
        self.compile_seconds: list[float] = []
        self.reshard_seconds: list[float] = []

    @property
    def due(self) -> int | None:
        """Steps until a probe ends; None where no probe runs."""
        return self.pace.warm + self.pace.steps - self.done if self.probing else None

    def finished(self, seconds: float) -> bool:
        """Takes the seconds of the next step; true when a decision is due."""
        self.done += 1
        if self.done <= self.pace.warm:
            return False
        if not self.probing:
            return self.agent.watch(self.current, seconds)
        self.seen.append(seconds)
        if len(self.seen) < self.pace.steps:
            return False
        self.agent.observe(self.current, self.seen)
        return True

    def decide(self, left: int) -> Decision:
        """The next action, with `left` steps to go, and the beginning of it."""
        reshard = _mean(self.reshard_seconds, self.pace.reshard_seconds)
        compile_ = _mean(self.compile_seconds, self.pace.compile_seconds)
        here = self.programs[self.current]
        prices = [
            0.0 if program == here else reshard + (0.0 if program in self.ready else compile_)
            for program in self.programs
        ]
        steps = self.pace.warm + self.pace.steps
        decision = self.agent.decide(self.current, left, prices, reshard, steps)
        self.agent.begin(decision)
        self.take(decision)
        return decision

    def take(self, decision: Decision) -> None:
        """Begins an action that was decided, here or by another process."""
        changed = decision.arm != self.current
        self.current, self.probing = decision.arm, decision.kind == "probe"
        self.seen, self.done = [], 0 if changed else self.pace.warm

    def back(self, arm: int) -> None:
        """Goes on with an arm that ran before, because the one that was decided for cannot run."""
        self.current, self.probing = arm, False
        self.seen, self.done = [], 0

    def compiled(self, seconds: float) -> None:
        """The current arm's program was compiled."""
        self.ready.add(self.programs[self.current])
        self.compile_seconds.append(seconds)

    def moved(self, seconds: float) -> None:
        """The state was moved to the current arm's layout."""
        self.reshard_seconds.append(seconds)

    def to_json(self) -> dict[str, Any]:
        return {
            "agent": self.agent.to_json(),
            "current": self.current,
            "probing": self.probing,
            "compile_seconds": self.compile_seconds,
            "reshard_seconds": self.reshard_seconds,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Goes on from `to_json`, with a probe begun anew. Raises ValueError when that is of other arms."""
        self.agent.restore(saved["agent"])
        self.current, self.probing = saved["current"], saved["probing"]
        self.compile_seconds = list(saved["compile_seconds"])
        self.reshard_seconds = list(saved["reshard_seconds"])
        self.done, self.seen, self.ready = 0, [], set()


def decision_of(raw: dict[str, Any]) -> Decision:
    """A decision that was sent as JSON (`dataclasses.asdict`)."""
    return Decision(**{field.name: raw[field.name] for field in dataclasses.fields(Decision)})


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise

"""The training loop, in the order things happen: batch, step, report, hooks.

It keeps one step in flight: while step k runs, the numbers of step k-1 are read and reported.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np

from jaxlm.data.fingerprint import as_text
from jaxlm.privacy.errors import BudgetSpent
from jaxlm.trainer.balanced import BalancedStep
from jaxlm.trainer.state import TrainState
from jaxlm.trainer.step import Metrics, Step
from jaxlm.trainer.stop import Interrupted

Scalars = dict[str, float]


class Hook(Protocol):
    """Something that needs the state itself: evaluation, checkpoint, audit log."""

    def due(self, step: int) -> bool: ...

    def __call__(self, step: int, state: TrainState[Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the loop ended: `done`, `paused`, `signal`, `nonfinite`, `halted` or `budget`, after `step` finished steps;
    `why` is what a hook that halted it said, or what is left of the budget; `restored`: the state is an earlier one."""

    state: TrainState[Any]
    step: int
    reason: str
    signal: int | None = None
    tensors: tuple[str, ...] = ()
    why: str = ""
    restored: bool = False


class Halted(Exception):
    """A hook ends the run for good; the message says why. `state` is what to go back to, where that is not the last."""

    def __init__(self, why: str, state: TrainState[Any] | None = None):
        super().__init__(why)
        self.state = state


class Enough(Exception):
    """A hook has seen what training was for: it ends as if all steps were done. The message says why."""


class NonFinite(Exception):
    """The loss or a gradient of step `step` is NaN or infinite, in the tensors named."""

    def __init__(self, step: int, tensors: tuple[str, ...]):
        super().__init__(step, tensors)
        self.step, self.tensors = step, tensors


@dataclass(frozen=True, slots=True)
class Finished:
    """One finished step.

    Its number (from 1), its scalars, the seconds since the step before it ended, the hash of its batch, what it reports
    of each replica, in order, and the norms of each tensor's gradient, weights and update, float32 [3, tensors], where
    the step computes them.
    """

    step: int
    scalars: Scalars
    seconds: float
    batch: str = ""
    vectors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    layers: np.ndarray | None = None


def train(
    state: TrainState[Any],
    *,
    step: Step[Any],
    batches: Iterator[Any],
    start: int,
    steps: int,
    tensors: Sequence[str],
    report: Callable[[Finished], None],
    hooks: Sequence[Hook] = (),
    stop: Callable[[int], int | None] = lambda step: None,
    pause: Callable[[int], bool] = lambda step: False,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Runs steps `start` to `steps` (counted from 0). `batches` yields the batch of step `start`, `start + 1`, ...

    `stop(step)` returns a signal number to end after that many steps. A step that is not finite leaves model and
    optimizer untouched (see `make_train_step`); the outcome then says so and holds the last good state. A hook may
    give up with Interrupted, which ends the loop like a signal, with Halted, or with Enough, which ends it before the
    last step as if that were done; the hooks after it are left out.
    `pause(step)` ends it after that many steps so that the caller may go on in another way. A step for which a privacy
    budget has nothing left raises BudgetSpent before it touches the state, which ends the loop.
    """
    meter = _Meter(tensors, report, clock)
    if isinstance(step, BalancedStep):
        step.meanwhile = meter.settle
    try:
        for index in range(start, steps):
            done = index + 1
            with jax.profiler.StepTraceAnnotation("train", step_num=done):  # read by --profile only
                batch = next(batches)
                try:
                    state, metrics = step(state, batch)
                except BudgetSpent as spent:
                    meter.settle()
                    return Outcome(state, index, "budget", why=str(spent))
            meter.follow(done, metrics)
            due = [hook for hook in hooks if hook.due(done)]
            asked = stop(done)
            if due or asked is not None:
                meter.settle()
                try:
                    for hook in due:
                        hook(done, state)
                except Interrupted as signal:
                    asked = signal.number
                except Halted as halted:
                    back = halted.state is not None
                    state = halted.state if halted.state is not None else state
                    return Outcome(state, done, "halted", why=str(halted), restored=back)
                except Enough as enough:
                    return Outcome(state, done, "done", why=str(enough))
                meter.restart()
            if asked is not None:
                return Outcome(state, done, "signal", signal=asked)
            if done < steps and pause(done):
                meter.settle()
                return Outcome(state, done, "paused")
        meter.settle()
    except NonFinite as bad:
        return Outcome(state, bad.step - 1, "nonfinite", tensors=bad.tensors)
    return Outcome(state, max(start, steps), "done")


class _Meter:
    """Reads the metrics of each step once the next one is under way, and times the steps."""

    def __init__(self, tensors: Sequence[str], report: Callable[[Finished], None], clock: Callable[[], float]):
        self.tensors, self.report, self.clock = tensors, report, clock
        self.waiting: tuple[int, Metrics] | None = None
        self.last = clock()

    def follow(self, step: int, metrics: Metrics) -> None:
        self.settle()
        self.waiting = (step, metrics)

    def settle(self) -> None:
        """Waits for the step in flight and reports it. Raises NonFinite."""
        if self.waiting is None:
            return
        (step, metrics), self.waiting = self.waiting, None
        values: dict[str, Any] = jax.device_get(metrics)
        now = self.clock()
        seconds, self.last = now - self.last, now
        norms, batch = np.asarray(values.pop("norms")), as_text(values.pop("batch"))
        layers = values.pop("layers", None)
        if not values.pop("finite"):
            raise NonFinite(step, culprits(values, norms, self.tensors))
        scalars = {name: float(value) for name, value in values.items() if np.ndim(value) == 0}
        vectors = {name: tuple(value.tolist()) for name, value in values.items() if np.ndim(value) == 1}
        self.report(Finished(step, scalars, seconds, batch, vectors, layers))

    def restart(self) -> None:
        """Time spent in hooks belongs to no step."""
        self.last = self.clock()


def culprits(values: Scalars, norms: np.ndarray, tensors: Sequence[str]) -> tuple[str, ...]:
    """The names of what is not finite: `loss`, and each gradient tensor."""
    named = () if np.isfinite(values["loss"]) else ("loss",)
    return named + tuple(name for name, norm in zip(tensors, norms, strict=True) if not np.isfinite(norm))

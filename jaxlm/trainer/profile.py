"""A profile of some steps: what the host and the devices did, for xprof, TensorBoard or Perfetto."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxlm.decode import ConfigError
from jaxlm.trainer.loop import Hook
from jaxlm.trainer.state import TrainState


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps `first` to `last`, both included, numbered as in the log."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str, steps: int) -> "Steps":
        """`10:12` of a run of `steps` steps. Raises ConfigError."""
        first, colon, last = text.partition(":")
        if not (colon and first.isdigit() and last.isdigit()):
            raise ConfigError(f"--profile {text}: write START:STOP, such as 10:12 for steps 10, 11 and 12")
        if not 1 <= int(first) <= int(last) <= steps:
            raise ConfigError(
                f"--profile {text}: the steps must be in order and within 1:{steps}, the steps of this run"
            )
        return cls(int(first), int(last))


class Profiling:
    """Records these steps into `directory`; call `begin` before the first step and `close` after the last.

    Only process 0 of a job should have one: processes of one machine would write the same files.
    """

    def __init__(self, steps: Steps, directory: Path, say: Callable[[str], None]):
        self.steps, self.directory, self.say = steps, directory, say
        self._since: int | None = None

    def begin(self, done: int) -> None:
        """`done` steps were taken before this start."""
        first, last = self.steps.first, self.steps.last
        if done >= last:
            self.say(f"--profile {first}:{last}: nothing to record, {done} steps are done already")
        elif done >= first:
            self.say(f"--profile {first}:{last}: steps up to {done} are done already and not recorded")
        if first - 1 <= done < last:
            self._start(done)

    def around(self, hooks: Sequence[Hook]) -> tuple[Hook, ...]:
        """The hooks with those that end and begin the recording, so that what other hooks do is not in it."""
        return (At(self.steps.last, self._stop), *hooks, At(self.steps.first - 1, self._start))

    def _start(self, done: int) -> None:
        # The second form is one file that ui.perfetto.dev opens without any program installed here.
        jax.profiler.start_trace(str(self.directory), create_perfetto_trace=True)
        self._since = done + 1

    def _stop(self, step: int) -> None:
        jax.profiler.stop_trace()
        self.say(
            f"steps {self._since} to {step} are recorded in {self.directory}: `xprof --logdir {self.directory}` "
            "(package xprof), or open perfetto_trace.json.gz below it at ui.perfetto.dev"
        )
        self._since = None

    def close(self) -> None:
        """Ends a recording that is under way."""
        if self._since is not None:
            jax.profiler.stop_trace()
            self.say(f"the run ended while steps {self._since} to {self.steps.last} were recorded: {self.directory}")


@dataclass(frozen=True, slots=True)
class At:
    """A hook that does one thing after one step."""

    step: int
    action: Callable[[int], None]

    def due(self, step: int) -> bool:
        return step == self.step

    def __call__(self, step: int, state: TrainState[Any]) -> None:
        self.action(step)

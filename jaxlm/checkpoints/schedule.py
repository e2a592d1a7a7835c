"""When to save: every so many steps, every so many seconds, or never."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxlm.checkpoints.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When checkpoints are written and which of them stay.

    Attributes:
        enabled: write checkpoints; with false nothing is written and a run cannot be resumed.
        every_steps: save after each multiple of this many steps; null: not by steps.
        every_seconds: save when the last save is this many seconds ago; null: not by time.
        keep_last: how many of the newest checkpoints stay on disk; at least 1.
        keep_every: also keep each checkpoint whose step is a multiple of this, for ever; null: none.
    """

    enabled: bool = True
    every_steps: int | None = None
    every_seconds: float | None = 600.0
    keep_last: int = 2
    keep_every: int | None = None

    def __post_init__(self) -> None:
        for name in ("every_steps", "every_seconds", "keep_every"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be positive, or null to switch it off")
        if self.keep_last < 1:
            raise ValueError(f"keep_last={self.keep_last} must be at least 1: a run resumes from one")

    def build(self, directory: Path) -> "Store":
        """The store of these checkpoints in `directory`; nothing is written before the first save."""
        from jaxlm.checkpoints.store import Keep, Store

        return Store(directory, Keep(last=self.keep_last, every=self.keep_every), enabled=self.enabled)


class Schedule:
    """Says after which steps to save; the seconds count from its creation and from each time it said yes.

    Args:
        config: the rule.
        clock: seconds that only go forward; a test hands in its own.
        agree: turns the answer of this process into the answer of all. A run of several processes must pass
            `processes.first_decides`, because their clocks differ; asked only where seconds decide.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        clock: Callable[[], float] = time.monotonic,
        agree: Callable[[bool], bool] = bool,
    ):
        self._config = config
        self._clock = clock
        self._agree = agree
        self._last = clock()

    def due(self, step: int) -> bool:
        """True when the state after `step` should be saved now. Ask once a step: a yes restarts the clock."""
        config = self._config
        if not config.enabled:
            return False
        due = config.every_steps is not None and step > 0 and step % config.every_steps == 0
        if not due and config.every_seconds is not None:
            due = self._agree(self._clock() - self._last >= config.every_seconds)
        if due:
            self._last = self._clock()
        return due

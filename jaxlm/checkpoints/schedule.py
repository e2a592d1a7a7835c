"""When to save: every so many steps, every so many seconds, or never."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxlm.checkpoints.errors import CheckpointError

if TYPE_CHECKING:
    from jaxlm.checkpoints.notary import Notary
    from jaxlm.checkpoints.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When checkpoints are written and which of them stay.

    Attributes:
        enabled: write checkpoints; with false nothing is written and a run cannot be resumed.
        every_steps: save after each multiple of this many steps, the N of the paper's section 3.4; null: not by steps.
        every_seconds: save when the last save is this many seconds ago; null: not by time.
        keep_last: how many of the newest checkpoints stay on disk; at least 1.
        keep_every: also keep each checkpoint whose step is a multiple of this, for ever; null: none.
        path: null: in the run directory; an absolute path: there instead; a URL, as gs://bucket/run or s3://bucket/run
            (`uv sync --extra cloud`): in the run directory, and each copied there, to be brought back if it is lost.
    """

    enabled: bool = True
    every_steps: int | None = 2000
    every_seconds: float | None = 600.0
    keep_last: int = 2
    keep_every: int | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        if self.path is not None and "://" not in self.path and not Path(self.path).is_absolute():
            raise ValueError(
                f"path={self.path!r} must be absolute, as /other/disk/run, or a URL, as gs://bucket/run: "
                "a relative one would mean another folder wherever a command is started"
            )
        for name in ("every_steps", "every_seconds", "keep_every"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be positive, or null to switch it off")
        if self.keep_last < 1:
            raise ValueError(f"keep_last={self.keep_last} must be at least 1: a run resumes from one")

    def require(self) -> None:
        """Raises CheckpointError when `path` is a folder that cannot be made, or a URL that nothing installed can
        read; no store is asked anything yet."""
        if not self.enabled or self.path is None:
            return
        if "://" in self.path:
            from jaxlm.checkpoints.mirror import Mirror

            Mirror(self.path)
            return
        try:
            Path(self.path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"checkpoint.path={self.path} cannot be made: {error.strerror}") from error

    def build(self, directory: Path, notary: "Notary | None" = None) -> "Store":
        """The store of these checkpoints in `directory`, or where `path` says; writes nothing before the first save.
        A `notary` signs what is saved and judges what is read.

        Raises:
            CheckpointError: `path` is a URL that nothing installed can read.
        """
        from jaxlm.checkpoints.mirror import Mirror
        from jaxlm.checkpoints.store import Keep, Store

        mirror = Mirror(self.path) if self.path is not None and "://" in self.path else None
        directory = Path(self.path) if self.path is not None and mirror is None else directory
        keep = Keep(last=self.keep_last, every=self.keep_every)
        return Store(directory, keep, enabled=self.enabled, mirror=mirror, notary=notary)


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

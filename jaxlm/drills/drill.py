"""Runs the drills one after the other against one undisturbed run, and says what was survived."""

import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

from jaxlm.drills.course import Course, NotSurvived, Setting, Skipped, same_run
from jaxlm.drills.faults import FAULTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of one drill.

    Attributes:
        drill: its name.
        fault: what was done.
        survived: whether the run came out with the same tokens and losses; None where it was skipped.
        recovery_seconds: from the fault, or from the removal of its cause, until the run was beyond where it had been.
        steps_lost: computed twice.
        what: how it came back, why it did not, or why it was skipped.
        seconds: that the drill took.
    """

    drill: str
    fault: str
    survived: bool | None
    recovery_seconds: float | None
    steps_lost: int | None
    what: str
    seconds: float

    def line(self) -> str:
        word = {True: "survived", False: "NOT SURVIVED", None: "skipped"}[self.survived]
        recovery = "" if self.recovery_seconds is None else f"{self.recovery_seconds:.1f} s"
        lost = "" if self.steps_lost is None else str(self.steps_lost)
        return f"{self.drill:11} {word:13} {recovery:>8} {lost:>6}  {self.what}"


HEAD = f"{'drill':11} {'':13} {'recovery':>8} {'lost':>6}  (seconds until beyond where it was; steps computed twice)"


def drill(setting: Setting, names: Sequence[str], say: Callable[[str], None]) -> list[Outcome]:
    """Runs these drills. Raises RuntimeError where the undisturbed run fails: then nothing can be compared."""
    with _terminated():
        shutil.rmtree(setting.out / "undisturbed", ignore_errors=True)
        say(f"an undisturbed run of {setting.steps} steps on {setting.hosts} hosts, for comparison")
        with Course(setting, "undisturbed") as course:
            try:
                course.finish()
            except NotSurvived as error:
                raise RuntimeError(f"the undisturbed run {error}; see {course.output}") from None
            wanted = course.records()
        say(HEAD)
        outcomes = []
        for name in names:
            outcomes.append(_one(setting, name, wanted))
            say(outcomes[-1].line())
        return outcomes


def _one(setting: Setting, name: str, wanted: list[dict[str, Any]]) -> Outcome:
    shutil.rmtree(setting.out / name, ignore_errors=True)
    (setting.out / f"{name}.log").unlink(missing_ok=True)
    fault = FAULTS[name]
    began, seen, survived, what = time.monotonic(), None, None, ""
    try:
        seen, course = fault(setting)
        same_run(course.records(), wanted)
        survived, what = True, seen.how
    except Skipped as error:
        what = str(error)
    except NotSurvived as error:
        survived, what = False, str(error)
    return Outcome(
        drill=name,
        fault=" ".join((fault.__doc__ or "").split()),
        survived=survived,
        recovery_seconds=None if seen is None else round(seen.seconds, 2),
        steps_lost=None if seen is None else seen.lost,
        what=what,
        seconds=round(time.monotonic() - began, 1),
    )


def report(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """As one JSON object."""
    return {
        "survived": sum(outcome.survived is True for outcome in outcomes),
        "not_survived": [outcome.drill for outcome in outcomes if outcome.survived is False],
        "skipped": [outcome.drill for outcome in outcomes if outcome.survived is None],
        "drills": [asdict(outcome) for outcome in outcomes],
    }


@contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so that networks, disks and processes are taken down."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

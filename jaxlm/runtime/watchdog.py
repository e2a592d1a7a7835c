"""Says which host of a job hangs, from the files that their monitors write; the launcher then ends and retries.

All times are by the clock of the one who looks, so a host whose clock is wrong is no trouble.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.runtime.monitor import REVIEWING, STEPPING, WAITING, read_reports

STEPS = (STEPPING, WAITING)
"""Phases in which a next step is expected soon."""

SETTLED = 3
"""Steps after which their median says what to expect; the first ones load libraries and tune kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long nothing may happen.

    Attributes:
        silent: seconds without a sign of life of a host, such as one that is stopped.
        factor: times the median step without a new step of anybody.
        least: seconds that this is at least; before the first steps three times as many.
        other: seconds without a change outside of steps, such as in an evaluation.
    """

    silent: float = 20.0
    factor: float = 20.0
    least: float = 30.0
    other: float = 3600.0


@dataclass
class _Seen:
    beat: Any = None
    beat_at: float = 0.0
    place: Any = None
    place_at: float = 0.0


class Watchdog:
    """Looks at the hosts of one attempt.

    Args:
        folder: `RUN/hosts`; reports from before are removed.
        hosts: that take part.
        patience: how long nothing may happen.
        clock: seconds that only go forward.
    """

    def __init__(
        self, folder: Path, hosts: Sequence[int], patience: Patience, clock: Callable[[], float] = time.monotonic
    ):
        self.folder, self.hosts, self.patience, self.clock = folder, list(hosts), patience, clock
        self._seen = {host: _Seen() for host in self.hosts}
        for path in folder.glob("*.json"):
            if path.stem.isdigit():
                path.unlink()

    def __call__(self) -> tuple[int | None, str] | None:
        """The host that hangs, None where that cannot be told, and why; nothing where all is well."""
        now = self.clock()
        reports = {report["host"]: report for report in read_reports(self.folder) if report["host"] in self._seen}
        for host, report in reports.items():
            seen = self._seen[host]
            if report["beat"] != seen.beat:
                seen.beat, seen.beat_at = report["beat"], now
            place = (report["phase"], report["step"], report["finished"])
            if place != seen.place:
                seen.place, seen.place_at = place, now
        for host, report in reports.items():
            silent = now - self._seen[host].beat_at
            if silent > self.patience.silent and report["phase"] != "ended":
                return host, (
                    f"it has given no sign of life for {silent:.0f} s: stopped, or its machine or disk hangs; "
                    f"its last was in step {report['step']}"
                )
        if len(reports) < len(self.hosts):
            return None  # some have not begun
        return self._stalled(reports, now)

    def _stalled(self, reports: dict[int, dict[str, Any]], now: float) -> tuple[int | None, str] | None:
        if any(report["phase"] == REVIEWING for report in reports.values()):
            return None  # all wait for a person, who may take days
        still = min(now - self._seen[host].place_at for host in reports)
        if not all(report["phase"] in STEPS for report in reports.values()):
            if still <= self.patience.other:
                return None
            doing = ", ".join(f"host {host}: {report['phase']}" for host, report in sorted(reports.items()))
            return None, f"nothing has changed for {still:.0f} s ({doing})"
        limit = self._limit(reports)
        if still <= limit:
            return None
        last = max(report["step"] for report in reports.values())
        behind = [host for host, report in sorted(reports.items()) if report["step"] < last]
        behind = behind or [host for host, report in sorted(reports.items()) if report["phase"] == WAITING]
        if behind and len(behind) < len(reports):
            report = reports[behind[0]]
            return behind[0], (
                f"it {'waits for data' if report['phase'] == WAITING else 'has stayed'} in step {report['step']} "
                f"for {still:.0f} s, and the others wait for it in step {last} (patience {limit:.0f} s)"
            )
        return None, (
            f"no step for {still:.0f} s: all {len(reports)} hosts wait inside step {last}, so a collective hangs or a "
            f"link is down (patience {limit:.0f} s)"
        )

    def _limit(self, reports: dict[int, dict[str, Any]]) -> float:
        settled = [r["step_seconds"]["median"] for r in reports.values() if r["step_seconds"]["count"] >= SETTLED]
        if not settled:
            return 3 * self.patience.least
        return max(self.patience.least, self.patience.factor * max(settled))

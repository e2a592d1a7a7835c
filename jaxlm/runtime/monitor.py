"""The agent of one host: what it does now, how long its steps and its waits for data take, what its hardware says.

It writes one small file, `RUN/hosts/K.json`, about every second: a sign of life for the launcher, and a report for
process 0, which judges the reports of all (`events`). It takes part in no collective, so it tells of a host that hangs
in one.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import psutil

from jaxlm.runtime.events import Event, Judge
from jaxlm.runtime.histogram import Histogram
from jaxlm.runtime.sensors import Injected, Linux, Sensors, find

T = TypeVar("T")

Writer = tuple[str, int]
"""The process that wrote a report: the name of its machine, and its number there."""

Writing = tuple[Any, ...]
"""One report of one process."""

HOST = "JAXLM_HOST"
"""The environment variable in which a launcher numbers its hosts; process K is host K without it."""

RDMA = Path("/sys/class/infiniband")
"""Holds the adapters for InfiniBand and RoCE."""

WAITING, STEPPING = "waits for data", "step"


@dataclass
class _State:
    """What the training thread leaves for the agent's."""

    phase: str = "starts"
    step: int = 0
    since: float = 0.0
    finished: int = 0
    steps: Histogram = field(default_factory=Histogram)
    data: Histogram = field(default_factory=Histogram)
    cpu: Histogram = field(default_factory=Histogram)
    replicas: tuple[float, ...] = ()


class Monitor:
    """Use as a context around training; the methods are called by the training thread.

    Args:
        folder: `RUN/hosts`.
        process: of the job; process 0 judges the reports of all.
        processes: of the job.
        period: seconds between two reports.
        sensors: of this host; by default the best that are found, which is looked for only where it is enabled.
        enabled: whether anything is read and written at all.
        say: is told of events, on process 0.
        link: bytes/s between hosts that the plan counts on for each device, where a cluster file says.
    """

    def __init__(
        self,
        folder: Path,
        process: int,
        processes: int,
        *,
        period: float = 1.0,
        sensors: Sensors | None = None,
        enabled: bool = True,
        say: Callable[[str], None] = lambda text: None,
        link: float | None = None,
    ):
        self.host = int(os.environ.get(HOST, process))
        self._writes = HOST in os.environ
        self.folder, self.process, self.processes, self.period, self.say = folder, process, processes, period, say
        self.enabled = enabled
        self.file = folder / f"{self.host}.json"
        if sensors is None:
            sensors = find() if enabled else Linux()
        self.sensors = Injected(sensors, folder / f"{self.host}.injected.json")
        self.state = _State(since=time.monotonic())
        self.judge = Judge(link=link) if process == 0 else None
        self.unwritten = 0
        self.failures = 0
        self.failure: str | None = None
        self.reading: dict[str, Any] = {}
        self.pending: list[Event] = []
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._beat = 0
        self._cpu = time.process_time()
        self._reports: list[dict[str, Any]] = []
        self._old: dict[int, Writing] = {}
        self._joules: dict[int, tuple[Writer, float, float]] = {}
        self._recorded: tuple[int, float | None, int | None] = (0, None, None)
        self._spent = (0.0, 0)
        self.steps_per_epoch: float | None = None

    def __enter__(self) -> "Monitor":
        if not self.enabled:
            return self
        self._old = {report["host"]: _writing(report) for report in read_reports(self.folder)}
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        if not self.enabled:
            return
        self._end.set()
        self._thread.join()
        self.state.phase = "ended"
        with self._kept():
            self._report()

    def accept(self) -> None:
        """The run directory is that of this run: its reports go there from now on. A launcher, which watches from the
        start, gets them before; otherwise a run that is refused leaves the directory as it was."""
        self._writes = True

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What the training thread does inside the block."""
        before = self.state.phase
        self._now(name)
        try:
            yield
        finally:
            self._now(before)

    def batches(self, batches: Iterator[T], done: int) -> Iterator[T]:
        """The batches as they are, with the time that each is waited for."""
        while True:
            began = time.monotonic()
            self._now(WAITING)
            try:
                batch = next(batches)
            except StopIteration:
                self._now("after the last step")
                return
            done += 1
            with self._lock:
                self.state.data.add(time.monotonic() - began)
                self.state.step = done
            self._now(STEPPING)
            yield batch

    def observe(self, step: int, seconds: float, replicas: Sequence[float] = ()) -> None:
        """Takes note of a finished step.

        Args:
            step: its number, from 1.
            seconds: since the step before it ended.
            replicas: seconds per microbatch of each replica, where they were measured.
        """
        cpu = time.process_time()
        with self._lock:
            self.state.steps.add(seconds)
            self.state.cpu.add(cpu - self._cpu)
            self.state.finished = step
            self.state.replicas = tuple(replicas)
            self._cpu = cpu

    def joules(self) -> float | None:
        """Energy of all hosts since they began, on process 0; None where any of them cannot measure it."""
        with self._lock:
            if len(self._joules) < self.processes:
                return None
            return sum(last - first for _, first, last in self._joules.values())

    def complete(self, record: dict[str, Any]) -> None:
        """Adds means since the record before: `joules_per_step` of whole hosts, or of their GPUs, where they can be
        measured, and in a job of several processes `network_bytes_per_step`, sent by all interfaces of this host."""
        now, sent = self.joules(), _sent() if self.processes > 1 and self.enabled else None
        step, before, sent_before = self._recorded
        self._recorded = (record["step"], now, sent)
        steps = record["step"] - step
        if now is not None and before is not None and now >= before and steps > 0:  # less: counted anew, see _judge
            record["joules_per_step"] = (now - before) / steps
            self._spent = (self._spent[0] + now - before, self._spent[1] + steps)
        if sent is not None and sent_before is not None and steps > 0:
            record["network_bytes_per_step"] = (sent - sent_before) / steps

    def summary(self) -> dict[str, Any]:
        """For the end of a run, on process 0: what each host took, energy where it was measured, and how often a
        monitor itself failed. `joules_per_epoch` is the mean of all measured steps, with the evaluations and
        checkpoints between them, times the steps of an epoch; it need not have been a whole one."""
        joules = self.joules()
        hosts = {
            str(report["host"]): {
                "step_seconds": report["step_seconds"]["median"],
                "step_seconds_p99": report["step_seconds"]["p99"],
                "data_seconds": report["data_seconds"]["median"],
                "temperature": report["hardware"].get("temperature"),
                "power": report["hardware"].get("power"),
                **({"monitor_failures": report["failures"]} if report["failures"] else {}),
            }
            for report in self._reports
        }
        facts: dict[str, Any] = {"hosts": hosts, "joules": joules}
        spent, steps = self._spent
        if steps and self.steps_per_epoch is not None:
            facts["joules_per_epoch"] = spent / steps * self.steps_per_epoch
        return facts if self.enabled else {}

    def take(self) -> list[dict[str, Any]]:
        """The events since the last call, as JSON; empty on all processes but the first."""
        with self._lock:
            events, self.pending = self.pending, []
        return [event.to_json() for event in events]

    def around(self, hooks: Sequence[Any]) -> list[Any]:
        """The hooks, each a phase of its own."""
        return [_Phased(hook, self) for hook in hooks]

    def _now(self, phase: str) -> None:
        with self._lock:
            self.state.phase, self.state.since = phase, time.monotonic()

    def _run(self) -> None:
        while True:
            with self._kept():
                self._report()
            if self.judge is not None:
                with self._kept():
                    self._judge(self.judge)
            if self._end.wait(self.period):
                return

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """A failure inside is counted, and stands in the next report. It must not end this thread: a host without
        signs of life is taken to hang, and its job, which may be in good health, is ended."""
        try:
            yield
        except Exception as error:
            self.failures += 1
            self.failure = f"{type(error).__name__}: {error}"

    def report(self) -> dict[str, Any]:
        """What is known of this host now."""
        with self._lock:
            state = self.state
            return {
                "host": self.host,
                "process": self.process,
                "processes": self.processes,
                "name": socket.gethostname(),
                "pid": os.getpid(),
                "beat": self._beat,
                "time": time.time(),
                "seconds": time.monotonic(),
                "phase": state.phase,
                "phase_seconds": time.monotonic() - state.since,
                "step": state.step,
                "finished": state.finished,
                "step_seconds": state.steps.to_json(),
                "data_seconds": state.data.to_json(),
                "cpu_seconds": state.cpu.to_json(),
                "replica_seconds": list(state.replicas),
                "network_bytes_sent": _sent(),
                "hardware": self.reading,
                "unwritten": self.unwritten,
                "failures": self.failures,
                "failure": self.failure,
            }

    def _report(self) -> None:
        self._beat += 1
        with self._kept():
            self.reading = self.sensors.read()
        text = json.dumps(self.report())
        aside = self.file.with_suffix(".unfinished")
        if not self._writes:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            aside.write_text(text)
            os.replace(aside, self.file)
        except OSError:
            self.unwritten += 1  # a full disk stops the run by itself, with a message; the next report says how often

    def _judge(self, judge: Judge) -> None:
        """What an earlier attempt left does not count: only a launcher removes it. It is known by not changing any
        more, not by its time, since the clocks of two hosts may differ."""
        reports = [r for r in read_reports(self.folder, self.processes) if self._old.get(r["host"]) != _writing(r)]
        with self._lock:
            self._reports = reports
            for report in reports:
                if (energy := report["hardware"].get("energy")) is None:
                    continue
                host, writer = report["host"], (report["name"], report["pid"])
                before, first, last = self._joules.get(host, (writer, energy, energy))
                if before != writer:  # the end of another attempt overlapped with our beginning
                    first = last = energy
                self._joules[host] = (writer, first, max(energy, last))
        for event in judge(reports):
            with self._lock:
                self.pending.append(event)
            with self._kept():
                self.say(f"monitor: {event.sentence}")
            line = json.dumps({"time": time.time(), "step": self.state.finished, **event.to_json()})
            with contextlib.suppress(OSError), (self.folder / "events.jsonl").open("a") as file:
                file.write(line + "\n")  # a full disk stops the run by itself, with a message


class _Phased:
    """A hook of the training loop, seen by the monitor."""

    def __init__(self, hook: Any, monitor: Monitor):
        self.hook, self.monitor = hook, monitor

    def due(self, step: int) -> bool:
        return self.hook.due(step)

    def __call__(self, step: int, state: Any) -> None:
        with self.monitor.phase(type(self.hook).__name__.lower()):
            self.hook(step, state)


REVIEWING = "waits for a review"
"""The phase in which nothing need happen for days."""
_NEEDED = {"host", "beat", "phase", "step", "finished", "step_seconds"}
"""What a file must say for it to be a report."""


def read_reports(folder: Path, processes: int | None = None) -> list[dict[str, Any]]:
    """The newest report of each host in `RUN/hosts`; of jobs of that many processes only, where it is given.

    What cannot be read now, or is no report, is left out: who has no report for long is taken to hang by whoever waits
    for it, so that a disk that fails for a moment is not the end of a job."""
    found = []
    try:
        paths = sorted(folder.glob("*.json"))
    except OSError:
        return []
    for path in paths:
        if not path.stem.isdigit():
            continue
        try:
            report = json.loads(path.read_text())
        except (OSError, ValueError):  # ValueError: neither JSON nor, after a crash of the machine, UTF-8
            continue
        if not isinstance(report, dict) or not report.keys() >= _NEEDED:
            continue
        if processes is None or report.get("processes") == processes:
            found.append(report)
    return found


def _writing(report: dict[str, Any]) -> Writing:
    """Not the same for any two reports of a host."""
    return tuple(report.get(name) for name in ("name", "pid", "beat", "time"))


def _sent() -> int | None:
    """Bytes sent by all interfaces of this host; None where it does not say, or where it has RDMA, which goes past the
    kernel and its counters."""
    try:
        if any(RDMA.glob("*")):
            return None
        network = psutil.net_io_counters()
    except (OSError, RuntimeError):
        return None
    return network.bytes_sent if network else None

"""One job on many hosts of this machine: started, retried from its last good checkpoint, moved to fewer hosts and back.

What `jaxlm launch local` does. A host is a process with devices of its own, as a node of a cluster would be.
"""

import json
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from jaxlm.runtime.distributed import LAUNCHED
from jaxlm.runtime.hosts import Ended, HostCommand, Hosts
from jaxlm.runtime.monitor import HOST
from jaxlm.runtime.watchdog import Patience, Watchdog

Say = Callable[[str], None]

BACKOFF = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds before the first, second, ... retry in a row."""

STRIKES = 2
"""Failures of the same host in a row after which the job goes on without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What is started, and how much it may fail.

    Attributes:
        hosts: how many there are.
        train: arguments of `jaxlm train`, the run directory among them, without the place in a job.
        run_dir: where logs and signs of life go, below `hosts/`.
        batch: sequences per step, which the devices in use must divide.
        devices: CPU devices of each host; 0 where the hosts have GPUs.
        gpus: identifiers of all GPUs, shared out among the hosts.
        retries: failures in a row without a step in between that are retried.
        fewest: hosts below which the job does not go on.
        back_after: seconds after which a host that was left out for failing is tried again; None: never by itself.
        dead_after: seconds without a sign of life after which the processes declare one of them dead themselves.
        patience: how long nothing may happen before the job is taken to hang.
        address: of host 0, as the others see it.
        wrap: a command that runs each host, with {host} for its number; it must become the host, as `exec` does.
        again: how a person starts such a job again, without configuration and run directory.
    """

    hosts: int
    train: tuple[str, ...]
    run_dir: Path
    batch: int
    devices: int = 1
    gpus: tuple[str, ...] = ()
    retries: int = 3
    fewest: int = 1
    back_after: float | None = None
    dead_after: float = 60.0
    again: str = "jaxlm launch local"
    patience: Patience = Patience()
    address: str = "localhost"
    wrap: str = ""

    @property
    def folder(self) -> Path:
        return self.run_dir / "hosts"

    @property
    def devices_each(self) -> int:
        return len(self.gpus) // self.hosts if self.gpus else self.devices

    def commands(self, hosts: Sequence[int], port: int) -> list[HostCommand]:
        """What each of these hosts runs."""
        job = ["--coordinator", f"{self.address}:{port}", "--processes", str(len(hosts))]
        job += ["--dead-after", f"{self.dead_after:g}"]
        made = []
        for process, host in enumerate(hosts):
            place = [*job, "--process", str(process)] if len(hosts) > 1 else []
            wrap = shlex.split(self.wrap.replace("{host}", str(host)))
            made.append(
                HostCommand(
                    host=host,
                    command=(*wrap, sys.executable, "-m", "jaxlm", "train", *self.train, *place),
                    environment=self._environment(host),
                    log=self.folder / f"{host}.log",
                )
            )
        return made

    def _environment(self, host: int) -> dict[str, str]:
        common = {"PYTHONUNBUFFERED": "1", LAUNCHED: self.again, HOST: str(host)}
        if self.gpus:
            each = self.devices_each
            return common | {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus[host * each : (host + 1) * each])}
        return common | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(self.devices)}

    def usable(self, there: Sequence[int]) -> list[int]:
        """As many of the hosts that are there as divide the batch; step k holds the same tokens on any of them."""
        for count in range(len(there), 0, -1):
            if self.batch % (count * self.devices_each) == 0:
                return list(there[:count])
        return list(there[:1])

    def describe(self, hosts: Sequence[int], port: int) -> str:
        """The commands as a person would type them."""
        lines = []
        for spec in self.commands(hosts, port):
            variables = " ".join(f"{k}={shlex.quote(v)}" for k, v in spec.environment.items())
            lines.append(f"host {spec.host}: {variables} {shlex.join(spec.command)} >> {spec.log}")
        return "\n".join(lines)


class Absent:
    """Hosts that are out of the job: one file for each, `hosts/K.down`, holding the reason.

    Whoever makes such a file takes the host out at the next step, saved; whoever removes it brings the host back.
    """

    def __init__(self, folder: Path, hosts: int):
        self.folder, self.hosts = folder, hosts

    def there(self) -> list[int]:
        return [host for host in range(self.hosts) if not self._file(host).exists()]

    def leave_out(self, host: int, why: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file(host).write_text(json.dumps({"why": why, "by": "launch"}) + "\n")

    def forgive(self, older_than: float) -> None:
        """Brings back those hosts that we left out ourselves that many seconds ago."""
        for host in range(self.hosts):
            file = self._file(host)
            if (
                file.exists()
                and '"by": "launch"' in file.read_text()
                and time.time() - file.stat().st_mtime > older_than
            ):
                file.unlink()

    def _file(self, host: int) -> Path:
        return self.folder / f"{host}.down"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a launch ended: its exit code, attempts, and each failure on the way."""

    code: int
    attempts: int
    failures: tuple[Ended, ...] = ()


def launch(job: Launch, say: Say) -> Result:
    """Runs the job until it is done, was told to stop, or cannot go on."""
    absent = Absent(job.folder, job.hosts)
    failures: list[Ended] = []
    in_a_row = attempts = 0
    strikes: tuple[int | None, int] = (None, 0)
    furthest = progress(job.run_dir)
    with _signals() as received:
        while True:
            hosts = job.usable(absent.there())
            if len(hosts) < job.fewest or not hosts:
                say(f"launch: {len(hosts)} of {job.hosts} hosts can be used, --min-hosts is {job.fewest}: {job.folder}")
                return Result(code=1, attempts=attempts, failures=tuple(failures))
            attempts += 1
            if attempts > 1 or len(hosts) < job.hosts:
                say(f"launch: attempt {attempts} on {_named(hosts, job.hosts)}")
            ended, moved = _attempt(job, hosts, attempts, absent, received)
            if moved and not received:
                say(f"launch: the hosts have changed; {_named(job.usable(absent.there()), job.hosts)} go on")
                continue
            who = "the job" if ended.host is None else f"host {ended.host}"
            if received or ended.code != 1:
                if ended.code == 1:
                    told = signal.Signals(received[0]).name
                    say(f"jaxlm: error: after {told} {who} of {len(hosts)} failed first: {ended.why}")
                elif 0 < ended.code <= 128:
                    say(f"jaxlm: error: {ended.why}")
                return Result(code=ended.code, attempts=attempts, failures=tuple(failures))
            failures.append(ended)
            reached = progress(job.run_dir)
            in_a_row = 1 if reached > furthest else in_a_row + 1
            furthest = max(furthest, reached)
            strikes = (ended.host, strikes[1] + 1 if ended.host == strikes[0] else 1)
            say(
                f"jaxlm: error: {who} of {len(hosts)} failed first: {ended.why}\n"
                f"  all others ended within {ended.seconds:.1f} s; step {reached} was the last one reported; "
                f"what each said: {job.folder}/*.log"
            )
            if in_a_row > job.retries:
                say(_given_up(job.retries))
                return Result(code=1, attempts=attempts, failures=tuple(failures))
            if ended.host is not None and strikes[1] >= STRIKES and len(hosts) > job.fewest and len(hosts) > 1:
                absent.leave_out(ended.host, ended.why)
                say(f"launch: host {ended.host} failed {strikes[1]} times in a row and is left out")
            pause = BACKOFF[min(in_a_row, len(BACKOFF)) - 1]
            say(f"launch: retry {in_a_row} of {job.retries} from the last good checkpoint in {pause:g} s")
            _sleep(pause, received)
            if received:
                say(f"launch: stopped by {signal.Signals(received[0]).name} before the retry")
                return Result(code=128 + received[0], attempts=attempts, failures=tuple(failures))


def _attempt(job: Launch, hosts: list[int], attempt: int, absent: Absent, received: list[int]) -> tuple[Ended, bool]:
    """One start of these hosts; whether it was ended because another set of hosts is there."""
    moved, passed, looked = False, 0, time.monotonic()
    watchdog = Watchdog(job.folder, hosts, job.patience)
    with Hosts(job.commands(hosts, free_port()), title=f"attempt {attempt}") as running:

        def watch() -> None:
            nonlocal moved, passed, looked
            while passed < len(received):
                running.send(received[passed])
                passed += 1
            if time.monotonic() - looked < 0.5:
                return
            looked = time.monotonic()
            if (hangs := watchdog()) is not None:
                running.hung(*hangs)
                return
            if job.back_after is not None:
                absent.forgive(job.back_after)
            wanted = job.usable(absent.there())
            if not moved and not passed and wanted and wanted != hosts:
                moved = True
                running.send(signal.SIGTERM)  # each saves, and they stop together

        ended = running.wait(watch=watch)
    return ended, moved and ended.code == 128 + signal.SIGTERM


def progress(run_dir: Path) -> int:
    """The furthest step that metrics.jsonl holds; 0 where there is none."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 65536))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError):  # the first line in this window may be cut off
            continue
    return 0


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def local_gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The NVIDIA GPUs of this machine that may be used, without starting CUDA; none where JAX is told to use CPUs."""
    if environment.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        return ()
    if (visible := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(name for name in visible.split(",") if name and name != "-1")
    return tuple(str(i) for i in range(len(list(Path("/proc/driver/nvidia/gpus").glob("*")))))


def _named(hosts: Sequence[int], all_hosts: int) -> str:
    return f"{len(hosts)} of {all_hosts} hosts ({', '.join(map(str, hosts))})"


def _given_up(retries: int) -> str:
    if retries == 0:
        return "launch: not retried: --retries is 0"
    return f"launch: given up after {retries} retries without a step in between"


def _sleep(seconds: float, received: list[int]) -> None:
    deadline = time.monotonic() + seconds
    while not received and time.monotonic() < deadline:
        time.sleep(0.05)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGTERM and SIGINT are collected, to be passed on."""
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""The processes of one job on this machine: started together, logged apart, ended together, the first cause named.

JAX is not imported here: whoever supervises others must not wait for it, nor fall with it.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

PATIENCE = 14.0
"""Seconds that the others have to end by themselves after one has failed; `peers.GRACE` is inside of it."""

SHORT = 1.0
"""The same after one has died: long enough for the first cause to be seen to have ended too."""

_BLAMES = re.compile(r"jaxlm: error: process (\d+) of \d+ (?:died|stopped first|left): (.*)")
_ABORTS = ("leader task was preempted/died", "coordination service", "CoordinationService")
_LAST_WORDS = ("jaxlm: error: ", "stopped: ")
_TAIL = 65536
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG, see prctl(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCommand:
    """One process of the job: what it runs, with which variables besides our own, and where its output goes."""

    host: int
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a job ended.

    Attributes:
        code: its exit code as `jaxlm train` gives it: 0 done, 2 bad input, 3 stopped on purpose, 4 halted by a policy,
            128+n after a signal and a save, else 1.
        host: the host that failed first; None where none did, or nobody can tell.
        why: what it said, or how it died.
        seconds: from the failure to the end of the last process.
    """

    code: int
    host: int | None = None
    why: str = ""
    seconds: float = 0.0


@dataclass
class _Host:
    spec: HostCommand
    process: subprocess.Popen[bytes]
    begins: int
    ended_at: float | None = None
    killed: bool = False

    def text(self) -> str:
        """The end of what it wrote in this attempt."""
        with self.spec.log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(self.begins, file.tell() - _TAIL))
            return file.read().decode(errors="replace")


class Hosts:
    """Runs all commands at once; use as a context, so that none outlives it.

    Args:
        commands: one for each host, in order.
        out: gets the output of host 0 as it comes; that of the others is in their logs only.
        title: the line that begins this attempt in every log.
    """

    def __init__(self, commands: Sequence[HostCommand], *, out: TextIO | None = None, title: str = ""):
        self._commands, self._out, self._title = commands, out or sys.stdout, title
        self._hosts: list[_Host] = []
        self._shown = 0
        self._hung: tuple[int | None, str] | None = None

    def __enter__(self) -> "Hosts":
        for spec in self._commands:
            spec.log.parent.mkdir(parents=True, exist_ok=True)
            with spec.log.open("ab", buffering=0) as log:
                now = datetime.now(UTC).isoformat(timespec="seconds")
                log.write(f"--- {self._title or 'started'} {now}: host {spec.host}\n".encode())
                begins = log.tell()
                process = subprocess.Popen(
                    (*_with_us(), *spec.command),
                    env={**os.environ, **spec.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches us alone, and we pass it on
                )
            self._hosts.append(_Host(spec, process, begins))
        self._shown = self._hosts[0].begins
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._hosts:
            if host.process.poll() is None:
                host.process.kill()
                host.process.wait()

    @property
    def pids(self) -> list[int]:
        return [host.process.pid for host in self._hosts]

    @property
    def running(self) -> bool:
        return any(host.process.poll() is None for host in self._hosts)

    def send(self, number: int) -> None:
        """Passes a signal on to every host that runs."""
        for host in self._hosts:
            if host.process.poll() is None:
                host.process.send_signal(number)

    def hung(self, host: int | None, why: str) -> None:
        """Ends the job because it makes no progress; `why` becomes its cause."""
        self._hung = (host, why)

    def wait(self, *, watch: Callable[[], None] = lambda: None, period: float = 0.1) -> Ended:
        """Shows host 0's output until the job ends. `watch` is called every `period` seconds."""
        failed_at: float | None = None
        while True:
            now = time.monotonic()
            for host in self._hosts:
                if host.ended_at is None and host.process.poll() is not None:
                    host.ended_at = now
                    if host.process.returncode != 0 and failed_at is None and self._hung is None:
                        failed_at = now
            if failed_at is None:
                self._show()
            if not self.running:
                break
            if failed_at is None and self._hung is None:
                watch()
                if self._hung is not None:
                    failed_at = now
            if failed_at is not None and self._impatient(now - failed_at):
                for host in self._hosts:
                    if host.process.poll() is None:
                        host.killed = True
                        host.process.kill()
            time.sleep(period)
        ended = self._judge()
        if ended.host in (None, self._hosts[0].spec.host):
            self._show()
        return Ended(
            code=ended.code,
            host=ended.host,
            why=ended.why,
            seconds=0.0 if failed_at is None else time.monotonic() - failed_at,
        )

    def _impatient(self, seconds: float) -> bool:
        """Nothing can be saved without a host that died or hangs; one that failed tells the others itself."""
        died = any((h.process.returncode or 0) < 0 and not h.killed for h in self._hosts if h.ended_at is not None)
        return self._hung is not None or seconds > (SHORT if died else PATIENCE)

    def _show(self) -> None:
        host = self._hosts[0]
        with host.spec.log.open("rb") as file:
            file.seek(self._shown)
            text = file.read()
        self._shown += len(text)
        if text:
            self._out.write(text.decode(errors="replace"))
            self._out.flush()

    def _judge(self) -> Ended:
        if self._hung is not None:
            return Ended(code=1, host=self._hung[0], why=self._hung[1])
        ended = sorted((h for h in self._hosts if not h.killed), key=lambda h: h.ended_at or 0.0)
        failed = [h for h in ended if h.process.returncode != 0]
        if not failed:
            return Ended(code=0)
        causes = [h for h in failed if not _is_consequence(h)]
        if not causes and (blamed := _blamed(failed)) is not None:
            return Ended(code=1, host=self._hosts[blamed[0]].spec.host, why=blamed[1])
        first = (causes or failed)[0]
        code = first.process.returncode
        if code > 128 or code in (2, 3, 4):
            return Ended(code=code, host=first.spec.host, why=last_words(first.text()))
        return Ended(code=1, host=first.spec.host, why=_how(code) if code < 0 else last_words(first.text()))


def _is_consequence(host: _Host) -> bool:
    """Whether this host ended because another one did: by its own words, or by those of JAX when it aborts."""
    text = host.text()
    if host.process.returncode == -signal.SIGABRT:
        return any(words in text for words in _ABORTS)
    return host.process.returncode > 0 and _BLAMES.search(text) is not None


def _blamed(failed: Sequence[_Host]) -> tuple[int, str] | None:
    """Whom the failed hosts name, where none of them is the cause itself."""
    for host in failed:
        if (found := _BLAMES.search(host.text())) is not None:
            return int(found[1]), found[2]
    return None


def last_words(text: str) -> str:
    """The line that says why a process failed: our own error message, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        if line.startswith(_LAST_WORDS):
            return line.removeprefix("jaxlm: error: ")
    return lines[-1] if lines else "it said nothing"


def _how(code: int) -> str:
    number = -code
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    hint: dict[int, str] = {
        signal.SIGKILL: " (somebody, or the kernel for want of memory)",
        signal.SIGSEGV: " (a crash in native code)",
        signal.SIGBUS: " (a mapped file or a shared memory without room)",
        signal.SIGABRT: " (native code gave up)",
    }
    return f"killed by {name}{hint.get(number, '')}"


_END_WITH_PARENT = """
import ctypes, os, signal, sys
parent, number, *command = sys.argv[1:]
ctypes.CDLL(None).prctl(int(number), signal.SIGTERM)
os.getppid() == int(parent) or os.kill(os.getpid(), signal.SIGTERM)
os.execvp(command[0], command)
"""


def _with_us() -> tuple[str, ...]:
    """What a command starts with so that the kernel tells it to save and stop when we die, however that happens;
    Linux only. It becomes the command; a function between fork and exec would not do, since JAX has threads."""
    if sys.platform != "linux":
        return ()
    return (sys.executable, "-S", "-c", _END_WITH_PARENT, str(os.getpid()), str(_DIE_WITH_PARENT))

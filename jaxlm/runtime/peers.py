"""What the processes of one job know of each other's end: the first that fails or dies is named by all the others.

Without this a process whose peer has gone waits in a collective or in a barrier of Orbax until JAX aborts it with a
stack trace. Signs of life and the first cause travel through JAX's coordination service, so there is no port to open.
JAX's own heartbeat stays behind it: it ends the job where Python itself hangs, and at once when process 0 is killed,
since that process holds the service.
"""

import contextlib
import json
import os
import sys
import threading
import time
from types import TracebackType
from typing import Any, Protocol

import jax

from jaxlm.checkpoints.processes import coordination
from jaxlm.runtime.distributed import Job

GRACE = 10.0
"""Seconds that a process has to end by itself once it knows that another one failed."""

_ALIVE, _CAUSE, _LEFT = "jaxlm/alive", "jaxlm/cause", "left"
_CONSEQUENCES = ("gloo", "nccl", "unavailable", "connection", "peer")


class Service(Protocol):
    """What is used of JAX's coordination service."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...

    def key_value_try_get(self, key: str) -> str: ...

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...


class Peers:
    """While active, tells the others that this process lives, and ends it with one message when one of them fails.

    A process that leaves with an error publishes it, and only the first is kept. The others then have `GRACE` seconds
    to end by themselves; after that they print the cause and exit, because a collective without all its processes
    never returns. A process that is silent for `job.dead_after` seconds is declared dead by process 0.
    """

    def __init__(self, job: Job, service: Service | None = None):
        self._job = job
        self._service = service
        self._period = min(max(job.dead_after / 12, 0.1), 5.0)
        self._end = threading.Event()
        self._told = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Peers":
        if self._job.processes > 1:
            self._service = self._service or coordination()
            self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if self._thread is None or self._service is None:
            return
        if error is not None:
            if _is_consequence(error):
                self._told.wait(self._job.dead_after + 2 * self._period)  # who died is the better message
                if self._told.is_set():
                    time.sleep(2 * GRACE)  # the watching thread prints it and ends this process
            code = getattr(error, "code", None)
            self._publish(self._job.process, _sentence(error), code if isinstance(code, int) else 1)
        self._end.set()
        self._thread.join()
        _quietly(self._service.key_value_set, f"{_ALIVE}/{self._job.process}", _LEFT, True)

    def depart(self, why: str, code: int) -> None:
        """Ends this process on purpose, from any thread and whatever the others do; they end too, at once."""
        with contextlib.suppress(OSError):  # not print: the main thread may hold its lock, and nobody need listen
            os.write(2, f"{why}\n".encode())
        try:
            if self._thread is not None:
                self._end.set()
                self._thread.join(GRACE)  # it would go on to give signs of life
                self._publish(self._job.process, " ".join(why.split()), code, dead=True, what="left")
                self._leave(together=False, dead=0)
        finally:
            os._exit(code)

    def _watch(self) -> None:
        service = self._service
        assert service is not None
        beat, silence = 0, Silence(self._job.processes, self._job.dead_after)
        while not self._end.is_set():
            beat += 1
            try:
                service.key_value_set(f"{_ALIVE}/{self._job.process}", str(beat), True)
                if self._job.process == 0 and (dead := silence.first(self._signs(), time.monotonic())) is not None:
                    self._publish(
                        dead,
                        f"it gave no sign of life for {self._job.dead_after:g} s: killed, out of memory, "
                        "or its machine or network is down",
                        1,
                        dead=True,
                    )
                cause = service.key_value_try_get(_CAUSE)
            except jax.errors.JaxRuntimeError as error:
                if "NOT_FOUND" in str(error):
                    self._end.wait(self._period)
                    continue
                self._stop({"process": 0, "why": "its coordination service cannot be reached", "dead": True, "code": 1})
                return
            self._told.set()
            self._stop(json.loads(cause))
            return

    def _stop(self, cause: dict[str, Any]) -> None:
        """Ends this process unless it ends by itself in time or is the one that failed."""
        if cause["process"] == self._job.process or self._end.wait(0.0 if cause["dead"] else GRACE):
            return
        what = cause.get("what") or ("died" if cause["dead"] else "stopped first")
        print(
            f"jaxlm: error: process {cause['process']} of {self._job.processes} {what}: {cause['why']}\n"
            f"process {self._job.process} stops with it; checkpoints saved before are intact, "
            "start all processes again to resume",
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        self._leave(together=not cause["dead"])
        os._exit(cause["code"])

    def _leave(self, *, together: bool, dead: int = 1) -> None:
        """Process 0 goes last, after all but the `dead`: it holds the service, and JAX aborts whoever loses that."""
        if together:
            shutdown = threading.Thread(target=_quietly, args=(jax.distributed.shutdown,), daemon=True)
            shutdown.start()  # meets the process that failed, which waits there while Python ends
            shutdown.join(GRACE)
            return
        assert self._service is not None
        _quietly(self._service.key_value_set, f"{_ALIVE}/{self._job.process}", _LEFT, True)
        deadline = time.monotonic() + GRACE
        while self._job.process == 0 and time.monotonic() < deadline:
            left = sum(sign == _LEFT for sign in self._signs().values())
            time.sleep(self._period / 2)
            if left >= self._job.processes - dead:
                return

    def _signs(self) -> dict[int, str]:
        assert self._service is not None
        return {int(key.rsplit("/", 1)[1]): value for key, value in self._service.key_value_dir_get(_ALIVE)}

    def _publish(self, process: int, why: str, code: int, *, dead: bool = False, what: str | None = None) -> None:
        """The first one stays; what follows from it is no news. `dead`: nobody need wait for it."""
        assert self._service is not None
        cause = json.dumps({"process": process, "why": why, "code": code, "dead": dead, "what": what})
        _quietly(self._service.key_value_set, _CAUSE, cause, False)


class Silence:
    """Which process has shown nothing new for too long, by the clock of the one that looks."""

    def __init__(self, processes: int, seconds: float):
        self._processes, self._seconds = processes, seconds
        self._last: dict[int, tuple[str | None, float]] = {}

    def first(self, signs: dict[int, str], now: float) -> int | None:
        """The lowest process that is silent, given the newest sign of each; one that has left is not."""
        for process in range(self._processes):
            sign = signs.get(process)
            before = self._last.get(process)
            if before is None or before[0] != sign or sign == _LEFT:
                self._last[process] = (sign, now)
            elif now - before[1] > self._seconds:
                return process
        return None


def _is_consequence(error: BaseException) -> bool:
    """Whether this looks like a lost connection to a process that died."""
    return isinstance(error, jax.errors.JaxRuntimeError) and any(w in str(error).lower() for w in _CONSEQUENCES)


def _sentence(error: BaseException) -> str:
    """The error in one line of bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 600 else f"{text[:300]} ... {text[-300:]}"


def _quietly(call: Any, *arguments: Any) -> None:
    """Calls the service where its loss changes nothing: the job is ending, and another message says why."""
    try:
        call(*arguments)
    except jax.errors.JaxRuntimeError:
        return

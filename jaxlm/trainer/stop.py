"""SIGTERM and SIGINT: while steps are taken they are remembered, so that the state is saved; else they end the process.

A Python signal handler runs only between two instructions of Python, and XLA compiles for minutes without one. So a
thread listens as well, woken by the C handler through a file descriptor (`signal.set_wakeup_fd`).
"""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import TypeVar

import jax
import numpy as np

T = TypeVar("T")
Asked = Callable[[], int | None]
"""Says which signal was received, if any."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_OVER = b"\0"


class Interrupted(Exception):
    """Work between two steps was given up because of signal `number`; the state is that after the last step."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def end(sentence: str, code: int) -> None:
    """Ends the process at once, whatever its threads do: unwinding would wait for them."""
    with suppress(OSError):  # nobody may be listening any more
        os.write(2, f"{sentence}\n".encode())
    os._exit(code)


class StopSignal:
    """While active, a signal ends the process at once with exit code 128 + n, saying what is `kept`; inside
    `deferred()` the first one is remembered in `received`, and only a second SIGINT ends the process at once.

    Args:
        leave: ends the process, given a sentence and an exit code; a job of several processes tells the others first.
        kept: what is said when the process ends at once; assign to it when that changes.
    """

    def __init__(self, leave: Callable[[str, int], None] = end, kept: str = "") -> None:
        self.received: int | None = None
        self.kept = kept
        self._leave = leave
        self._deferring = False
        self._over = threading.Event()
        self._interrupts = 0
        self._lock = threading.Lock()
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._remember)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._writer)
        self._thread.join()
        os.close(self._reader)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While active, signals are remembered. Whoever leaves it looks at `agreed` before going on."""
        with self._lock:
            self._deferring = True
        try:
            yield
        finally:
            # The thread ends the deferral, so that what was sent before this moment is still deferred.
            os.write(self._writer, _OVER)
            self._over.wait()
            self._over.clear()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._deferring:
            self.received = self.received or number

    def _listen(self) -> None:
        while heard := os.read(self._reader, 64):
            for number in heard:
                if number in _SIGNALS:
                    self._hear(number)
                elif number == _OVER[0]:
                    self._deferring = False
                    self._over.set()

    def _hear(self, number: int) -> None:
        with self._lock:  # so that no deferral begins while this is decided
            if not self._deferring:
                self._leave(f"\nstopped by signal {number}; {self.kept}", 128 + number)
            self.received = self.received or number
            self._interrupts += number == signal.SIGINT
            if self._interrupts > 1:
                # No agreement with others and no unwinding. Checkpoints that are complete stay so.
                end("\ninterrupted at once; nothing saved since the last checkpoint", 130)

    def agreed(self) -> int | None:
        """The signal any process of the job received, the same answer on all; a collective call with several."""
        if jax.process_count() == 1:
            return self.received
        from jax.experimental.multihost_utils import process_allgather

        return int(np.max(process_allgather(np.int32(self.received or 0)))) or None


def never() -> None:
    """No signal was received, because nobody looked."""


def until(asked: Asked, items: Iterable[T]) -> Iterator[T]:
    """The items, until `asked` returns a signal. Raises Interrupted."""
    for item in items:
        if (number := asked()) is not None:
            raise Interrupted(number)
        yield item

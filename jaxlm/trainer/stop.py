"""SIGTERM and SIGINT ask the loop to save and leave; all processes of a job agree on the step."""

import os
import signal
from types import FrameType, TracebackType

import jax
import numpy as np


class StopSignal:
    """While active, remembers the first SIGTERM or SIGINT in `received`; a second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == number:
            # No exception: unwinding would wait for threads. Checkpoints that are complete stay so.
            os.write(2, b"\ninterrupted at once; nothing saved since the last checkpoint\n")
            os._exit(130)
        self.received = self.received or number

    def agreed(self) -> int | None:
        """The signal any process of the job received, the same answer on all; a collective call with several."""
        if jax.process_count() == 1:
            return self.received
        from jax.experimental.multihost_utils import process_allgather

        return int(np.max(process_allgather(np.int32(self.received or 0)))) or None

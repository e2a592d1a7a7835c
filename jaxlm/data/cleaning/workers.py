"""Several processes share a list of tasks; progress of all of them is added up here."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

R = TypeVar("R")
Tell = Callable[[int], None]

_done: Any = None  # in a worker: bytes that all workers have done


class Workers:
    """Processes that do tasks, started when there is more than one to do; with `processes` 1 it is this process.

    Used as `with Workers(8) as workers:`; the processes end with the block, and with this process.
    """

    def __init__(self, processes: int):
        self.processes = processes
        self._pool: Any = None
        self._done: Any = None
        self._heard = 0

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def each(self, task: Callable[..., R], calls: Sequence[tuple], tell: Tell) -> Iterator[tuple[int, R]]:
        """(number, result) of `task(*arguments, tell)` for each call, as they finish. `tell` hears bytes as done."""
        if self.processes == 1 or len(calls) <= 1:
            for number, arguments in enumerate(calls):
                yield number, task(*arguments, tell)
            return
        from concurrent.futures import FIRST_COMPLETED, wait

        pool = self._started()
        waiting = {pool.submit(_run, task, arguments): number for number, arguments in enumerate(calls)}
        while waiting:
            finished, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            tell(self._news())
            for future in sorted(finished, key=waiting.__getitem__):
                yield waiting.pop(future), future.result()

    def _started(self) -> Any:
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")  # a fork would copy the threads of JAX, and hang
            self._done = spawn.Value("q", 0)
            self._pool = ProcessPoolExecutor(self.processes, spawn, _begin, (self._done,))
        return self._pool

    def _news(self) -> int:
        """Bytes done since the last time this was asked."""
        before, self._heard = self._heard, self._done.value
        return self._heard - before


def _begin(done: Any) -> None:
    """Starts a worker: the terminal's interrupt is the parent's business, and no worker outlives its parent."""
    global _done
    _done = done
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported, which is later
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(task: Callable[..., R], arguments: tuple) -> R:
    return task(*arguments, _tell)


def _tell(bytes_done: int) -> None:
    with _done.get_lock():
        _done.value += bytes_done

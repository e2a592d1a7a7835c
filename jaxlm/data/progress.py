"""Long work says how far it is: one callback, shown as a bar on a terminal and as plain lines elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

Progress = Callable[[str, int, int], None]  # what is being done, bytes done, bytes in all


def silent(stage: str, done: int, total: int) -> None:
    """Reports to nobody."""


def show_progress(stream: TextIO | None = None, every_seconds: float = 10.0) -> Progress:
    """A callback that reports on `stream` (standard error): a bar on a terminal, else a line now and then."""
    out = stream if stream is not None else sys.stderr
    return _Bar(out) if out.isatty() else _Lines(out, every_seconds)


class _Bar:
    def __init__(self, out: TextIO):
        self.out, self.bar, self.stage = out, None, ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if stage != self.stage:
            self.stage = stage
            self.bar = tqdm(total=total, desc=stage, unit="B", unit_scale=True, file=self.out)
        if self.bar is not None:
            self.bar.update(done - self.bar.n)
            if done >= total:
                self.bar.close()
                self.bar = None


class _Lines:
    def __init__(self, out: TextIO, every_seconds: float):
        self.out, self.every, self.stage = out, every_seconds, ""
        self.began = self.said = self.first = 0.0
        self.finished = False

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.began, self.said, self.first, self.finished = stage, now, now, done, False
            print(f"{stage}: {total / 1e6:,.1f} MB" if total else stage, file=self.out, flush=True)
        if done >= total and not self.finished:
            self.finished = True
            if total == 0:
                return
            print(f"{stage}: done in {now - self.began:.1f} s", file=self.out, flush=True)
        elif not self.finished and now - self.said >= self.every:
            self.said = now
            rate = (done - self.first) / max(now - self.began, 1e-9)
            left = f"{(total - done) / rate:,.0f} s left" if rate > 0 else "time left unknown"
            print(f"{stage}: {done / max(total, 1):.0%}, {left}", file=self.out, flush=True)

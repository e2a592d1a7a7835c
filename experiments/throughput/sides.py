"""Both sides of a comparison, each in its own process, started, timed in turns and stopped."""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from experiments.throughput.suite import Entry

Name = Literal["ours", "torch"]


class SideError(Exception):
    """A side could not do what it was told; the message is its own."""


class Side:
    """A worker process. Raises SideError where it fails or dies."""

    def __init__(self, name: Name, python: str = sys.executable, environment: dict[str, str] | None = None):
        self.name = name
        settings = dict(os.environ) | {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the card is shared with the other side
            "PYTHONUNBUFFERED": "1",
        }
        command = [python, "-m", "experiments.throughput.worker", name]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=settings | (environment or {}),
            text=True,
        )

    def ask(self, do: str, **what: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do} | what) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SideError(f"the process of {self.name} ended with code {self.process.wait()} while it did {do!r}")
        answer = json.loads(line)
        if "error" in answer:
            raise SideError(f"{self.name}: {answer['error']}")
        return answer["ok"]

    def start(self, entry: Entry, **how: Any) -> dict[str, Any]:
        return self.ask("start", entry=dataclasses.asdict(entry), **how)

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()


@contextmanager
def running(name: Name, python: str = sys.executable, environment: dict[str, str] | None = None) -> Iterator[Side]:
    """A side for as long as the block runs."""
    side = Side(name, python, environment)
    try:
        yield side
    finally:
        side.close()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Seconds per step of both sides, by round: in each round both ran, one after the other."""

    ours: tuple[float, ...]
    torch: tuple[float, ...]

    def ratio(self) -> tuple[float, float, float]:
        """How many times as many tokens per second ours does: the median of the rounds, and its 95 % interval."""
        return interval(np.asarray(self.torch) / np.asarray(self.ours))


def interval(ratios: np.ndarray, draws: int = 4000) -> tuple[float, float, float]:
    """The median, and the 95 % interval of medians of rounds drawn again with replacement."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (draws, len(ratios))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)


def in_turns(ours: Side, torch: Side, *, rounds: int, steps: int, warm: int, say: Callable[[str], None]) -> Pairs:
    """Both stay resident; each round runs a block of `steps` of each, the first one in turn. A round's figure is the
    median of its steps."""
    for side in (ours, torch):
        side.ask("steps", count=warm)
    found: dict[str, list[float]] = {"ours": [], "torch": []}
    for number in range(rounds):
        for side in (ours, torch) if number % 2 == 0 else (torch, ours):
            found[side.name].append(statistics.median(side.ask("steps", count=steps)))
        say(f"round {number + 1}/{rounds}: ours {found['ours'][-1]:.4f} s, torch {found['torch'][-1]:.4f} s per step")
    return Pairs(ours=tuple(found["ours"]), torch=tuple(found["torch"]))


def blocks(seconds: Sequence[float], count: int) -> list[float]:
    """Medians of `count` pieces of the times of many steps, so that steps of one process can be paired as rounds."""
    return [float(np.median(piece)) for piece in np.array_split(np.asarray(seconds), count)]

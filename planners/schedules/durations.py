"""How long an operation takes, as a distribution, drawn so that two orders meet the same luck."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WINDOW = 64
"""Newest samples that a measured duration keeps: enough for a mean within 2 % at a spread of 15 %."""


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds of one kind of operation: measured samples, or a mean and a standard deviation (log-normal).

    Attributes:
        mean: seconds.
        std: seconds; 0 is always the same time.
        samples: measured seconds, oldest first; where there are any they are drawn from as they are.
    """

    mean: float
    std: float = 0.0
    samples: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.mean < 0 or self.std < 0 or any(sample < 0 for sample in self.samples):
            raise ValueError(f"duration {self.mean:g} +- {self.std:g} s: seconds cannot be negative")

    @classmethod
    def measured(cls, samples: Sequence[float]) -> "Duration":
        """Raises ValueError without a sample."""
        if not len(samples):
            raise ValueError("a measured duration needs at least one sample")
        kept = tuple(float(s) for s in samples[-WINDOW:])
        return cls(float(np.mean(kept)), float(np.std(kept)), kept)

    def scaled(self, factor: float) -> "Duration":
        return Duration(self.mean * factor, self.std * factor, tuple(s * factor for s in self.samples))

    def observe(self, seconds: float) -> "Duration":
        """This distribution after one more measurement; the first one replaces a prior without samples."""
        return Duration.measured((*self.samples, seconds))

    def draw(self, names: Sequence[str], draws: int, seed: int) -> np.ndarray:
        """Seconds [names, draws] of operations of this kind.

        A draw depends on the operation's name, its number and the seed alone, never on the order in which operations
        run (common random numbers), so differences between orders are differences of the orders.
        """
        if self.std == 0:
            return np.full((len(names), draws), self.mean)
        if self.samples:
            where = (_uniform(names, draws, seed, 0) * len(self.samples)).astype(int)
            return np.array(self.samples)[where]
        spread = np.log1p((self.std / self.mean) ** 2)
        first, second = (_uniform(names, draws, seed, stream) for stream in (0, 1))
        normal = np.sqrt(-2.0 * np.log1p(-first)) * np.cos(2.0 * np.pi * second)  # Box and Muller, 1958
        return self.mean * np.exp(np.sqrt(spread) * normal - spread / 2.0)


def _uniform(names: Sequence[str], draws: int, seed: int, stream: int) -> np.ndarray:
    """Numbers in [0, 1) by name, number of the draw, seed and stream: the SplitMix64 finaliser of their mixture."""
    rows = np.array([zlib.crc32(name.encode()) for name in names], dtype=np.uint64)[:, None]
    with np.errstate(over="ignore"):
        state = (rows << np.uint64(32)) + np.arange(draws, dtype=np.uint64) * np.uint64(2) + np.uint64(stream)
        state = (state + np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)) * 2.0**-53

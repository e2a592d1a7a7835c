"""Seconds counted into bins of equal ratio: small, of fixed size, and good to 7 % at any scale."""

import math
from typing import Any

RATIO = 2**0.2
"""Of one bin's edges: five bins to a doubling, so that the middle of a bin is at most 7 % off."""

LATEST = 6
"""Values that say how things are just now."""


class Histogram:
    """Counts positive values; `recent` holds the last of them as they are.

    Attributes:
        count: values seen.
        total: their sum.
        largest: the largest of them.
    """

    def __init__(self, keep: int = 64):
        self.count, self.total, self.largest = 0, 0.0, 0.0
        self.recent: list[float] = []
        self._bins: dict[int, int] = {}
        self._keep = keep

    def add(self, value: float) -> None:
        bin = math.floor(math.log(max(value, 1e-9), RATIO))
        self._bins[bin] = self._bins.get(bin, 0) + 1
        self.count += 1
        self.total += value
        self.largest = max(self.largest, value)
        self.recent = [*self.recent[1 - self._keep :], value]

    def median(self, last: int | None = None) -> float | None:
        """Of the recent values, or of so many of them; None where there are none."""
        ordered = sorted(self.recent if last is None else self.recent[-last:])
        return ordered[len(ordered) // 2] if ordered else None

    def quantile(self, fraction: float) -> float | None:
        """The middle of the bin below which this fraction of all values lies; None where there are none."""
        seen = 0
        for bin in sorted(self._bins):
            seen += self._bins[bin]
            if seen >= fraction * self.count:
                return min(RATIO ** (bin + 0.5), self.largest)
        return None

    def to_json(self) -> dict[str, Any]:
        """Counts by the lower edge of their bin, and what people ask for first."""
        bins = {f"{RATIO**bin:.4g}": self._bins[bin] for bin in sorted(self._bins)}
        summary = {"count": self.count, "total": self.total, "largest": self.largest, "median": self.median()}
        summary["latest"] = self.median(LATEST)
        return {**summary, "p50": self.quantile(0.5), "p99": self.quantile(0.99), "bins": bins}

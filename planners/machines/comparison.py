"""What has changed between two probes of one machine: figures that moved by more than their noise."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from planners.machines.topology import Cluster

SIGMAS = 3.0
"""Standard deviations beyond which a figure has moved: of some hundred that have not, fewer than one exceeds it."""

SIGMA_OF_HALF_RANGE = 1.0 / 0.6745
"""Standard deviation over half of the interquartile range, of a normal distribution."""

FLOOR = 0.1
"""Relative change that is never reported: a choice of ours, less than the error of step times that plans rest on."""


@dataclass(frozen=True, slots=True)
class Change:
    """One figure that moved.

    Attributes:
        what: which figure.
        before: seconds in the older file.
        after: seconds now.
        factor: after over before; above 1 is slower.
        noise: relative change that would have been ordinary.
    """

    what: str
    before: float
    after: float
    factor: float
    noise: float

    def line(self) -> str:
        word = "slower" if self.factor > 1 else "faster"
        times = max(self.factor, 1 / self.factor)
        return f"{self.what}: {self.before:.4g} s -> {self.after:.4g} s, {times:.2f}x {word} (noise {self.noise:.0%})"


def changes(before: Cluster, after: Cluster) -> tuple[list[Change], int]:
    """Figures that moved by more than their noise, largest change first, and how many both clusters hold."""
    old, new = dict(_figures(before)), dict(_figures(after))
    shared = [what for what in new if what in old]
    found = []
    for what in shared:
        (was, noise_then), (now, noise_now) = old[what], new[what]
        ordinary = max(SIGMAS * SIGMA_OF_HALF_RANGE * math.hypot(noise_then, noise_now), FLOOR)
        if abs(math.log(now / was)) > math.log1p(ordinary):
            found.append(Change(what, was, now, now / was, ordinary))
    return sorted(found, key=lambda change: -abs(math.log(change.factor))), len(shared)


def _figures(cluster: Cluster) -> Iterator[tuple[str, tuple[float, float]]]:
    """Name of each measured figure, its seconds and its noise."""
    for dtype, rows in cluster.device.products.items():
        for row in rows:
            yield f"{dtype} matrix product of {row.flops:.3g} FLOP", (row.seconds, row.noise)
    for row in cluster.device.copies:
        yield f"memory pass of {row.bytes:,} B", (row.seconds, row.noise)
    for tier in cluster.tiers:
        for name, rows in tier.measured.items():
            for row in rows:
                what = f"{name} over {row.ranks} of {tier.name}, {row.bytes:,} B"
                yield what, (row.seconds, row.noise)

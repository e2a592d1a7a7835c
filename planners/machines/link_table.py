"""Measured times of collectives by rank count and size, and how to read between the rows.

One bandwidth per link cannot say what a collective costs: V100s reach 23 to 136 GB/s by rank count, and at 1 MB a
bandwidth alone is wrong by 85 to 91 % on A100 (planners.md 3.5). `jaxlm probe` writes such tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

Collective: TypeAlias = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "permute"]
COLLECTIVES: tuple[Collective, ...] = get_args(Collective)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One measured call of a collective.

    Attributes:
        ranks: devices of one group; all groups of the job ran at the same time, as the groups of a mesh axis do.
        bytes: the whole tensor: what a rank holds before an all-reduce or a reduce-scatter, after an all-gather, before
            and after an all-to-all; what it sends in a permute.
        seconds: median of the repetitions.
        noise: half of the interquartile range of the repetitions over their median.
    """

    ranks: int
    bytes: int
    seconds: float
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.ranks < 2 or self.bytes < 1 or self.seconds <= 0 or self.noise < 0:
            raise ValueError(
                f"measured collective {self}: ranks must be at least 2, bytes at least 1, seconds positive, noise >= 0"
            )


LinkTable: TypeAlias = Mapping[str, Sequence[Timing]]
"""Collective -> its rows, in any order."""


def collective_seconds(
    rows: Sequence[Timing], collective: str, ranks: int | np.ndarray, size: float | np.ndarray
) -> np.ndarray:
    """Seconds of a call on `ranks` devices of `size` bytes (see `Timing.bytes`), numbers or arrays; 0 on one device.

    Between two sizes time is linear in the bytes, which is exact for a latency plus bytes over bandwidth; above the
    largest it goes on at the slope of the last two rows, below the smallest it stays. Between two rank counts it is
    linear in log2(ranks); beyond them it is that of the nearest one, scaled by the bytes that a ring moves per device
    (`moved`). Raises ValueError without a row.
    """
    if not rows:
        raise ValueError(f"no measurement of {collective}")
    wanted, sizes = np.broadcast_arrays(np.asarray(ranks), np.asarray(size, dtype=float))
    found = np.zeros(wanted.shape)
    for count in np.unique(wanted[wanted > 1]):
        here = wanted == count
        found[here] = _of_ranks(rows, collective, int(count), sizes[here])
    return found


def moved(collective: str, ranks: float | np.ndarray) -> float | np.ndarray:
    """Bytes that one device sends in a ring, over the bytes of the whole tensor (planners.md 3.5)."""
    if collective == "permute":
        return 1.0
    return (2.0 if collective == "all_reduce" else 1.0) * (ranks - 1) / ranks


def _of_ranks(rows: Sequence[Timing], collective: str, ranks: int, sizes: np.ndarray) -> np.ndarray:
    counts = np.array(sorted({row.ranks for row in rows}))
    at = int(np.searchsorted(counts, ranks))
    if at < len(counts) and counts[at] == ranks:
        return _of_size(rows, ranks, sizes)
    if at in (0, len(counts)):
        nearest = int(counts[min(at, len(counts) - 1)])
        return _of_size(rows, nearest, sizes) * (moved(collective, ranks) / moved(collective, nearest))
    below, above = int(counts[at - 1]), int(counts[at])
    share = np.log2(ranks / below) / np.log2(above / below)
    return (1.0 - share) * _of_size(rows, below, sizes) + share * _of_size(rows, above, sizes)


def _of_size(rows: Sequence[Timing], ranks: int, sizes: np.ndarray) -> np.ndarray:
    known = sorted((row.bytes, row.seconds) for row in rows if row.ranks == ranks)
    bytes_, seconds = (np.array(column, dtype=float) for column in zip(*known, strict=True))
    if len(known) == 1:  # one size says nothing of the latency: all of it is taken for bandwidth
        slope = seconds[-1] / bytes_[-1]
    else:
        slope = max((seconds[-1] - seconds[-2]) / (bytes_[-1] - bytes_[-2]), 0.0)
    return np.interp(sizes, bytes_, seconds) + slope * np.maximum(sizes - bytes_[-1], 0.0)


def fitted(rows: Sequence[Timing], collective: str) -> tuple[float, float, float]:
    """Latency (s), its growth per doubling of the ranks (s) and bandwidth (bytes/s) that fit the rows best.

    Least squares of relative errors of `latency + doubling log2(ranks) + moved bytes / bandwidth`; no term is negative.
    Where no size shows a bandwidth the largest row's is taken. Raises ValueError without a row.
    """
    if not rows:
        raise ValueError(f"no measurement of {collective}")
    ranks, size, seconds = (np.array([getattr(r, k) for r in rows], float) for k in ("ranks", "bytes", "seconds"))
    columns = np.stack([np.ones_like(ranks), np.log2(ranks), moved(collective, ranks) * size], axis=1)
    if len(np.unique(ranks)) == 1:
        columns[:, 1] = 0.0
    found = np.zeros(3)
    left = [i for i in range(3) if columns[:, i].any()]
    while left:
        part = np.linalg.lstsq(columns[:, left] / seconds[:, None], np.ones(len(rows)), rcond=None)[0]
        if (part >= 0).all():
            found[left] = part
            break
        left.pop(int(np.argmin(part)))
    largest = int(np.argmax(size))
    bandwidth = 1 / found[2] if found[2] > 0 else columns[largest, 2] / seconds[largest]
    return float(found[0]), float(found[1]), float(bandwidth)

"""Measured times of matrix products and of copies in memory, by size, and how to read between the rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One measured matrix product on one device, while every other device of the job did the same.

    Attributes:
        flops: 2 m n k.
        seconds: median of the repetitions.
        noise: half of the interquartile range of the repetitions over their median.
    """

    flops: float
    seconds: float
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.flops <= 0 or self.seconds <= 0 or self.noise < 0:
            raise ValueError(f"measured product {self}: flops and seconds must be positive, noise not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One measured pass over memory on one device, while every other device of the job did the same.

    Attributes:
        bytes: read and written together.
        seconds: median of the repetitions.
        noise: half of the interquartile range of the repetitions over their median.
    """

    bytes: int
    seconds: float
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.bytes < 1 or self.seconds <= 0 or self.noise < 0:
            raise ValueError(f"measured copy {self}: bytes and seconds must be positive, noise not negative")


def product_rate(rows: Sequence[Product], flops: float | np.ndarray) -> float | np.ndarray:
    """FLOP/s of one product of `flops` FLOPs, number or array. Raises ValueError without a row."""
    return _rate([(row.flops, row.seconds) for row in rows], flops)


def copy_rate(rows: Sequence[Copy], size: float | np.ndarray) -> float | np.ndarray:
    """Bytes/s of one pass that reads and writes `size` bytes in all. Raises ValueError without a row."""
    return _rate([(row.bytes, row.seconds) for row in rows], size)


def _rate(rows: Sequence[tuple[float, float]], size: float | np.ndarray) -> float | np.ndarray:
    """Size over seconds: log-log linear between the rows, that of the first or last row outside them."""
    if not rows:
        raise ValueError("the table has no row")
    known = sorted((amount, amount / seconds) for amount, seconds in rows)
    amounts, rates = (np.log(np.array(column, dtype=float)) for column in zip(*known, strict=True))
    found = np.exp(np.interp(np.log(np.maximum(size, 1.0)), amounts, rates))
    return float(found) if np.ndim(size) == 0 else found

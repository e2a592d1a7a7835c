"""Splits for unequal devices: layers over pipeline stages, sequences over replicas, and what a pipeline then takes."""

import math
from collections.abc import Sequence

import numpy as np


def split_layers(
    seconds: Sequence[float] | np.ndarray,
    layers: int,
    *,
    extra: Sequence[float] | np.ndarray | None = None,
    most: Sequence[int] | np.ndarray | None = None,
    least: int = 1,
) -> np.ndarray | None:
    """Equal layers over stages so that the slowest stage is as fast as can be, and among those splits the sum least.

    Args:
        seconds: of one layer on each stage.
        layers: to be split.
        extra: seconds of a stage besides its layers (embedding, head); 0 where left out.
        most: layers that fit into each stage's memory; `layers` where left out.
        least: layers that a stage must have.

    Returns:
        Layers of each stage, or None where memory does not hold them all.
    """
    each = np.asarray(seconds, dtype=float)
    if np.any(each <= 0):
        raise ValueError(f"seconds of a layer must be positive, not {each.tolist()}")
    beside = np.zeros(len(each)) if extra is None else np.asarray(extra, dtype=float)
    room = np.full(len(each), layers) if most is None else np.minimum(np.asarray(most), layers)
    if room.min() < least or room.sum() < layers or least * len(each) > layers:
        return None
    # The bottleneck is some stage's time with some number of layers; the smallest under which all layers find room.
    tried = np.unique(beside[:, None] + each[:, None] * np.arange(least, layers + 1)[None, :])
    low, high = 0, len(tried) - 1
    while low < high:
        middle = (low + high) // 2
        if _hold(tried[middle], each, beside, room, least).sum() >= layers:
            high = middle
        else:
            low = middle + 1
    counts = _hold(tried[low], each, beside, room, least)
    surplus = int(counts.sum()) - layers
    for stage in np.argsort(-each, kind="stable"):  # the slowest device gives first: that lowers the sum most
        given = min(surplus, int(counts[stage]) - least)
        counts[stage] -= given
        surplus -= given
    return counts


def _hold(bottleneck: float, each: np.ndarray, beside: np.ndarray, room: np.ndarray, least: int) -> np.ndarray:
    """Layers that each stage can do within a bottleneck of seconds, at least `least` and at most its room."""
    within = np.floor((bottleneck - beside) / each * (1 + 1e-12) + 1e-9).astype(int)
    return np.clip(within, least, room)


def split_chain(
    seconds: np.ndarray, *, sizes: Sequence[float] | None = None, room: Sequence[float] | None = None
) -> list[int] | None:
    """Unequal layers, in their order, over stages so that the slowest stage is as fast as can be.

    Dynamic program over (stages, layers); O(p L^2), exact.

    Args:
        seconds: [stages, layers], of each layer on each stage.
        sizes: bytes of each layer; 0 where left out.
        room: bytes that each stage can hold; unlimited where left out.

    Returns:
        Layers of each stage (at least one each), or None where memory does not hold them.
    """
    stages, layers = seconds.shape
    weight = np.concatenate([[0.0], np.cumsum(np.zeros(layers) if sizes is None else np.asarray(sizes, float))])
    best = np.full(layers + 1, np.inf)
    best[0] = 0.0
    cuts = np.zeros((stages, layers + 1), int)
    ends = np.arange(layers + 1)
    for stage in range(stages):
        done = np.concatenate([[0.0], np.cumsum(seconds[stage])])
        takes = done[None, :] - done[:, None]  # [from, to]
        fits = ends[None, :] > ends[:, None]
        if room is not None:
            fits &= weight[None, :] - weight[:, None] <= room[stage]
        cost = np.where(fits, np.maximum(best[:, None], takes), np.inf)
        cuts[stage] = np.argmin(cost, axis=0)
        best = np.min(cost, axis=0)
    if not math.isfinite(best[layers]):
        return None
    counts, end = [], layers
    for stage in reversed(range(stages)):
        start = int(cuts[stage][end])
        counts.append(end - start)
        end = start
    return counts[::-1]


def split_batch(
    speeds: Sequence[float] | np.ndarray,
    sequences: int,
    *,
    microbatch: Sequence[int] | np.ndarray | int = 1,
    fixed: Sequence[float] | np.ndarray | None = None,
) -> np.ndarray:
    """Sequences of each replica, whole microbatches of its own, so that the slowest is done as early as can be.

    Shares in proportion to speed are what alpha of eq. 6 becomes at gamma 1 (design.md, section 4), rounded so that
    the last replica finishes first.

    Args:
        speeds: sequences per second of each replica.
        sequences: of the global batch.
        microbatch: sequences that a replica does at a time; one number for all, or one each.
        fixed: seconds of a replica however little it does (filling a pipeline); 0 where left out.

    Raises ValueError where whole microbatches cannot add up to the batch.
    """
    rate = np.asarray(speeds, dtype=float)
    if np.any(rate <= 0):
        raise ValueError(f"speeds must be positive, not {rate.tolist()}")
    piece = np.broadcast_to(np.asarray(microbatch, dtype=int), rate.shape)
    start = np.zeros(len(rate)) if fixed is None else np.asarray(fixed, dtype=float)
    if np.all(piece == piece[0]):
        whole, rest = divmod(sequences, int(piece[0]))
        if rest or whole < len(rate):
            raise ValueError(
                f"{sequences} sequences do not make whole microbatches of {piece[0]}, one or more for each of "
                f"{len(rate)} replicas"
            )
        return piece * _whole(piece / rate, start, whole)
    # Unequal microbatches: start below proportion and hand out microbatches to whoever is done first.
    counts = np.maximum((rate / rate.sum() * sequences / piece).astype(int) - 1, 1)
    while (left := sequences - int(counts @ piece)) > 0:
        done = np.where(piece <= left, start + (counts + 1) * piece / rate, np.inf)
        if not np.isfinite(done).any():
            break
        counts[int(np.argmin(done))] += 1
    if counts @ piece != sequences:
        raise ValueError(f"microbatches of {piece.tolist()} do not add up to {sequences} sequences")
    return counts * piece


def _whole(each: np.ndarray, start: np.ndarray, pieces: int) -> np.ndarray:
    counts = split_layers(each, pieces, extra=start)
    if counts is None:
        raise ValueError(f"{pieces} microbatches for {len(each)} replicas")
    return counts


def pipeline_seconds(
    stages: Sequence[np.ndarray | float] | np.ndarray, microbatches: np.ndarray | float, virtual: np.ndarray | float = 1
) -> np.ndarray:
    """Seconds of a 1F1B step over unequal stages: every stage once, then the slowest for each further microbatch.

    planners.md 3.6; interleaving fills the pipeline with a `virtual`-th of each stage.

    Args:
        stages: [stages, ...] seconds of one microbatch, forward and backward, on each stage.
        microbatches: that flow through the pipeline.
        virtual: stages per device.
    """
    each = np.asarray(stages, dtype=float)
    slowest = each.max(axis=0)
    return microbatches * slowest + (each.sum(axis=0) - slowest) / virtual


def balance(stages: np.ndarray) -> np.ndarray:
    """Share of the time that the devices of a pipeline work once it is full: 1 where all stages are equal."""
    each = np.asarray(stages, dtype=float)
    return each.mean(axis=0) / each.max(axis=0)

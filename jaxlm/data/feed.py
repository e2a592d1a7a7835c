"""Batches as sharded arrays: each process reads only the rows its own devices hold, one step ahead."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from planners.plan import REPLICA_AXES

Rows = dict[str, np.ndarray]
Made = dict[str, jax.Array]


class Source(Protocol):
    """Rows `[start:stop)` of batch `index`; each value is [rows, length], or [rows] where it is one number of each."""

    def fetch(self, index: int, start: int, stop: int, /) -> Rows: ...


class Feed:
    """Batch k as arrays [accumulation, sequences, length] laid out by `sharding`; which tokens batch k holds depends
    on the source alone, never on the mesh, the process count or the accumulation."""

    def __init__(
        self, source: Source, sharding: jax.sharding.Sharding, accumulation: int, sequences: int, *, packed: bool
    ):
        self.source, self.sharding = source, sharding
        self.accumulation, self.sequences = accumulation, sequences
        self.leave_out = () if packed else ("segments",)

    def __getitem__(self, index: int) -> dict[str, jax.Array]:
        fetched: dict[tuple[int, int], Rows] = {}

        def rows(start: int, stop: int) -> Rows:
            if (start, stop) not in fetched:
                parts = [
                    self.source.fetch(index, a * self.sequences + start, a * self.sequences + stop)
                    for a in range(self.accumulation)
                ]
                fetched[start, stop] = {name: np.stack([p[name] for p in parts]) for name in parts[0]}
            return fetched[start, stop]

        example = self.source.fetch(index, 0, 1)
        batch = {}
        for name, value in example.items():
            if name in self.leave_out:
                continue
            shape = (self.accumulation, self.sequences, *value.shape[1:])

            def shard(where: Any, name: str = name) -> np.ndarray:
                across, along = where[1], where[2:]
                start, stop, _ = across.indices(self.sequences)
                return rows(start, stop)[name][:, :, *along]

            batch[name] = jax.make_array_from_callback(shape, self.sharding, shard)
        return batch

    def iterate(self, start: int, stop: int) -> Iterator[Made]:
        """Batches `start` to `stop - 1`, the next one prepared in a thread while the caller uses this one."""
        return _ahead(lambda index: partial(self.__getitem__, index), start, stop)


class Shared:
    """Batch k cut unevenly between replicas: arrays [replicas, slots, sequences, length] that hold each replica's own
    microbatches first and then nothing, `rows` [replicas, slots, sequences] with the number of each row in batch k (-1:
    none), and `shares` [replicas] with the microbatches of each.

    Replicas take the rows of batch k in their order, so which tokens batch k holds is the same for all shares. Each
    process reads the rows of its own replicas alone, and none for empty slots.

    Args:
        source: where the rows come from.
        mesh: the replicas lie along its axes `zone` and `data`, the sequences of a microbatch along `fsdp`.
        slots: most microbatches that a replica can have.
        sequences: of one microbatch of one replica.
        shares: called for each batch, in order, by the thread that iterates: microbatches of each replica.
        packed: whether rows hold several documents.
    """

    def __init__(
        self,
        source: Source,
        mesh: Mesh,
        slots: int,
        sequences: int,
        shares: Callable[[], Sequence[int]],
        *,
        packed: bool,
    ):
        self.source, self.slots, self.sequences, self.shares = source, slots, sequences, shares
        self.replicas = NamedSharding(mesh, P(REPLICA_AXES))
        self.sharding = NamedSharding(mesh, P(REPLICA_AXES, None, "fsdp"))
        self.leave_out = () if packed else ("segments",)

    def __getitem__(self, index: int) -> Made:
        return self.cut(index, tuple(self.shares()))

    def cut(self, index: int, shares: tuple[int, ...]) -> Made:
        """Batch `index`. Raises ValueError for a share that does not fit the slots."""
        if not all(0 <= share <= self.slots for share in shares):
            raise ValueError(f"shares {shares} do not fit {self.slots} microbatches per replica")
        shape = (len(shares), self.slots, self.sequences)
        rows = np.full(shape, -1, np.int32)
        numbers = iter(range(sum(shares)))
        for replica, share in enumerate(shares):
            for slot in range(share):
                rows[replica, slot] = next(numbers) * self.sequences + np.arange(self.sequences)
        example = self.source.fetch(index, 0, 1)
        held: dict[tuple[Any, ...], Rows] = {}

        def held_by(replicas: slice, across: slice) -> Rows:
            key = (replicas.indices(shape[0]), across.indices(self.sequences))
            if key not in held:
                held[key] = _fetch_rows(self.source, index, rows[replicas, :, across], example)
            return held[key]

        made: Made = {
            "rows": jax.make_array_from_callback(shape, self.sharding, lambda where: rows[where]),
            "shares": jax.make_array_from_callback(
                shape[:1], self.replicas, lambda where: np.asarray(shares, np.int32)[where]
            ),
        }
        for name, value in example.items():
            if name not in self.leave_out:
                part = lambda where, name=name: held_by(where[0], where[2])[name]
                made[name] = jax.make_array_from_callback((*shape, *value.shape[1:]), self.sharding, part)
        return made

    def iterate(self, start: int, stop: int) -> Iterator[Made]:
        """Batches `start` to `stop - 1`, each with the shares of the moment at which the one before it is taken."""
        return _ahead(lambda index: partial(self.cut, index, tuple(self.shares())), start, stop)


def _fetch_rows(source: Source, index: int, rows: np.ndarray, example: Rows) -> Rows:
    """Rows of batch `index` by number, zeros for -1: arrays [*rows.shape, length]."""
    made = {name: np.zeros((*rows.shape, *value.shape[1:]), value.dtype) for name, value in example.items()}
    for place in np.ndindex(rows.shape[:-1]):
        first, last = int(rows[place][0]), int(rows[place][-1])
        if first >= 0:
            for name, value in source.fetch(index, first, last + 1).items():
                made[name][place] = value
    return made


def _ahead(later: Callable[[int], Callable[[], Made]], start: int, stop: int) -> Iterator[Made]:
    """What `later(start)`, `later(start + 1)`, ... make, each in a thread while the caller uses the one before."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="feed") as pool:
        ahead = pool.submit(later(start)) if start < stop else None
        for index in range(start, stop):
            assert ahead is not None
            batch = ahead.result()
            ahead = pool.submit(later(index + 1)) if index + 1 < stop else None
            yield batch

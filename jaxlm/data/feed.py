"""Batches as sharded arrays: each process reads only the rows its own devices hold, one step ahead."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
import numpy as np

Rows = dict[str, np.ndarray]


class Source(Protocol):
    """Rows `[start:stop)` of batch `index`; each value is [rows, length]."""

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
            shape = (self.accumulation, self.sequences, value.shape[1])

            def shard(where: Any, name: str = name) -> np.ndarray:
                across, along = where[1], where[2]
                start, stop, _ = across.indices(self.sequences)
                return rows(start, stop)[name][:, :, along]

            batch[name] = jax.make_array_from_callback(shape, self.sharding, shard)
        return batch

    def iterate(self, start: int, stop: int) -> Iterator[dict[str, jax.Array]]:
        """Batches `start` to `stop - 1`, the next one prepared in a thread while the caller uses this one."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="feed") as pool:
            ahead = pool.submit(self.__getitem__, start) if start < stop else None
            for index in range(start, stop):
                assert ahead is not None
                batch = ahead.result()
                ahead = pool.submit(self.__getitem__, index + 1) if index + 1 < stop else None
                yield batch

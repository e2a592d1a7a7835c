"""Poisson samples as sharded arrays of one shape: room for more documents than are expected, and never a cut."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxlm.data.packing import Rows as Documents
from jaxlm.data.packing import empty_batch
from jaxlm.privacy.sampling import Secret
from jaxlm.sharding import batch_sharding, replicated

HEADROOM = 5.0
"""Standard deviations of the sample's size for which a chunk has room. A larger sample takes another chunk, about once
in a million steps; with less room, the time of a step would tell the size of its sample more often."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """The documents of one step.

    Attributes:
        step: counted from 0.
        chunks: one, or more where the sample is larger than expected: arrays [slots, rows, length], and [slots, rows]
            `number`, that of the document, and `real`, false where there is none.
        key: of the noise, uint32 [2].
    """

    step: int
    chunks: tuple[dict[str, jax.Array], ...]
    key: jax.Array


def slots(expected: float, rate: float, rows: int) -> int:
    """How often `rows` documents are computed in a chunk."""
    return max(1, math.ceil((expected + HEADROOM * math.sqrt(expected * (1 - rate))) / rows))


class PoissonFeed:
    """The sample of step k, the same however often it is asked for in one start.

    Args:
        documents: one in each row.
        secret: decides who is in it.
        rate: chance of each document.
        mesh: rows lie along its batch axes.
        rows: computed at once, over all devices.
        sequence, pad: length of a row, and the token that fills it.
    """

    def __init__(
        self, documents: Documents, secret: Secret, rate: float, mesh: Mesh, *, rows: int, sequence: int, pad: int
    ):
        self.documents, self.secret, self.rate, self.mesh = documents, secret, rate, mesh
        self.rows, self.sequence, self.pad = rows, sequence, pad
        self.slots = slots(rate * len(documents), rate, rows)

    def __getitem__(self, step: int) -> Sampled:
        sample = self.secret.sample(step, len(self.documents), self.rate)
        room = self.slots * self.rows
        chunks = tuple(self._chunk(sample[start : start + room]) for start in range(0, max(len(sample), 1), room))
        key = jax.make_array_from_callback((2,), replicated(self.mesh), lambda _: self.secret.noise(step))
        return Sampled(step, chunks, key)

    def _chunk(self, sample: np.ndarray) -> dict[str, jax.Array]:
        where = np.full(self.slots * self.rows, -1, np.int64)
        where[: len(sample)] = sample
        where = where.reshape(self.slots, self.rows)
        held: dict[tuple[int, int], dict[str, np.ndarray]] = {}

        def part(at: Any) -> dict[str, np.ndarray]:
            start, stop, _ = at[1].indices(self.rows)
            if (start, stop) not in held:
                wanted = where[:, start:stop].reshape(-1)
                batch = empty_batch(len(wanted), self.sequence, self.pad)
                for at, row in enumerate(wanted.tolist()):
                    if row >= 0:
                        self.documents.fill(batch, at, row)
                held[start, stop] = {name: value.reshape(self.slots, stop - start, -1) for name, value in batch.items()}
            return held[start, stop]

        place, numbers, real = batch_sharding(self.mesh), where.astype(np.int32), where >= 0
        shape = (self.slots, self.rows, self.sequence)
        made: dict[str, jax.Array] = {
            name: jax.make_array_from_callback(shape, place, lambda at, name=name: part(at)[name])
            for name in ("tokens", "targets", "positions", "weights")
        }
        made["number"] = jax.make_array_from_callback(shape[:2], place, lambda at: numbers[at])
        made["real"] = jax.make_array_from_callback(shape[:2], place, lambda at: real[at])
        return made

    def iterate(self, start: int, stop: int) -> Iterator[Sampled]:
        """The samples of steps `start` to `stop - 1`, the next one prepared while the caller uses this one."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="feed") as pool:
            ahead = pool.submit(self.__getitem__, start) if start < stop else None
            for step in range(start, stop):
                assert ahead is not None
                sampled = ahead.result()
                ahead = pool.submit(self.__getitem__, step + 1) if step + 1 < stop else None
                yield sampled

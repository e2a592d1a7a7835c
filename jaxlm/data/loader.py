"""Which rows step k holds: a function of seed and k, so no mesh, process count or restart changes it."""

import hashlib
from collections.abc import Sequence
from typing import Literal, cast

import numpy as np

from jaxlm.data.config import DataError
from jaxlm.data.packing import Batch, Packed, empty_batch, make_rows
from jaxlm.data.stream import TokenStream


class Loader:
    """Training batches by step. Every epoch visits every row once, in an order of its own; a batch may
    straddle two.

    A process asks for its part of a batch (`fetch(step, start, stop)`); what it gets does not depend on who
    asks.
    """

    def __init__(
        self,
        stream: TokenStream,
        batch: int,
        sequence: int,
        mode: Literal["pack", "truncate"] = "pack",
        seed: int = 0,
    ):
        if batch < 1:
            raise DataError(f"batch={batch} must be at least 1")
        self.stream, self.batch, self.sequence, self.mode, self.seed = stream, batch, sequence, mode, seed
        self._rows = make_rows(stream, sequence, mode)
        if len(self._rows) == 0:
            raise DataError(f"the {stream.name} split is empty: there is no row to train on")
        self._order = _order(len(self._rows), seed)

    @property
    def rows_per_epoch(self) -> int:
        return len(self._rows)

    @property
    def steps_per_epoch(self) -> float:
        return len(self._rows) / self.batch

    def rows(self, step: int) -> np.ndarray:
        """The row numbers of a step, one per place in the batch."""
        first = step * self.batch
        return np.array([self._order[index] for index in range(first, first + self.batch)], np.int64)

    def fetch(self, step: int, start: int = 0, stop: int | None = None) -> Batch:
        """Places start..stop of a step's batch, each array [stop - start, sequence] (see packing.py)."""
        stop = self.batch if stop is None else stop
        if not 0 <= start <= stop <= self.batch:
            raise IndexError(f"places {start}..{stop} are not within a batch of {self.batch}")
        first = step * self.batch
        batch = empty_batch(stop - start, self.sequence, self.stream.pad)
        for at, index in enumerate(range(first + start, first + stop)):
            self._rows.fill(batch, at, self._order[index])
        return batch


class Evaluation:
    """Held-out text from its first token to its last, each predicted once; the last batch is filled with
    padding.

    `bytes` is the size of the original text in UTF-8 and `targets` the number of predictions, so that
    bits per byte = -(sum of weights * log2 p) / bytes.
    """

    def __init__(self, stream: TokenStream, batch: int, sequence: int):
        if batch < 1:
            raise DataError(f"batch={batch} must be at least 1")
        self.stream, self.batch, self.sequence = stream, batch, sequence
        self._rows = Packed(stream, sequence)
        if len(self._rows) == 0:
            raise DataError(f"the {stream.name} split is empty: there is nothing to evaluate on")
        self.batches = -(-len(self._rows) // batch)
        self.bytes = stream.bytes
        self.targets = len(stream) - stream.documents

    def fetch(self, index: int, start: int = 0, stop: int | None = None) -> Batch:
        """Places start..stop of batch `index`, in the order of the text."""
        stop = self.batch if stop is None else stop
        if not 0 <= index < self.batches or not 0 <= start <= stop <= self.batch:
            raise IndexError(f"batch {index}, places {start}..{stop}: there are {self.batches} x {self.batch}")
        first = index * self.batch
        batch = empty_batch(stop - start, self.sequence, self.stream.pad)
        for at, row in enumerate(range(first + start, min(first + stop, len(self._rows)))):
            self._rows.fill(batch, at, row)
        return batch


def _order(rows: int, seed: int) -> Sequence[int]:
    """index -> row, a permutation of the rows in each run of `rows` indices, computed in O(1)."""
    import grain

    # grain moves on to seed + 1 in the next epoch; hashed, neighbouring seeds do not share their epochs.
    hashed = int.from_bytes(hashlib.sha256(f"order {seed}".encode()).digest()[:4], "big")
    return cast(Sequence[int], grain.MapDataset.range(rows).shuffle(seed=hashed).repeat())

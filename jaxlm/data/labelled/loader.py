"""Which labelled rows step k holds: a function of seed and k, as for text (jaxlm/data/loader.py)."""

from collections.abc import Sequence

import numpy as np

from jaxlm.data.config import DataError
from jaxlm.data.fingerprint import as_text, fingerprint
from jaxlm.data.labelled.corpus import LabelledSplit
from jaxlm.data.loader import shuffled

Batch = dict[str, np.ndarray]


class LabelledLoader:
    """Training batches by step: every epoch visits every row once, in an order of its own.

    `bytes_per_token` is None: what is learned are labels, and bits per byte mean nothing.
    """

    mixed = False
    bytes_per_token = None

    def __init__(self, split: LabelledSplit, batch: int, sequence: int, seed: int = 0):
        if batch < 1:
            raise DataError(f"batch={batch} must be at least 1")
        if not len(split):
            raise DataError(f"the {split.name} split is empty: there is no row to train on")
        self.split, self.batch, self.sequence, self.seed = split, batch, sequence, seed
        self._order: Sequence[int] = shuffled(len(split), str(seed))

    @property
    def rows_per_epoch(self) -> int:
        return len(self.split)

    @property
    def steps_per_epoch(self) -> float:
        return self.rows_per_epoch / self.batch

    def rows(self, step: int) -> np.ndarray:
        """The row numbers of a step, one per place in the batch."""
        return np.array([self._order[step * self.batch + at] for at in range(self.batch)], np.int64)

    def fetch(self, step: int, start: int = 0, stop: int | None = None) -> Batch:
        """Places start..stop of a step's batch (see `LabelledSplit.arrays`)."""
        stop = self.batch if stop is None else stop
        if not 0 <= start <= stop <= self.batch:
            raise IndexError(f"places {start}..{stop} are not within a batch of {self.batch}")
        return self.split.arrays(self.rows(step)[start:stop], self.sequence)

    def fingerprint(self, step: int) -> str:
        """The hash of a step's batch, as training writes it to metrics.jsonl."""
        return as_text(fingerprint(self.fetch(step)))

    def describe(self, steps: int) -> str:
        """What `steps` steps will see, in a line."""
        epochs = steps * self.batch / self.rows_per_epoch
        return (
            f"training data: {self.rows_per_epoch:,} labelled rows, {self.steps_per_epoch:,.1f} steps per epoch; "
            f"{steps:,} steps see them {epochs:.2f} times"
        )


class LabelledEvaluation:
    """Every row of a split once, in order; the last batch is filled with rows that weigh nothing."""

    def __init__(self, split: LabelledSplit, batch: int, sequence: int):
        self.split, self.batch, self.sequence = split, batch, sequence
        self.batches = -(-len(split) // batch)

    def fetch(self, index: int, start: int = 0, stop: int | None = None) -> Batch:
        """Places start..stop of batch `index`."""
        stop = self.batch if stop is None else stop
        if not 0 <= index < self.batches or not 0 <= start <= stop <= self.batch:
            raise IndexError(f"batch {index}, places {start}..{stop}: there are {self.batches} x {self.batch}")
        rows = np.arange(index * self.batch + start, index * self.batch + stop)
        return self.split.arrays(np.where(rows < len(self.split), rows, -1), self.sequence)

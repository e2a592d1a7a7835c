"""Which rows step k holds: a function of seed and k, so no mesh, process count or restart changes it."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np

from jaxlm.data.config import DataError
from jaxlm.data.fingerprint import as_text, fingerprint
from jaxlm.data.mixture import Interleave, Mixture, shares
from jaxlm.data.packing import Batch, Rows, empty_batch, make_rows
from jaxlm.data.stream import TokenStream


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """What lies at one place of a batch: row `row` of a part, on the part's pass number `epoch` over its rows."""

    part: str
    row: int
    epoch: int


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedPart:
    """The rows of one part; `share` is its weight over the sum of all: its share of the rows that are trained on."""

    name: str
    stream: TokenStream
    weight: float
    share: float
    rows: Rows
    order: Sequence[int]


class Loader:
    """Training batches by step, of one stream or of a mixture.

    The rows of a mixture's parts are interleaved in proportion to the weights (see mixture.py). Of each part, every
    epoch visits every row once, in an order of its own; a batch may straddle two. A process asks for its part of a
    batch (`fetch(step, start, stop)`); what it gets does not depend on who asks.
    """

    def __init__(
        self,
        data: TokenStream | Mixture,
        batch: int,
        sequence: int,
        mode: Literal["pack", "truncate"] = "pack",
        seed: int = 0,
    ):
        if batch < 1:
            raise DataError(f"batch={batch} must be at least 1")
        self.batch, self.sequence, self.mode, self.seed = batch, sequence, mode, seed
        self.mixed = isinstance(data, Mixture)
        mixture = data if isinstance(data, Mixture) else Mixture({"": data}, {"": 1.0})
        share = shares(mixture.weights)
        parts = []
        for name, stream in mixture.streams.items():
            rows = make_rows(stream, sequence, mode)
            if len(rows) == 0:
                raise DataError(f"the {stream.name} split is empty: there is no row to train on")
            order = shuffled(len(rows), f"{seed} {name}".strip())
            parts.append(LoadedPart(name, stream, mixture.weights[name], float(share[name]), rows, order))
        self.parts = tuple(parts)
        self._pad = self.parts[0].stream.pad
        self._interleave = Interleave([part.weight for part in parts])

    @property
    def rows_per_epoch(self) -> int:
        """Rows of an epoch; of a mixture, rows until the first of its parts begins again."""
        return min(int(len(part.rows) / part.share) for part in self.parts)

    @property
    def steps_per_epoch(self) -> float:
        return self.rows_per_epoch / self.batch

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per predicted token, over rows in the proportions in which they are trained on."""
        sizes = [(part.share / len(part.rows), part.stream) for part in self.parts]
        targets = sum(share * stream.targets for share, stream in sizes)
        return sum(share * stream.bytes for share, stream in sizes) / max(targets, 1e-9)

    def epochs(self, steps: int) -> dict[str, float]:
        """How many times each part has been seen after that many steps."""
        counts = self._interleave.counts(steps * self.batch)
        return {part.name: count / len(part.rows) for part, count in zip(self.parts, counts, strict=True)}

    def place(self, step: int, at: int) -> Place:
        """What lies at place `at` of a step's batch."""
        number, index = self._interleave(step * self.batch + at)
        part = self.parts[number]
        return Place(part.name, part.order[index], index // len(part.rows))

    def rows(self, step: int) -> np.ndarray:
        """The row numbers of a step, each in its part, one per place in the batch."""
        return np.array([self.place(step, at).row for at in range(self.batch)], np.int64)

    def fetch(self, step: int, start: int = 0, stop: int | None = None) -> Batch:
        """Places start..stop of a step's batch, each array [stop - start, sequence] (see packing.py)."""
        stop = self.batch if stop is None else stop
        if not 0 <= start <= stop <= self.batch:
            raise IndexError(f"places {start}..{stop} are not within a batch of {self.batch}")
        batch = empty_batch(stop - start, self.sequence, self._pad)
        for at in range(start, stop):
            number, index = self._interleave(step * self.batch + at)
            part = self.parts[number]
            part.rows.fill(batch, at - start, part.order[index])
        return batch

    def fingerprint(self, step: int) -> str:
        """The hash of a step's batch, as training writes it to metrics.jsonl."""
        batch = self.fetch(step)
        return as_text(fingerprint(batch if self.mode == "pack" else {**batch, "segments": None}))

    def facts(self, steps: int) -> dict[str, dict[str, Any]]:
        """Of each part: size, weight, share of the rows, and how many times `steps` steps see it."""
        epochs = self.epochs(steps)
        return {
            part.name: {
                "weight": part.weight,
                "share": part.share,
                "documents": part.stream.documents,
                "bytes": part.stream.bytes,
                "tokens": len(part.stream),
                "rows": len(part.rows),
                "epochs": epochs[part.name],
            }
            for part in self.parts
        }

    def describe(self, steps: int) -> str:
        """What `steps` steps will see, in a line; of a mixture, a line for each part."""
        if not self.mixed:
            (part,) = self.parts
            rows = f"{self.rows_per_epoch:,} rows, {self.steps_per_epoch:,.1f} steps per epoch"
            seen = f"{steps:,} steps see it {self.epochs(steps)[part.name]:.2f} times"
            if part.stream.separator is not None and (cut := part.stream.longer(self.sequence + 1)):
                seen += f"; {cut:,} pairs are longer than a row and cut"
            return f"training data: {len(part.stream):,} tokens in {rows}; {seen}"
        lines = [f"training data: {len(self.parts)} parts; after {self.steps_per_epoch:,.1f} steps one of them repeats"]
        for name, part in self.facts(steps).items():
            lines.append(
                f"  {name}: weight {part['weight']:g} ({part['share']:.1%} of the rows), {part['tokens']:,} tokens in "
                f"{part['rows']:,} rows; {steps:,} steps see it {part['epochs']:.2f} times"
            )
        return "\n".join(lines)


class Evaluation:
    """Held-out text from its first token to its last, each predicted once; the last batch is filled with
    padding. Documents with prompts stand alone in their rows, and the prompts are not predicted. Raises DataError for
    one of these that is longer than a row.

    `bytes` is the size of the original text in UTF-8 and `targets` the number of predictions, so that
    bits per byte = -(sum of weights * log2 p) / bytes.
    """

    def __init__(self, stream: TokenStream, batch: int, sequence: int):
        if batch < 1:
            raise DataError(f"batch={batch} must be at least 1")
        self.stream, self.batch, self.sequence = stream, batch, sequence
        alone = stream.separator is not None
        if alone and stream.longest > sequence + 1:
            raise DataError(
                f"data.sequence={sequence} is too short for the {stream.name} split: its longest pair has "
                f"{stream.longest} tokens; raise it to {stream.longest - 1}"
            )
        self._rows = make_rows(stream, sequence, "truncate" if alone else "pack")
        if len(self._rows) == 0:
            raise DataError(f"the {stream.name} split is empty: there is nothing to evaluate on")
        self.batches = -(-len(self._rows) // batch)
        self.bytes = stream.bytes
        self.targets = stream.targets

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


def shuffled(rows: int, seed: str) -> Sequence[int]:
    """index -> row, a permutation of the rows in each run of `rows` indices, computed in O(1). `seed` is that of the
    run, and the name of the part where there are several."""
    import grain

    # grain moves on to seed + 1 in the next epoch; hashed, neighbouring seeds do not share their epochs.
    hashed = int.from_bytes(hashlib.sha256(f"order {seed}".encode()).digest()[:4], "big")
    return cast(Sequence[int], grain.MapDataset.range(rows).shuffle(seed=hashed).repeat())

"""Rows of T tokens out of a stream of documents, each computed when asked for.

A row is five arrays of length T: `tokens` (what the model reads), `targets` (what it should say next),
`segments` (1, 2, ... per document in the row, 0 for padding), `positions` (from 0 in each segment), `weights`
(1.0 where the target belongs to the same document as its input and not to its prompt, else 0).
"""

from typing import Literal, Protocol

import numpy as np

from jaxlm.data.stream import TokenStream

Batch = dict[str, np.ndarray]


class Rows(Protocol):
    """Numbered rows of a stream, any of them readable at once."""

    def __len__(self) -> int: ...

    def fill(self, batch: Batch, at: int, row: int) -> None:
        """Writes row `row` at index `at` of an empty batch."""
        ...


def empty_batch(rows: int, sequence: int, pad: int) -> Batch:
    """A batch of padding, which weighs nothing."""
    shape = (rows, sequence)
    return {
        "tokens": np.full(shape, pad, np.int32),
        "targets": np.full(shape, pad, np.int32),
        "segments": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
        "weights": np.zeros(shape, np.float32),
    }


def make_rows(stream: TokenStream, sequence: int, mode: Literal["pack", "truncate"]) -> Rows:
    """The rows of a stream in the given mode. Raises ValueError for prompts in packed rows, which would be cut off the
    texts they belong to."""
    if mode == "pack" and stream.separator is not None:
        raise ValueError("documents with prompts need the mode truncate: one of them per row")
    return Packed(stream, sequence) if mode == "pack" else Truncated(stream, sequence)


class Packed:
    """Documents one after the other, cut every `sequence` tokens: each token but a BOS is a target once."""

    def __init__(self, stream: TokenStream, sequence: int):
        self.stream, self.sequence = stream, sequence
        self.inputs = max(len(stream) - 1, 0)  # the last EOS is only ever a target
        self._count = np.arange(sequence, dtype=np.int32)

    def __len__(self) -> int:
        return -(-self.inputs // self.sequence)

    def fill(self, batch: Batch, at: int, row: int) -> None:
        start = row * self.sequence
        stop = min(start + self.sequence, self.inputs)
        size = stop - start
        tokens = self.stream.read(start, stop + 1)
        batch["tokens"][at, :size] = tokens[:-1]
        batch["targets"][at, :size] = tokens[1:]
        weights, segments, positions = batch["weights"][at], batch["segments"][at], batch["positions"][at]
        weights[:size] = 1
        begins = self.stream.starts(start + 1, stop + 1) - start
        weights[begins - 1] = 0  # no document predicts how the next one begins
        begin, segment = 0, 1
        for end in (*begins.tolist(), size):
            segments[begin:end] = segment
            positions[begin:end] = self._count[: end - begin]
            begin, segment = end, segment + 1


class Truncated:
    """One document per row: its first `sequence` tokens, and nothing of what follows them."""

    def __init__(self, stream: TokenStream, sequence: int):
        self.stream, self.sequence = stream, sequence
        self._count = np.arange(sequence, dtype=np.int32)

    def __len__(self) -> int:
        return self.stream.documents

    def fill(self, batch: Batch, at: int, row: int) -> None:
        tokens = self.stream.document(row)[: self.sequence + 1]
        size = len(tokens) - 1
        batch["tokens"][at, :size] = tokens[:-1]
        batch["targets"][at, :size] = tokens[1:]
        batch["segments"][at, :size] = 1
        batch["positions"][at, :size] = self._count[:size]
        batch["weights"][at, self.stream.prompt(tokens) : size] = 1

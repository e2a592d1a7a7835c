"""Prepared tokens: a flat stream per split, each document between BOS and EOS, mapped from disk on demand."""

import bisect
import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """Whole documents: number i is tokens[offsets[i]:offsets[i + 1]] and was bytes[i] bytes of UTF-8."""

    tokens: np.ndarray
    offsets: np.ndarray
    bytes: np.ndarray


class TokenStream:
    """The documents of one split as if they were one long array.

    `documents` and `bytes` count what is in it (bytes of the original UTF-8 text); `len(stream)` is the number
    of tokens.
    """

    def __init__(self, shards: Sequence[Shard], *, pad: int, name: str = "train"):
        self.shards = [shard for shard in shards if len(shard.bytes)]
        self.pad, self.name = pad, name
        self._token_starts = np.cumsum([0, *(len(shard.tokens) for shard in self.shards)]).tolist()
        self._document_starts = np.cumsum([0, *(len(shard.bytes) for shard in self.shards)]).tolist()

    @classmethod
    def of(cls, documents: Sequence[Sequence[int]], *, pad: int = 0, bytes: Sequence[int] = ()) -> "TokenStream":
        """A stream in memory from documents that already have their BOS and EOS."""
        flat = np.array([token for document in documents for token in document], np.int32)
        offsets = np.cumsum([0, *(len(document) for document in documents)])
        sizes = np.array(bytes or [0] * len(documents), np.int64)
        return cls([Shard(flat, offsets, sizes)], pad=pad)

    def __len__(self) -> int:
        return self._token_starts[-1]

    @property
    def documents(self) -> int:
        return self._document_starts[-1]

    @cached_property
    def bytes(self) -> int:
        return int(sum(int(shard.bytes.sum()) for shard in self.shards))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop, a view where they lie in one shard."""
        first = bisect.bisect_right(self._token_starts, start) - 1
        begin = self._token_starts[first]
        if stop <= self._token_starts[first + 1]:
            return self.shards[first].tokens[start - begin : stop - begin]
        parts = []
        for shard, begin in zip(self.shards[first:], self._token_starts[first:-1], strict=True):
            if begin >= stop:
                break
            parts.append(shard.tokens[max(start - begin, 0) : stop - begin])
        return np.concatenate(parts)

    def starts(self, start: int, stop: int) -> np.ndarray:
        """Where documents begin among positions start..stop."""
        first = max(bisect.bisect_right(self._token_starts, start) - 1, 0)
        found = []
        for shard, begin in zip(self.shards[first:], self._token_starts[first:-1], strict=True):
            if begin >= stop:
                break
            low, high = shard.offsets[:-1].searchsorted((start - begin, stop - begin))
            found.append(shard.offsets[low:high] + begin)
        return found[0] if len(found) == 1 else np.concatenate([np.empty(0, np.int64), *found])

    def document(self, index: int) -> np.ndarray:
        """The tokens of one document, BOS and EOS included."""
        which = bisect.bisect_right(self._document_starts, index) - 1
        shard, within = self.shards[which], index - self._document_starts[which]
        return shard.tokens[shard.offsets[within] : shard.offsets[within + 1]]

    def each_document(self) -> Iterator[np.ndarray]:
        """The tokens of each document in order."""
        return (self.document(index) for index in range(self.documents))

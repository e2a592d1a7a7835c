"""Prepared tokens: a flat stream per split, each document between BOS and EOS, mapped from disk on demand.

Where there are prompts, a document is `BOS prompt BOS text EOS`: the second BOS separates them, for no text holds one.
"""

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

    `documents` and `bytes` count what is in it (bytes of the original UTF-8 text, without prompts); `len(stream)` is
    the number of tokens. `separator` is the token between prompt and text, None where there are no prompts.
    """

    def __init__(self, shards: Sequence[Shard], *, pad: int, name: str = "train", separator: int | None = None):
        self.shards = [shard for shard in shards if len(shard.bytes)]
        self.pad, self.name, self.separator = pad, name, separator
        self._token_starts = np.cumsum([0, *(len(shard.tokens) for shard in self.shards)]).tolist()
        self._document_starts = np.cumsum([0, *(len(shard.bytes) for shard in self.shards)]).tolist()

    @classmethod
    def of(
        cls,
        documents: Sequence[Sequence[int]],
        *,
        pad: int = 0,
        bytes: Sequence[int] = (),
        separator: int | None = None,
    ) -> "TokenStream":
        """A stream in memory from documents that already have their BOS and EOS."""
        flat = np.array([token for document in documents for token in document], np.int32)
        offsets = np.cumsum([0, *(len(document) for document in documents)])
        sizes = np.array(bytes or [0] * len(documents), np.int64)
        return cls([Shard(flat, offsets, sizes)], pad=pad, separator=separator)

    def __len__(self) -> int:
        return self._token_starts[-1]

    @property
    def documents(self) -> int:
        return self._document_starts[-1]

    @cached_property
    def bytes(self) -> int:
        return int(sum(int(shard.bytes.sum()) for shard in self.shards))

    @cached_property
    def targets(self) -> int:
        """Tokens that are learned: all but the first of each document and those of prompts."""
        return len(self) - self.documents - sum(_prompts(shard, self.separator) for shard in self.shards)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return max((int(np.diff(shard.offsets).max()) for shard in self.shards), default=0)

    def longer(self, tokens: int) -> int:
        """How many documents have more tokens than that."""
        return sum(int((np.diff(shard.offsets) > tokens).sum()) for shard in self.shards)

    def prompt(self, document: np.ndarray) -> int:
        """Where the separator stands in a document, which is the number of its first targets that are not learned; 0
        where there are no prompts. A document that was cut before its separator is all prompt."""
        if self.separator is None:
            return 0
        found = np.flatnonzero(document[1:] == self.separator)
        return int(found[0]) + 1 if len(found) else len(document)

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


def _prompts(shard: Shard, separator: int | None) -> int:
    """The sum of `TokenStream.prompt` over the documents of a shard."""
    if separator is None:
        return 0
    at = np.flatnonzero(shard.tokens == separator)
    begins = shard.offsets[:-1]
    # The first one after each begin, for the begins themselves may be the same token.
    return int((at[np.searchsorted(at, begins, side="right")] - begins).sum())

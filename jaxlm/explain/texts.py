"""Words, what people marked among them, and the tokens that belong to each word.

Axes: W words of a text, T tokens, B rows.
"""

import abc
import bisect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jaxlm.data.tokenizer import Tokenizer

NOBODY = -1
"""The owner of a token that belongs to no word: begin, end, padding."""

WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Example:
    """A text as words.

    Attributes:
        words: as the data set splits it.
        label: the class that people gave it; None where unknown.
        rationale: bool [W], the words that people marked; None where nobody was asked.
        name: its id in the data set.
    """

    words: tuple[str, ...]
    label: int | None = None
    rationale: np.ndarray | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if self.rationale is not None and self.rationale.shape != (len(self.words),):
            raise ValueError(f"{self.name or 'a text'} has {len(self.words)} words and {self.rationale.shape} marks")

    @property
    def text(self) -> str:
        return " ".join(self.words)


def split(text: str) -> tuple[str, ...]:
    """Words and punctuation marks of free text."""
    return tuple(WORD.findall(text))


def spans(marks: Sequence[bool] | np.ndarray) -> list[tuple[int, int]]:
    """The runs of True as [start, end)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(marks, np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


class Encoder(abc.ABC):
    """Words to rows of tokens, by what the model was trained with.

    Attributes:
        longest: most tokens of a row; longer texts are cut at the end, and words beyond the cut own no token.
        mask: the id that stands for a hidden word in a model that was trained with hidden words; None where there is
            none, and hidden words are taken for padding.
    """

    longest: int
    mask: int | None = None

    @abc.abstractmethod
    def encode(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int32 [T] and the word that owns each token, or NOBODY."""

    def batches(self, texts: Sequence[Sequence[str]], rows: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Texts of like length together: their places in `texts` [n], and a batch of `rows` rows, of which the first n
        are theirs: tokens, positions, segments, owners int32 [B, T]. T is a power of two, so that few programs are
        compiled."""
        encoded = [self.encode(words) for words in texts]
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i][0]))
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows]
            widest = max(1, *(len(encoded[i][0]) for i in chosen)) if chosen else 1
            length = min(self.longest, max(16, 1 << (widest - 1).bit_length()))
            yield np.array(chosen), _rows([encoded[i] for i in chosen], rows, length)


@dataclass(frozen=True)
class PieceEncoder(Encoder):
    """By a tokenizer that cuts text into pieces; `begin` and `end` are ids around every text, None for none."""

    tokenizer: Tokenizer
    begin: int | None = None
    end: int | None = None
    longest: int = 512
    mask: int | None = None

    def encode(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int32 [T] of the words joined by blanks, and the word that owns each token, or NOBODY.

        A token belongs to the word that holds its last byte which is no blank, whatever the tokenizer does to blanks.
        """
        text = " ".join(words)
        ids = self.tokenizer.encode(text)
        ends = np.cumsum([len(word.encode()) + 1 for word in words]).tolist()
        owners, at = np.full(len(ids), NOBODY, np.int32), 0
        for place, token in enumerate(ids.tolist()):
            piece = self.tokenizer.pieces[token]
            last = at + len(piece.rstrip(b" ")) - 1
            if piece.strip(b" "):
                owners[place] = bisect.bisect_right(ends, last)
            at += len(piece)
        room = self.longest - (self.begin is not None) - (self.end is not None)
        parts, belong = [ids[:room]], [owners[:room]]
        for token, side in ((self.begin, 0), (self.end, 1)):
            if token is not None:
                parts.insert(side * len(parts), np.array([token], np.int32))
                belong.insert(side * len(belong), np.array([NOBODY], np.int32))
        return np.concatenate(parts), np.concatenate(belong)


class Ids(Protocol):
    """A vocabulary of whole words, such as `jaxlm.data.labelled.vocabulary.Vocabulary`."""

    def encode(self, words: Sequence[str]) -> np.ndarray: ...


@dataclass(frozen=True)
class WordEncoder(Encoder):
    """By a vocabulary of whole words, which are lower case: one token each."""

    vocabulary: Ids
    longest: int = 512
    mask: int | None = None

    def encode(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = self.vocabulary.encode([word.lower() for word in words[: self.longest]])
        return ids, np.arange(len(ids), dtype=np.int32)


def _rows(encoded: Sequence[tuple[np.ndarray, np.ndarray]], rows: int, length: int) -> dict[str, np.ndarray]:
    shape = (rows, length)
    tokens, owners = np.zeros(shape, np.int32), np.full(shape, NOBODY, np.int32)
    segments = np.zeros(shape, np.int32)
    for row, (ids, owner) in enumerate(encoded):
        tokens[row, : len(ids)], owners[row, : len(ids)], segments[row, : len(ids)] = ids, owner, 1
    positions = np.arange(length, dtype=np.int32)[None, :] * segments
    return {"tokens": tokens, "positions": positions, "segments": segments, "owners": owners}


def by_word(scores_T: np.ndarray, owners_T: np.ndarray, words: int) -> np.ndarray:
    """The sum of each word's tokens, float64 [W]; 0 for a word that was cut off."""
    ours = owners_T >= 0
    return np.bincount(owners_T[ours], weights=scores_T[ours].astype(np.float64), minlength=words)[:words]

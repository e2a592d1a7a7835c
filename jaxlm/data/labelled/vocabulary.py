"""Words to token ids, one token per word, so that what is said of a token is said of its word."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxlm.data.config import DataError
from jaxlm.data.labelled.spelling import Spelling

SPECIAL = ("<pad>", "<unknown>", "<mask>")
PAD, UNKNOWN, MASK = range(3)
FORMAT = "jaxlm words 1"


class Vocabulary:
    """`words[id]` by id, the special ones first; `vocab` counts ids as the model needs them (some may stand for
    nothing), `model` is the file, `digest` names it.

    MASK stands for a word that is hidden: a classifier trained with word dropout knows it, so that explanations may
    take words away without leaving what it was trained on. With `spelling` above 0 a word that is not known is read as
    the known one spelled most like it, where they are as similar as that (see spelling.py); 0: it is UNKNOWN.
    """

    def __init__(self, words: Sequence[str], vocab: int, spelling: float = 0.0):
        self.words, self.vocab = (*SPECIAL, *words), vocab
        if len(self.words) > vocab:
            raise DataError(f"{len(self.words)} words do not fit a vocabulary of {vocab}")
        self.pad = PAD
        self._ids = {word: id for id, word in enumerate(self.words)}
        told = {"format": FORMAT, "vocab": vocab, "words": list(words)} | ({"spelling": spelling} if spelling else {})
        self.model = json.dumps(told).encode()
        self._spelling = Spelling(words, spelling) if spelling else None
        self.digest = hashlib.sha256(self.model).hexdigest()

    @classmethod
    def learn(cls, texts: Iterable[Sequence[str]], vocab: int, least: int = 2, spelling: float = 0.0) -> "Vocabulary":
        """The most frequent words, those of equal count in alphabetical order; rarer ones than `least` are unknown."""
        counts = Counter(word for text in texts for word in text)
        known = sorted((word for word, n in counts.items() if n >= least), key=lambda word: (-counts[word], word))
        return cls([word for word in known if word not in SPECIAL][: vocab - len(SPECIAL)], vocab, spelling)

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Raises DataError for a file that is none."""
        try:
            found = json.loads(Path(path).read_bytes())
            if found["format"] != FORMAT:
                raise ValueError(f"its format is {found['format']!r}")
            return cls(found["words"], found["vocab"], found.get("spelling", 0.0))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no vocabulary of words: {error}") from error

    def encode(self, words: Sequence[str]) -> np.ndarray:
        """One id per word, int32."""
        return np.array([self._id(word) for word in words], np.int32)

    def _id(self, word: str) -> int:
        known = self._ids.get(word)
        if known is None and self._spelling is not None and (near := self._spelling.nearest(word)) is not None:
            return near + len(SPECIAL)
        return UNKNOWN if known is None else known

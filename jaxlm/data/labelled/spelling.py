"""Which known word an unknown one is spelled like: plurals, stretched letters, misspelt and joined words.

Words are compared by their character n-grams, as fastText cuts them (Bojanowski et al. 2017,
https://aclanthology.org/Q17-1010): the word between < and >, in pieces of 3 to 5 characters.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

SIZES = (3, 4, 5)


def pieces(word: str) -> set[str]:
    """The character n-grams of a word."""
    bounded = f"<{word}>"
    return {bounded[i : i + n] for n in SIZES for i in range(len(bounded) + 1 - n)}


class Spelling:
    """Finds the word that is spelled most alike.

    Args:
        words: the known ones; earlier ones win a tie.
        least: the smallest Dice coefficient of two words' pieces, twice the common ones over the sum of both counts,
            for which one is read as the other; in (0, 1].
    """

    def __init__(self, words: Sequence[str], least: float):
        self.least = least
        places: dict[str, list[int]] = defaultdict(list)
        for place, word in enumerate(words):
            for piece in pieces(word):
                places[piece].append(place)
        self._places = {piece: np.array(found, np.int32) for piece, found in places.items()}
        self._sizes = np.array([len(pieces(word)) for word in words], np.int32)
        self._found: dict[str, int | None] = {}

    def nearest(self, word: str) -> int | None:
        """The place of the most similar known word, or None where none is similar enough."""
        if word not in self._found:
            self._found[word] = self._search(word)
        return self._found[word]

    def _search(self, word: str) -> int | None:
        mine = pieces(word)
        there = [self._places[piece] for piece in mine if piece in self._places]
        if not there:
            return None
        common = np.bincount(np.concatenate(there), minlength=len(self._sizes))
        alike = 2.0 * common / (self._sizes + len(mine))
        best = int(alike.argmax())
        return best if alike[best] >= self.least else None

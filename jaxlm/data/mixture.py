"""Several token streams as one, each with a weight: which part, and which of its rows, every place of the stream is.

The places are divided by halving, so that any of them is found at once. Of the first n places of a node of a binary
tree over the parts (in their given order, split in the middle), floor(n * left / (left + right) + 1/2) belong to its
left child, where `left` and `right` are the exact weights below; place n belongs to the side whose count it raises,
and is there the place of that number. Each split is within 1/2 of its due and a child inherits at most its parent's
error, so of the first n places a part holds its share of n to within ceil(log2(parts)) / 2 rows, for every n and
without end. The weights are taken as the decimal fractions that were written, in whole numbers: no place depends on
the rounding of a machine or on the version of a library.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from fractions import Fraction

from jaxlm.data.stream import TokenStream


@dataclasses.dataclass(frozen=True, slots=True)
class Mixture:
    """Token streams by name, and the weight of each: its share of the rows, relative to the other weights."""

    streams: Mapping[str, TokenStream]
    weights: Mapping[str, float]


def shares(weights: Mapping[str, float]) -> dict[str, Fraction]:
    """Each weight over the sum of all, exactly."""
    total = sum(map(_exact, weights.values()))
    return {name: _exact(weight) / total for name, weight in weights.items()}


class Interleave:
    """The division of an endless row of places among parts in proportion to their weights (see above)."""

    def __init__(self, weights: Sequence[float]):
        fractions = [_exact(weight) for weight in weights]
        self.parts, self._tree = len(fractions), _tree(fractions, 0, len(fractions))

    def __call__(self, place: int) -> tuple[int, int]:
        """The part that holds a place (from 0), and how many places it holds before this one. O(log parts)."""
        node = self._tree
        while isinstance(node, _Split):
            left = node.left_of(place)
            if node.left_of(place + 1) > left:
                node, place = node.left, left
            else:
                node, place = node.right, place - left
        return node, place

    def counts(self, places: int) -> list[int]:
        """How many of the first `places` places each part holds."""
        counts, waiting = [0] * self.parts, [(self._tree, places)]
        while waiting:
            node, size = waiting.pop()
            if isinstance(node, _Split):
                left = node.left_of(size)
                waiting += [(node.left, left), (node.right, size - left)]
            else:
                counts[node] = size
        return counts


@dataclasses.dataclass(frozen=True, slots=True)
class _Split:
    """Two sides of the tree, each a part's number or another split; `share` is what is due to the left."""

    left: "int | _Split"
    right: "int | _Split"
    share: Fraction

    def left_of(self, places: int) -> int:
        top, bottom = self.share.numerator, self.share.denominator
        return (2 * places * top + bottom) // (2 * bottom)


def _tree(weights: Sequence[Fraction], start: int, stop: int) -> "int | _Split":
    if stop - start == 1:
        return start
    middle = (start + stop) // 2
    share = sum(weights[start:middle]) / sum(weights[start:stop])
    return _Split(_tree(weights, start, middle), _tree(weights, middle, stop), Fraction(share))


def _exact(weight: float) -> Fraction:
    """0.7 as 7/10, not as the binary number next to it."""
    return Fraction(str(float(weight)))

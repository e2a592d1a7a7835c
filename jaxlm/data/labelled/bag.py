"""A bag of words and of pairs of neighbours, fitted to training rows: multinomial logistic regression.

Axes: N rows, V vocabulary, H buckets of pairs, C classes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_array, hstack

from jaxlm.data.labelled.spelling import pieces
from jaxlm.data.labelled.vocabulary import SPECIAL


@dataclass(frozen=True, slots=True)
class Bag:
    """The logits that the presence of words [V, C] and pairs [H, C] adds to a bias [C]; float32."""

    words: np.ndarray
    pairs: np.ndarray
    bias: np.ndarray


def bucket(left: Any, right: Any, buckets: int) -> Any:
    """Where pairs of ids lie, uint32 in [0, buckets), of uint32 arrays of NumPy or JAX: the final mix of MurmurHash3
    (https://github.com/aappleby/smhasher) of 2654435761 left + right."""
    kind = left.dtype.type
    mixed = left * kind(2654435761) + right
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> kind(shift))) * kind(factor)
    return (mixed ^ (mixed >> kind(16))) % kind(buckets)


def learn_bag(
    ids: Sequence[np.ndarray],
    labels: np.ndarray,
    weights: np.ndarray,
    *,
    vocab: int,
    buckets: int,
    classes: int,
    strength: float,
    words: Sequence[str] = (),
    spelled: float = 0.0,
) -> Bag:
    """The bag of rows given as token ids, with labels [N] and weights [N].

    With `spelled` above 0 a word also counts as its character n-grams (see spelling.py), each that much, so that words
    spelled alike share what is learned: their weights end up in those of the words. `words` [V] are by id.
    """
    rows, columns = [], []
    for row, mine in enumerate(ids):
        word = mine.astype(np.uint32)
        there = np.unique(np.concatenate([word, vocab + bucket(word[:-1], word[1:], buckets)]))
        rows.append(np.full(len(there), row))
        columns.append(there)
    places = np.concatenate(rows), np.concatenate(columns).astype(np.int64)
    x = csr_array((np.ones(len(places[0])), places), shape=(len(ids), vocab + buckets))
    if not spelled:
        found = fit(x, labels, classes, strength, weights).astype(np.float32)
        return Bag(words=found[:vocab], pairs=found[vocab:-1], bias=found[-1])
    shared = spelled * _spelled(words, vocab)
    both = csr_array(hstack([x, x[:, :vocab] @ shared]))
    found = fit(both, labels, classes, strength, weights)
    own, pairs, of_pieces = np.split(found[:-1], [vocab, vocab + buckets])
    return Bag(*(np.asarray(w, np.float32) for w in (own + shared @ of_pieces, pairs, found[-1])))


def _spelled(words: Sequence[str], vocab: int) -> csr_array:
    """float64 [V, P]: 1 where a word holds a character n-gram that another word holds too."""
    held = [sorted(pieces(word)) if word not in SPECIAL else [] for word in words]
    counts = Counter(piece for mine in held for piece in mine)
    places = {piece: at for at, piece in enumerate(sorted(p for p, n in counts.items() if n > 1))}
    rows = [row for row, mine in enumerate(held) for piece in mine if piece in places]
    columns = [places[piece] for mine in held for piece in mine if piece in places]
    return csr_array((np.ones(len(rows)), (rows, columns)), shape=(vocab, len(places)))


def fit(
    x: csr_array, labels: np.ndarray, classes: int, strength: float, weights: np.ndarray | None = None
) -> np.ndarray:
    """float64 [F + 1, C], the bias last: the minimum of strength x weighted cross entropy (nats, summed) plus half the
    squares of all but the bias, as scikit-learn's C = `strength`; by L-BFGS, at most 100 steps.

    x [N, F], labels [N], weights [N] (None: all 1).
    """
    assert x.shape is not None
    wide, back = x.shape[1], x.T.tocsr()
    hot = np.eye(classes)[labels]
    scale = strength * (np.ones(len(labels)) if weights is None else weights.astype(np.float64))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(wide + 1, classes)
        logits = x @ w[:-1] + w[-1]
        top = logits.max(1, keepdims=True)
        partition = top[:, 0] + np.log(np.exp(logits - top).sum(1))
        off = scale[:, None] * (np.exp(logits - partition[:, None]) - hot)
        value = scale @ (partition - (logits * hot).sum(1)) + 0.5 * np.square(w[:-1]).sum()
        return value, np.vstack([back @ off + w[:-1], off.sum(0)]).ravel()

    found = minimize(loss, np.zeros((wide + 1) * classes), jac=True, method="L-BFGS-B", options={"maxiter": 100})
    return found.x.reshape(wide + 1, classes)

"""A linear classifier of word presence: the floor that every explanation of a larger model has to pass.

Axes: N texts, V words.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_array

from jaxlm.explain.subject import Words


def incidence(texts: Sequence[Words], words: Sequence[str]) -> csr_array:
    """float64 [N, V]: 1 where a text holds a word."""
    places = {word: at for at, word in enumerate(words)}
    held = [sorted({places[w] for w in text if w in places}) for text in texts]
    rows = np.repeat(np.arange(len(texts)), [len(h) for h in held])
    columns = np.array([at for h in held for at in h], int)
    return csr_array((np.ones(len(columns)), (rows, columns)), shape=(len(texts), len(words)))


def frequent(texts: Sequence[Words], least: int = 2) -> list[str]:
    """Words in at least so many texts, in alphabetical order."""
    counts = Counter(word for text in texts for word in set(text))
    return sorted(word for word, count in counts.items() if count >= least)


def word_weights(texts: Sequence[Words], positive: np.ndarray, *, strength: float = 1.0) -> dict[str, float]:
    """The weights of a logistic regression on word presence, with the L2 penalty of scikit-learn's C = `strength`.

    `positive` bool [N]. Words seen once are left out.
    """
    words = frequent(texts)
    x, signs = incidence(texts, words), np.where(positive, 1.0, -1.0)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = signs * (x @ w[:-1] + w[-1])
        slope = -signs / (1.0 + np.exp(np.clip(margin, -500, 500)))
        value = strength * np.logaddexp(0.0, -margin).sum() + 0.5 * w[:-1] @ w[:-1]
        return value, np.append(strength * (x.T @ slope) + w[:-1], strength * slope.sum())

    found = minimize(loss, np.zeros(len(words) + 1), jac=True, method="L-BFGS-B", options={"maxiter": 300})
    return dict(zip(words, found.x[:-1].tolist(), strict=True))

"""A logistic regression over words and their neighbours: what marking words costs without any neural model."""

import importlib.util
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from jaxlm.decode import ConfigError
from jaxlm.explain.texts import Example

REACH = 2
"""Neighbours on each side that are read beside a word."""


def find_library() -> None:
    """Raises ConfigError without scikit-learn: before any work, for the regression comes at its end."""
    if importlib.util.find_spec("sklearn") is None:
        raise ConfigError("the window regression on Toxic Spans needs scikit-learn: uv sync --extra fairness")


def window_regression(train: Sequence[Example], texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """The chance that people mark each word of `texts` (float [W] each), learned from the marks of `train`.

    Which words stand at -2 to 2 from it is all that is read. scikit-learn fits it
    (https://scikit-learn.org/stable/modules/generated/sklearn.linear_model.LogisticRegression.html), C = 1.
    """
    from sklearn.feature_extraction import FeatureHasher
    from sklearn.linear_model import LogisticRegression

    hasher = FeatureHasher(2**20, input_type="string", alternate_sign=False)
    marks = np.concatenate([e.rationale for e in train if e.rationale is not None])
    words = chain.from_iterable(windows(e.words) for e in train if e.rationale is not None)
    fitted = LogisticRegression(C=1.0, max_iter=300).fit(hasher.transform(words), marks)
    chances = fitted.predict_proba(hasher.transform(chain.from_iterable(map(windows, texts))))[:, 1]
    return np.split(chances, np.cumsum([len(t) for t in texts])[:-1])


def windows(words: Sequence[str]) -> Iterator[list[str]]:
    """For each word, which words stand where around it."""
    edge = [""] * REACH
    padded = [*edge, *(w.lower() for w in words), *edge]
    for i in range(len(words)):
        yield [f"{at}:{padded[i + at]}" for at in range(2 * REACH + 1)]

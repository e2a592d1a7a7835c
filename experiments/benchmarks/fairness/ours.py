"""Our rows of the fairness benchmark: `FairClassifier` along a grid of strengths, one compiled scan per fold."""

import time
from typing import Any

import numpy as np

from experiments.benchmarks.fairness.folds import Fold, Method, Outcome, Part
from jaxlm.fairness.estimator import FairClassifier

STRENGTHS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
"""Of the adversary; the witness alone is asked for WITNESS times as much."""
WITNESS = 6.0


def ours(
    *, adversary: float = 1.0, witness: float = 0.0, attribute: bool = False,
    strengths: tuple[float, ...] = STRENGTHS, **options: Any,
) -> Method:  # fmt: skip
    """Strength s gives the adversary `adversary * s` and the witness term `witness * s`."""

    def method(fold: Fold, grid: int) -> list[Outcome]:
        pairs = [(adversary * s, witness * s) for s in along(strengths, grid)]
        large = len(fold.train.y) > 10_000
        sizes: dict[str, Any] = dict(epochs=15, batch_size=512) if large else dict(epochs=40, batch_size=256)
        model = FairClassifier(
            criterion=fold.criterion, interactions=fold.few, use_attribute=attribute,
            random_state=fold.seed, **(sizes | options),
        )  # fmt: skip
        start = time.perf_counter()
        fitted = model.path(fold.train.x, fold.train.y, pairs, sensitive_features=fold.train.a)
        seconds = (time.perf_counter() - start) / len(pairs)

        def said(each: FairClassifier, part: Part) -> tuple[np.ndarray, np.ndarray]:
            scores = each.predict_proba(part.x, sensitive_features=part.a if attribute else None)[:, 1]
            return (scores > 0.5).astype(int), scores

        return [
            Outcome(strength=s, validation=said(each, fold.validation), test=said(each, fold.test), seconds=seconds)
            for s, each in zip(along(strengths, grid), fitted, strict=True)
        ]

    return method


def along(values: tuple[float, ...], count: int) -> list[float]:
    """`count` of some values, evenly picked, the first and the last among them."""
    if count >= len(values):
        return list(values)
    return [values[round(i * (len(values) - 1) / max(count - 1, 1))] for i in range(count)]

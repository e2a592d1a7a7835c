"""Which words a method names, where each score is the log odds that a person marks the word.

A threshold names the words that are likely by themselves. Where people's marks are judged by overlap (IoU, F1), the
best set of a text depends on all of its words: of two texts with one sure word each, the one with many half-likely
words beside it is better served by a longer answer. So the length of the answer is chosen text by text, from the scores
alone, to maximise the overlap that they let expect. What must be fitted, a shift and a scale of the log odds, comes
from validation texts.

Axes: W words of a text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Overlap = Literal["iou", "f1"]

SHIFTS = tuple(np.arange(-2.0, 2.01, 0.25))
SCALES = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chooser:
    """`chooser(log_odds_W)` -> bool [W]: the highest words, as many as maximise the overlap expected.

    Attributes:
        overlap: `iou` or `f1`.
        shift, scale: p = sigmoid(scale * (log odds - shift)) is the probability of a mark.
        empty: whether no word may be named, worth the probability that no word is marked (words taken for independent).
        run: whether the words must stand side by side, as where people marked by one stroke.
    """

    overlap: Overlap = "iou"
    shift: float = 0.0
    scale: float = 1.0
    empty: bool = False
    run: bool = False

    def __call__(self, log_odds_W: np.ndarray) -> np.ndarray:
        if not len(log_odds_W):
            return np.zeros(0, bool)
        p = 1.0 / (1.0 + np.exp(-np.clip(self.scale * (log_odds_W - self.shift), -50, 50)))
        chosen = np.zeros(len(p), bool)
        if self.run:
            value = of_runs(p, self.overlap)
            start, end = np.unravel_index(value.argmax(), value.shape)
            words = slice(int(start), int(end) + 1)
        else:
            order = np.argsort(-p, kind="stable")
            value = expected(p[order], self.overlap)
            words = order[: int(value.argmax()) + 1]
        if not (self.empty and np.prod(1.0 - p) > value.max()):
            chosen[words] = True
        return chosen


def expected(p_W: np.ndarray, overlap: Overlap) -> np.ndarray:
    """float64 [W]: the overlap of the first 1, 2, ... words with the marks, as the ratio of the expected numbers of
    words in numerator and denominator; p falls."""
    hits, sizes = np.cumsum(p_W), np.arange(1, len(p_W) + 1)
    if overlap == "iou":
        return hits / (sizes + p_W.sum() - hits)
    return 2 * hits / (sizes + p_W.sum())


def of_runs(p_W: np.ndarray, overlap: Overlap) -> np.ndarray:
    """float64 [W, W]: the overlap of the words from the first to the second index with the marks, as in `expected`; 0
    where the second lies before the first."""
    sums, at = np.concatenate([[0.0], np.cumsum(p_W)]), np.arange(len(p_W))
    hits, sizes = sums[None, 1:] - sums[:-1, None], at[None, :] - at[:, None] + 1
    whole = np.where(sizes > 0, sizes + sums[-1], np.inf)
    return hits / (whole - hits) if overlap == "iou" else 2 * hits / whole


def fitted(
    log_odds: Sequence[np.ndarray],
    judge: Callable[[int, np.ndarray], float],
    *,
    overlap: Overlap = "iou",
    empty: bool = False,
    runs: bool = False,
) -> Chooser:
    """The chooser with the highest mean of `judge(text number, chosen bool [W])`: for validation texts, never for those
    that are judged. With `runs` those whose words stand side by side are tried too."""
    every = [
        Chooser(overlap=overlap, shift=float(shift), scale=scale, empty=empty, run=run)
        for run in ((False, True) if runs else (False,))
        for shift in SHIFTS
        for scale in SCALES
    ]
    mean = lambda chooser: float(np.mean([judge(i, chooser(s)) for i, s in enumerate(log_odds)]))
    return max(every, key=mean)

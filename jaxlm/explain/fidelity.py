"""How far scores of words agree with the words that people marked.

Token IoU and ERASER's IOU-F1 are different numbers and are never mixed: the first is a mean over texts, the second
counts spans that overlap by half (https://arxiv.org/abs/1911.03429, `metrics.py`). How many words a method may choose
is fixed, or comes from the validation split: taking the length of each gold rationale doubles every score.

Axes: W words of a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from jaxlm.explain.texts import spans

HALF = 0.5
"""ERASER's threshold on the overlap of two spans."""


def top(scores_W: np.ndarray, k: int) -> np.ndarray:
    """bool [W]: the k highest scores, or all where there are fewer; of equals the first."""
    chosen = np.zeros(len(scores_W), bool)
    chosen[np.argsort(-scores_W, kind="stable")[: max(0, k)]] = True
    return chosen


def share(scores_W: np.ndarray, fraction: float) -> np.ndarray:
    """bool [W]: the given share of the words, at least one, by score."""
    return top(scores_W, max(1, round(fraction * len(scores_W))))


def token_iou(predicted: np.ndarray, gold: np.ndarray) -> float:
    """|P and G| / |P or G|; 1 where both are empty."""
    union = np.count_nonzero(predicted | gold)
    return np.count_nonzero(predicted & gold) / union if union else 1.0


def token_f1(predicted: np.ndarray, gold: np.ndarray) -> float:
    """Of one text; 1 where both are empty."""
    total = np.count_nonzero(predicted) + np.count_nonzero(gold)
    return 2 * np.count_nonzero(predicted & gold) / total if total else 1.0


def eraser_iou_f1(predicted: Sequence[np.ndarray], gold: Sequence[np.ndarray]) -> float:
    """A predicted span counts where its best IoU with a gold span is at least one half; F1 of the means over texts of
    precision and recall. A text without predicted (gold) spans has precision (recall) 0."""
    precision, recall = [], []
    for ours, theirs in zip(predicted, gold, strict=True):
        have, want = spans(ours), spans(theirs)
        best = [max((_overlap(span, other) for other in want), default=0.0) for span in have]
        hits = sum(value >= HALF for value in best)
        precision.append(hits / len(have) if have else 0.0)
        recall.append(hits / len(want) if want else 0.0)
    p, r = float(np.mean(precision)), float(np.mean(recall))
    return 2 * p * r / (p + r) if p + r else 0.0


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> float:
    both = min(one[1], other[1]) - max(one[0], other[0])
    return max(0, both) / (max(one[1], other[1]) - min(one[0], other[0])) if both > 0 else 0.0


def auprc(scores_W: np.ndarray, gold: np.ndarray) -> float:
    """Area under precision over recall of one text by the trapezoid rule, ties as one step, as scikit-learn's
    `precision_recall_curve` with `auc`. NaN where people marked nothing."""
    if not gold.any():
        return float("nan")
    order = np.argsort(-scores_W, kind="stable")
    hits, ranked = np.cumsum(gold[order]), scores_W[order]
    ends = np.append(ranked[1:] != ranked[:-1], True)
    precision = np.append(1.0, (hits / np.arange(1, len(hits) + 1))[ends])
    recall = np.append(0.0, (hits / hits[-1])[ends])
    return float(np.trapezoid(precision, recall))


def char_f1(predicted: set[int], gold: set[int]) -> float:
    """F1 over character offsets of one text, as SemEval-2021 task 5 scores it: 1 where both are empty, 0 where one
    is."""
    if not predicted or not gold:
        return float(predicted == gold)
    return 2 * len(predicted & gold) / (len(predicted) + len(gold))


def rank_stability(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """Mean Spearman correlation between two runs' scores of the same texts; texts where a run gives all words one score
    count as 0, texts of a single word are left out."""
    found = []
    for a, b in zip(one, other, strict=True):
        if len(a) > 1:
            x, y = rankdata(a) - (len(a) + 1) / 2, rankdata(b) - (len(b) + 1) / 2
            norm = np.sqrt((x @ x) * (y @ y))
            found.append(float(x @ y / norm) if norm else 0.0)
    return float(np.mean(found)) if found else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """One method against people over texts with a rationale: means, and two of them text by text for paired tests."""

    auprc: float
    iou: float
    f1: float
    iou_f1: float
    each_auprc: np.ndarray
    each_iou: np.ndarray


def agreement(
    scores: Sequence[np.ndarray], gold: Sequence[np.ndarray], chosen: Sequence[np.ndarray] | None = None, *, k: int = 5
) -> Agreement:
    """`chosen` are the words that the method names; default the `k` highest of each text."""
    picked = [top(s, k) for s in scores] if chosen is None else list(chosen)
    pairs = list(zip(picked, gold, strict=True))
    each_auprc = np.array([auprc(s, g) for s, g in zip(scores, gold, strict=True)])
    each_iou = np.array([token_iou(p, g) for p, g in pairs])
    return Agreement(
        auprc=float(np.nanmean(each_auprc)),
        iou=float(each_iou.mean()),
        f1=float(np.mean([token_f1(p, g) for p, g in pairs])),
        iou_f1=eraser_iou_f1(picked, gold),
        each_auprc=each_auprc,
        each_iou=each_iou,
    )


def paired_interval(
    ours: np.ndarray, theirs: np.ndarray, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Mean difference and its percentile bootstrap interval over texts: (mean, low, high)."""
    difference = np.asarray(ours, np.float64) - theirs
    difference = difference[~np.isnan(difference)]
    random = np.random.default_rng(seed)
    means = difference[random.integers(0, len(difference), (draws, len(difference)))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(difference.mean()), float(low), float(high)


def best_share(
    scores: Sequence[np.ndarray], gold: Sequence[np.ndarray], grid: Sequence[float] = tuple(np.arange(0.05, 1.01, 0.05))
) -> float:
    """The share of words whose mean token IoU is highest: for the validation split, never for the rows judged."""
    mean = lambda f: np.mean([token_iou(share(s, f), g) for s, g in zip(scores, gold, strict=True)])
    return float(max(grid, key=mean))


def best_threshold(scores: Sequence[np.ndarray], gold: Sequence[np.ndarray], steps: int = 50) -> float:
    """The score above which words are chosen so that mean token IoU is highest: for the validation split."""
    grid = np.quantile(np.concatenate(list(scores)), np.linspace(0.02, 0.98, steps))
    mean = lambda t: np.mean([token_iou(above(s, t), g) for s, g in zip(scores, gold, strict=True)])
    return float(max(np.unique(grid), key=mean))


def above(scores_W: np.ndarray, threshold: float) -> np.ndarray:
    """bool [W]: scores of at least the threshold; the highest one where none reaches it."""
    chosen = scores_W >= threshold
    return chosen if chosen.any() else top(scores_W, 1)

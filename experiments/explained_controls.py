"""Controls that must fail: scores of a model with nothing learned in it, and how stable the others are."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import t

from experiments.explained import gold_of
from experiments.report import Row
from jaxlm.explain.fidelity import agreement, rank_stability
from jaxlm.explain.methods import METHODS, Scores, grounded, randomised, smoothed
from jaxlm.explain.subject import HARMFUL, Subject
from jaxlm.explain.texts import Example


def floor_rows(subject: Subject, test: Sequence[Example], draws: int) -> list[Row]:
    """AUPRC of ours on a model whose weights are drawn anew, less that of random scores, over several draws of both.

    One draw is no evidence: a random embedding likes some frequent words and dislikes others, for all texts alike. And
    smoothing lifts whatever it smooths, random scores too, because people mark runs of words: smoothed is compared with
    smoothed.
    """
    texts, gold = [e.words for e in test], gold_of(test)
    classes = np.full(len(texts), HARMFUL)
    chance = [[np.random.default_rng([seed, i]).random(len(w)) for i, w in enumerate(texts)] for seed in range(draws)]
    fallen = [grounded(randomised(subject, seed), texts, classes) for seed in range(draws)]
    as_they_are: Callable[[np.ndarray], np.ndarray] = lambda scores: scores
    rows = []
    for name, shape in (("ours, not smoothed", as_they_are), ("ours", smoothed)):
        value = lambda many, shape=shape: np.array([_auprc([shape(s) for s in scores], gold) for scores in many])
        whole = _auprc([shape(s) for s in grounded(subject, texts, classes)], gold)
        rows.append(_fallen(name, whole, value(fallen), value(chance)))
    return rows


def _fallen(name: str, whole: float, fallen: np.ndarray, chance: np.ndarray) -> Row:
    difference, draws = fallen - chance.mean(), len(fallen)
    mean = float(difference.mean())
    half = float(t.ppf(0.975, draws - 1) * difference.std(ddof=1) / np.sqrt(draws)) if draws > 1 else float("nan")
    kept = mean / (whole - chance.mean())
    said = "met: no difference outside the interval" if abs(mean) <= half else "MISSED: a difference"
    note = (
        f"{said}; 95 % over {draws} draws [{mean - half:+.3f}, {mean + half:+.3f}]; as trained {whole:.3f}, random "
        f"{chance.mean():.3f}: {1 - kept:.0%} of what ours has above chance is gone"
    )
    return Row(what=f"{name}, randomised weights - random", quantity="AUPRC difference", measured=mean, note=note)


def _auprc(scores: Scores, gold: Sequence[np.ndarray]) -> float:
    return agreement(scores, gold).auprc


def stability_rows(subject: Subject, test: Sequence[Example]) -> list[Row]:
    texts = [e.words for e in test[:64]]
    call = lambda s: METHODS["ours"](s, texts, np.full(len(texts), HARMFUL))
    ours = call(subject)
    other, again = rank_stability(ours, call(randomised(subject))), rank_stability(ours, call(subject))
    quantity = "rank correlation with randomised weights"
    return [
        Row(what="ours", quantity=quantity, measured=other, note="1: no change"),
        Row(what="ours", quantity="rank correlation between two calls", measured=again),
    ]

"""Held-out evaluation: sums over every token, bits per byte of the original text, accuracy where it was counted."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

COUNTS = ("hits", "guesses", "targets")
"""Per class, how often it was predicted rightly, predicted at all, and right: integers [V] that `sums` may give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a model is worth on a text.

    Attributes:
        loss: nats per predicted token.
        bits_per_byte: -log2 p of all tokens, spread over the text's UTF-8 bytes.
        perplexity: exp(loss).
        tokens: predictions made; the first token of a document is not one.
        bytes: UTF-8 bytes of the text.
        top1: share of the tokens whose target was the most likely token (the first of equals); absent if not counted.
        macro_f1: mean over token ids of F1 (see `macro_f1`); absent if not counted.
        macro_f1_classes: token ids in that mean: those that occur as target or prediction; absent if not counted.
    """

    loss: float
    bits_per_byte: float
    perplexity: float
    tokens: int
    bytes: int
    top1: float | None = None
    macro_f1: float | None = None
    macro_f1_classes: int | None = None

    def facts(self) -> dict[str, float]:
        """The values by name, without those that were not counted."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def evaluate(
    sums: Callable[[Any, Any], Mapping[str, Any]], model: Any, batches: Iterable[Any], bytes_per_token: float
) -> Evaluation:
    """`sums(model, batch)` gives `nll` (nats) and `weight` (tokens) of a batch, which are added in float64; and
    perhaps all of COUNTS, which are added as 64-bit integers.

    `bytes_per_token` is that of the whole split (its UTF-8 bytes over its predicted tokens), so that the bits per byte
    of a complete evaluation are spread over exactly the bytes of the text.
    """
    nll = weight = 0.0
    counts: dict[str, np.ndarray] = {}
    for batch in batches:
        values = jax.device_get(sums(model, batch))
        nll, weight = nll + float(values["nll"]), weight + float(values["weight"])
        for name in COUNTS:
            if name in values:
                counts[name] = counts.get(name, 0) + np.asarray(values[name], np.int64)
    loss = nll / max(weight, 1.0)
    return Evaluation(
        loss=loss,
        bits_per_byte=loss / math.log(2) / bytes_per_token,
        perplexity=math.exp(min(loss, 700.0)),
        tokens=round(weight),
        bytes=round(weight * bytes_per_token),
        **(_scores(**counts) if counts else {}),
    )


def _scores(hits: np.ndarray, guesses: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    share = int(hits.sum()) / max(int(targets.sum()), 1)
    return {
        "top1": share,
        "macro_f1": macro_f1(hits, guesses, targets),
        "macro_f1_classes": int(np.count_nonzero(guesses + targets)),
    }


def macro_f1(hits: np.ndarray, guesses: np.ndarray, targets: np.ndarray) -> float:
    """The unweighted mean of F1 = 2 TP / (2 TP + FP + FN) over the classes that occur, as target or as prediction.

    TP = hits, TP + FP = guesses, TP + FN = targets, integers [V]. A class that is predicted and never right, or right
    and never predicted, has F1 = 0; one that occurs as neither is left out. This is `f1_score(average="macro")` of
    scikit-learn with its default labels
    (https://scikit-learn.org/stable/modules/generated/sklearn.metrics.f1_score.html). 0 where nothing occurs.
    """
    occurs = (guesses + targets) > 0
    if not occurs.any():
        return 0.0
    return float(np.mean(2.0 * hits[occurs] / (guesses + targets)[occurs]))

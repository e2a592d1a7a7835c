"""Judging a classifier on labelled rows: its probabilities of each row, and what they are worth.

Axes: N rows, C classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from jaxlm.data.labelled.corpus import LabelledCorpus, LabelledSplit, split_of_posts
from jaxlm.data.labelled.loader import LabelledEvaluation
from jaxlm.data.labelled.rows import Post, words
from jaxlm.data.labelled.vocabulary import Vocabulary
from jaxlm.session import Session
from jaxlm.sharding import replicated
from jaxlm.trainer.evaluate import macro_f1
from jaxlm.trainer.stop import Asked, never, until


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The probability that a positive row has a higher score than a negative one, ties counting half; NaN where one of
    the two is missing. scores [N], positive bool [N]."""
    from scipy.stats import rankdata

    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return math.nan
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


@dataclass(frozen=True, slots=True)
class Judged:
    """What a classifier is worth on a split.

    Attributes:
        probabilities: float64 [N, C].
        labels: [N].
    """

    probabilities: np.ndarray
    labels: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        """1 - p(class 0), [N]: how harmful each text is said to be."""
        return 1.0 - self.probabilities[:, 0]

    def facts(self) -> dict[str, float]:
        """`loss` (nats per row), `accuracy`, `macro_f1`, `auc` (one class against the rest, mean over classes), and
        `auc_binary` (class 0 against all others); an AUC that does not exist is left out."""
        classes, labels = self.probabilities.shape[1], self.labels
        guesses = np.argmax(self.probabilities, axis=1)
        count = lambda ids: np.bincount(ids, minlength=classes)
        chosen = self.probabilities[np.arange(len(labels)), labels]
        each = [auc(self.probabilities[:, k], labels == k) for k in range(classes)]
        found = {
            "loss": float(-np.mean(np.log(np.maximum(chosen, 1e-30)))),
            "accuracy": float(np.mean(guesses == labels)),
            "macro_f1": macro_f1(count(labels[guesses == labels]), count(guesses), count(labels)),
            "auc": float(np.mean(each)),
            "auc_binary": auc(self.scores, labels > 0),
            "rows": len(labels),
        }
        return {name: value for name, value in found.items() if not math.isnan(value)}


def prediction(session: Session) -> Callable[[Any, Any], jax.Array]:
    """`(model, batch [1, B, ...]) -> probabilities [B, C]`, compiled once."""

    def predict(model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        tokens, positions, segments = (batch[name][0] for name in ("tokens", "positions", "segments"))
        return jax.nn.softmax(model.logits(tokens, positions, segments), axis=-1)

    return jax.jit(predict, out_shardings=replicated(session.mesh))


def probabilities(
    session: Session,
    predict: Callable[[Any, Any], jax.Array],
    model: Any,
    rows: LabelledSplit,
    batch: int,
    batches: int = 0,
    asked: Asked = never,
) -> np.ndarray:
    """float64 [rows, C], `batch` rows at a time; `batches` 0 means all. Raises Interrupted when `asked` returns a
    signal."""
    source = LabelledEvaluation(rows, batch, session.run.data.sequence)
    count = min(batches or source.batches, source.batches)
    feed = session.feed(source, 1, batch)
    made = [jax.device_get(predict(model, one)) for one in until(asked, feed.iterate(0, count))]
    return np.concatenate(made).astype(np.float64)[: len(rows)]


@dataclass(frozen=True)
class Predictor:
    """A trained classifier with the way from texts to its probabilities.

    Attributes:
        model: the `jaxlm.model.classifier.Classifier`.
        vocabulary: one token per word, so token i of a text is its word i; words beyond `sequence` are cut.
        classes: names; class 0 is the harmless one.
        sequence: most words that are read.
        session: where the model lies.
    """

    model: Any
    vocabulary: Vocabulary
    classes: tuple[str, ...]
    sequence: int
    session: Session

    @cached_property
    def _predict(self) -> Callable[[Any, Any], jax.Array]:
        return prediction(self.session)

    def predict_proba(self, texts: Sequence[str | Sequence[str]], batch: int = 64) -> np.ndarray:
        """float64 [N, C] of texts, each one string or a list of lower-case words as the data set has them."""
        posts = [
            Post(id=str(i), words=words(text) if isinstance(text, str) else tuple(text), label=0, split="test")
            for i, text in enumerate(texts)
        ]
        if not posts:
            return np.zeros((0, len(self.classes)))
        rows = split_of_posts("test", posts, self.vocabulary, self.sequence)
        replicas = self.session.plan.devices
        size = -(-min(batch, max(len(posts), 1)) // replicas) * replicas
        with jax.set_mesh(self.session.mesh):
            return probabilities(self.session, self._predict, self.model, rows, size)


class ClassifierJudge:
    """Evaluates a classifier on a split of a labelled corpus; the same compiled program each time."""

    def __init__(self, session: Session, corpus: LabelledCorpus, split: str | None = None):
        self.session = session
        replicas = session.plan.replicas
        wanted = session.run.train.eval_batch or max(session.plan.batch.microbatch, 32)
        self.batch = -(-wanted // replicas) * replicas

        self.predict = prediction(session)
        found = corpus.held_out if split is None else corpus.split(split)
        self.split, self.rows = found.name, found

    def probabilities(self, model: Any, rows: LabelledSplit, batches: int = 0, asked: Asked = never) -> np.ndarray:
        """float64 [rows, classes]; `batches` 0 means all rows. Raises Interrupted when `asked` returns a signal."""
        return probabilities(self.session, self.predict, model, rows, self.batch, batches, asked)

    def __call__(self, model: Any, batches: int = 0, *, predictions: bool = False, asked: Asked = never) -> Judged:
        """What the model is worth on the first so many batches of the split, 0: all of it."""
        found = self.probabilities(model, self.rows, batches, asked)
        return Judged(found, self.rows.labels[: len(found)])

    def sentence(self, result: Mapping[str, Any]) -> str:
        return classified(result)


def classified(result: Mapping[str, Any]) -> str:
    """A result in a line."""
    return (
        f"macro-F1 {result['macro_f1']:.4f}, accuracy {result['accuracy']:.4f}, AUC {result.get('auc', math.nan):.4f}, "
        f"loss {result['loss']:.4f} (nats per row)"
    )


def classification_table(title: str, facts: Mapping[str, Any]) -> str:
    """What an evaluation found, one quantity per line; `facts` as in the JSON of `jaxlm eval`."""
    rows = [
        ("rows", f"{facts['rows']:,}", facts["licence"]),
        ("macro F1", f"{facts['macro_f1']:.4f}", "unweighted mean over classes"),
        ("accuracy", f"{facts['accuracy']:.4f}", ""),
        ("AUC", f"{facts.get('auc', math.nan):.4f}", "one class against the rest, mean"),
        (
            "AUC, class 0 or not",
            f"{facts.get('auc_binary', math.nan):.4f}",
            f"{facts['classes'][0]} against all others",
        ),
        ("loss", f"{facts['loss']:.4f}", "nats per row"),
    ]
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    lines = [f"  {name:<{widths[0]}}  {value:>{widths[1]}}  {note}".rstrip() for name, value, note in rows]
    return "\n".join([title, *lines])

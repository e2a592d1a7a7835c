"""Every way to score the words of texts, by name and with one signature.

    scores = METHODS[name](subject, texts, classes)      # one float64 [W] per text; higher means more

`classes` int [N] are the classes explained, as a rule those predicted. What a method needs beside (training texts, a
library of the extra `explain`) it says by an exception that names it. `kind` keeps apart what may not be mixed in one
ranking: what learned from people's marks, what knows only the training labels, and controls that must fail.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

from jaxlm.explain import gradients, libraries, relevance, walks
from jaxlm.explain.subject import Subject, Words
from jaxlm.explain.texts import by_word
from jaxlm.tree import from_named, named_leaves

Kind = Literal["ours", "baseline", "floor", "control", "supervised"]
Scores = list[np.ndarray]
Call = Callable[[Subject, Sequence[Words], np.ndarray], Scores]


@dataclass(frozen=True, slots=True)
class Method:
    """A way to score words; `slow` ones ask the model hundreds of times per text."""

    name: str
    kind: Kind
    call: Call
    slow: bool = False

    def __call__(self, subject: Subject, texts: Sequence[Words], classes: np.ndarray) -> Scores:
        return self.call(subject, texts, classes)


def _jitted(score: Callable[..., jax.Array], **options: object) -> Call:
    return lambda subject, texts, classes: subject.explain(score, texts, classes, **options)


def _from_nothing(score: Callable[..., jax.Array], **options: object) -> Call:
    """A score that starts from a text without words, by the model's own way of hiding them."""

    def call(subject: Subject, texts: Sequence[Words], classes: np.ndarray) -> Scores:
        mask = -1 if subject.encoder.mask is None else subject.encoder.mask
        return subject.explain(score, texts, classes, mask=mask, **options)

    return call


grounded = _from_nothing(relevance.grounded)


def _each(score: Callable[..., np.ndarray], **options: object) -> Call:
    """A library's function of one text."""
    return lambda subject, texts, classes: [
        score(subject, words, int(label), **options) for words, label in zip(texts, classes, strict=True)
    ]


def _flow(subject: Subject, texts: Sequence[Words], classes: np.ndarray) -> Scores:
    found: Scores = [np.zeros(0)] * len(texts)
    for places, batch in subject.encoder.batches(texts, subject.rows):
        given = {name: batch[name] for name in ("tokens", "positions", "segments")}
        mixed, pooled = jax.tree.map(np.asarray, _mixed(subject.model, given))
        for row, place in enumerate(places):
            length = int(batch["segments"][row].sum())
            scores = walks.flow(mixed[:, row, :length, :length], pooled[row, :length])
            found[place] = by_word(scores, batch["owners"][row, :length], len(texts[place]))
    return found


_mixed = jax.jit(walks.mixed_maps)


def _random(subject: Subject, texts: Sequence[Words], classes: np.ndarray) -> Scores:
    random = np.random.default_rng(0)
    return [random.random(len(words)) for words in texts]


def _all(subject: Subject, texts: Sequence[Words], classes: np.ndarray) -> Scores:
    return [np.ones(len(words)) for words in texts]


def randomised(subject: Subject, seed: int = 0) -> Subject:
    """The same classifier with nothing learned left in it (https://arxiv.org/abs/1810.03292): every matrix drawn anew
    at its own spread, every vector (gains, biases, the query of the pooling) with its entries in another order."""
    random = np.random.default_rng(seed)

    def drawn(leaf: jax.Array) -> jax.Array:
        old = np.asarray(leaf)
        new = random.standard_normal(leaf.shape) * float(np.std(old)) if leaf.ndim > 1 else random.permuted(old)
        return jax.device_put(new.astype(leaf.dtype), leaf.sharding)

    weights = {name: drawn(leaf) for name, leaf in named_leaves(subject.model).items()}
    return Subject(from_named(subject.model, weights), subject.encoder, subject.classes, subject.rows)


def _randomised(subject: Subject, texts: Sequence[Words], classes: np.ndarray) -> Scores:
    return grounded(randomised(subject), texts, classes)


NEIGHBOURS = (0.3, 0.6, 1.0, 0.6, 0.3)


def smoothed(scores: np.ndarray, weights: Sequence[float] = NEIGHBOURS) -> np.ndarray:
    """Each word with a share of its neighbours' support, what speaks against the class cut: people mark runs of words,
    not single ones."""
    scores, half = np.maximum(scores, 0.0), len(weights) // 2
    return np.convolve(np.pad(scores, half), weights, "valid") if len(scores) else scores


OURS = Method("ours", "ours", lambda s, t, c: [smoothed(x) for x in grounded(s, t, c)])

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        OURS,
        Method("ours, last layer", "ours", _jitted(relevance.grounded_last)),
        Method("ours, not smoothed", "ours", grounded),
        Method("paper, identity", "baseline", _jitted(relevance.paper)),
        Method("paper, tanh", "baseline", _jitted(relevance.paper, psi="tanh")),
        Method("vanilla attention", "baseline", _jitted(relevance.vanilla)),
        Method("rollout", "baseline", _jitted(walks.rollout)),
        Method("flow", "baseline", _flow, slow=True),
        Method("Grad-CAM", "baseline", _jitted(gradients.grad_cam)),
        Method("gradient norm (LIT)", "baseline", _jitted(gradients.gradient_norm)),
        Method("gradient x input", "baseline", _jitted(gradients.gradient_input)),
        Method("integrated gradients", "baseline", _from_nothing(gradients.integrated)),
        Method("attention x gradient", "baseline", _jitted(gradients.attention_gradient)),
        Method("attention x gradient, rolled out", "baseline", _jitted(gradients.attention_gradient_rollout)),
        Method("LIME", "baseline", _each(libraries.lime), slow=True),
        Method("SHAP", "baseline", _each(libraries.shap), slow=True),
        Method("Anchors", "baseline", _each(libraries.anchor_scores), slow=True),
        Method("random", "floor", _random),
        Method("select all", "floor", _all),
        Method("paper, literal", "control", _jitted(relevance.paper_literal)),
        Method("shuffled attention", "control", _jitted(relevance.shuffled)),
        Method("randomised weights", "control", _randomised),
    )
}
"""By name, in the order of the tables."""


def word_weights(weights: Mapping[str, float], *, smooth: bool = False) -> Method:
    """The floor that knows training labels and no model: the weight of each word in a linear bag-of-words classifier
    (`jaxlm.explain.bags`)."""

    def call(subject: Subject, texts: Sequence[Words], classes: np.ndarray) -> Scores:
        found = [np.array([weights.get(word, 0.0) for word in words]) for words in texts]
        return [smoothed(s) for s in found] if smooth else found

    return Method("bag of words, smoothed" if smooth else "bag of words", "floor", call)

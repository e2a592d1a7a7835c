"""LIME, SHAP and Anchors by their own libraries, wrapped around our model (extra `explain`).

They ask the model about texts with words taken out, hundreds to thousands of times per text; every question is a batch
of ours. Words are joined by blanks and split at blanks, so that each library perturbs exactly our words.
"""

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from jaxlm.decode import ConfigError
from jaxlm.explain.subject import Subject, Words, of_class


def library(name: str) -> ModuleType:
    """A module of the extra `explain`; ConfigError naming the extra where it is absent."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they do to matplotlib and IPython is not ours
            return importlib.import_module(name)
    except ImportError as error:
        package = {"anchor": "anchor-exp"}.get(name.split(".")[0], name.split(".")[0])
        raise ConfigError(f"{package} is not installed ({error}): pip install 'jaxlm[explain]'") from None


@dataclass(frozen=True, slots=True)
class Asked:
    """Our model as a function of strings: the probabilities of all else and of the class explained, [N, 2]."""

    subject: Subject
    label: int

    def __call__(self, texts: Any) -> np.ndarray:
        words = [[w for w in str(t).split(" ") if w] for t in texts]
        found = of_class(self.subject.probabilities(words), self.label)
        return np.stack([1.0 - found, found], axis=1)


def lime(subject: Subject, words: Words, label: int, *, samples: int = 1000, seed: int = 0) -> np.ndarray:
    """Weights of LIME's local linear model, float64 [W]."""
    text = library("lime.lime_text")
    explainer = text.LimeTextExplainer(
        class_names=["other", "explained"], split_expression=lambda s: s.split(" "), bow=False, mask_string="",
        random_state=seed,
    )  # fmt: skip
    found = explainer.explain_instance(
        " ".join(words), Asked(subject, label), labels=(1,), num_features=len(words), num_samples=samples
    )
    scores = np.zeros(len(words))
    for place, weight in found.local_exp[1]:
        scores[place] = weight
    return scores


def shap(subject: Subject, words: Words, label: int, *, samples: int = 500, seed: int = 0) -> np.ndarray:
    """Shapley values of words by SHAP's kernel explainer, absent words being deleted, float64 [W]."""
    module = library("shap")
    asked = Asked(subject, label)

    def ask(masks: np.ndarray) -> np.ndarray:
        return asked([" ".join(w for w, keep in zip(words, row, strict=True) if keep) for row in masks > 0.5])[:, 1]

    explainer = module.KernelExplainer(ask, np.zeros((1, len(words))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = np.random.get_state()  # noqa: NPY002  (the library draws from the global generator)
        np.random.seed(seed)  # noqa: NPY002
        try:
            values = explainer.shap_values(np.ones((1, len(words))), nsamples=samples, l1_reg=0, silent=True)
        finally:
            np.random.set_state(state)  # noqa: NPY002
    return np.asarray(values, np.float64).reshape(len(words))


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """What Anchors says of one text: words that hold the prediction, and how well."""

    places: tuple[int, ...]
    precision: float
    coverage: float


def anchors(
    subject: Subject,
    words: Words,
    label: int,
    *,
    threshold: float = 0.95,
    batch: int = 64,
    most: int = 4,
    seed: int = 0,
) -> Anchor:
    """The anchor of a text by anchor-exp's beam search; words are taken out at random, as its UNK distribution does."""
    base = library("anchor.anchor_base")
    random, asked = np.random.default_rng(seed), Asked(subject, label)
    says = int(asked([" ".join(words)]).argmax())

    def sample(anchor: Sequence[int], count: int, compute_labels: bool = True) -> Any:
        kept = random.random((count, len(words))) < 0.5
        kept[:, list(anchor)] = True
        texts = np.array([" ".join(w for w, k in zip(words, row, strict=True) if k) for row in kept], dtype=object)
        data = kept.astype(int)
        labels = (asked(texts).argmax(-1) == says).astype(int) if compute_labels else np.array([])
        return texts.reshape(-1, 1), data, labels

    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        found = base.AnchorBaseBeam.anchor_beam(
            sample, delta=0.1, epsilon=0.15, batch_size=batch, desired_confidence=threshold, max_anchor_size=most,
            beam_size=1, stop_on_first=True, coverage_samples=1000,
        )  # fmt: skip
    finally:
        np.random.set_state(state)  # noqa: NPY002
    last = lambda name: float(np.ravel(found[name])[-1]) if len(np.ravel(found[name])) else float("nan")
    places = tuple(int(place) for place in found["feature"])
    return Anchor(places=places, precision=last("mean"), coverage=last("coverage"))


def anchor_scores(subject: Subject, words: Words, label: int, *, seed: int = 0) -> np.ndarray:
    """1 for the words of the anchor, less for each later one: the order in which the search took them."""
    scores = np.zeros(len(words))
    for order, place in enumerate(anchors(subject, words, label, seed=seed).places):
        scores[place] = 1.0 - 0.01 * order
    return scores

"""The classifier under explanation: what it says of texts, and of texts with words taken out.

Axes: B rows, T tokens, C classes, W words.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlm.explain.texts import Encoder, by_word, split
from jaxlm.model.classifier import Classifier

ROWS = 32
"""Rows of a batch: one shape for few compilations."""

Words = Sequence[str]
TokenScores = Callable[..., Array]
"""`f(model, batch, classes_B, **options)` -> float32 [B, T]."""


@dataclass(frozen=True)
class Subject:
    """A trained classifier with the way from words to its tokens.

    Attributes:
        model: the classifier; over several devices where it lies on them (call inside `jax.set_mesh`).
        encoder: words to tokens.
        classes: the names of its classes.
        rows: rows of a batch.
    """

    model: Classifier
    encoder: Encoder
    classes: tuple[str, ...]
    rows: int = ROWS

    def probabilities(self, texts: Sequence[Words], kept: Sequence[np.ndarray] | None = None) -> np.ndarray:
        """float64 [N, C]. `kept[i]` bool [W]: the words that stay; the others become the encoder's mask, or, where the
        model knows none, are hidden as padding is: nobody attends to them, they are not pooled, and the positions of
        the rest do not move."""
        found = np.zeros((len(texts), len(self.classes)))
        for places, batch in self.encoder.batches(texts, self.rows):
            if kept is not None:
                for row, place in enumerate(places):
                    owners = batch["owners"][row]
                    hidden = (owners >= 0) & ~np.append(kept[place], True)[owners]
                    if self.encoder.mask is None:
                        batch["segments"][row, hidden] = 0
                    else:
                        batch["tokens"][row, hidden] = self.encoder.mask
            found[places] = np.asarray(_probabilities(self.model, _tensors(batch)))[: len(places)]
        return found

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """float64 [N, C] of free texts, split into words as `texts.split` does."""
        return self.probabilities([split(text) for text in texts])

    def predict(self, texts: Sequence[Words]) -> np.ndarray:
        """The most likely class of each, int [N]."""
        return self.probabilities(texts).argmax(-1)

    def explain(
        self, score: TokenScores, texts: Sequence[Words], classes: np.ndarray | None = None, **options: Any
    ) -> list[np.ndarray]:
        """One float64 [W] per text: the scores of its tokens added up by word.

        `classes` int [N] says for which class, NOTHING or HARMFUL; default the one predicted. `options` are static for
        jit.
        """
        found: list[np.ndarray] = [np.zeros(0)] * len(texts)
        call = _jitted(score, tuple(sorted(options.items())))
        for places, batch in self.encoder.batches(texts, self.rows):
            # Rows beyond the texts ask for class 0: NOTHING costs a pass more to settle.
            wanted = np.full(self.rows, NOTHING if classes is None else 0, np.int32)
            if classes is not None:
                wanted[: len(places)] = classes[places]
            scores_BT = np.asarray(call(self.model, _tensors(batch), wanted))
            for row, place in enumerate(places):
                found[place] = by_word(scores_BT[row], batch["owners"][row], len(texts[place]))
        return found


NOTHING, HARMFUL = -1, -2
"""In place of a class: the one that the model predicts; all but class 0, which by convention is the harmless one.
People who mark offensive and hateful posts alike mark why they are no normal ones."""


def _tensors(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: batch[name] for name in ("tokens", "positions", "segments")}


@functools.cache
def _jitted(score: TokenScores, options: tuple[tuple[str, Any], ...]) -> Callable[..., Array]:
    return jax.jit(functools.partial(score, **dict(options)))


@jax.jit
def _probabilities(model: Classifier, batch: dict[str, Any]) -> jax.Array:
    return jax.nn.softmax(model.logits(batch["tokens"], batch["positions"], batch["segments"]), axis=-1)


def chosen(logits_BC: Float[Array, "B C"], classes_B: Int[Array, " B"]) -> Float[Array, "B C"]:
    """1 for the classes asked for: one of them, the most likely where NOTHING is, all but class 0 where HARMFUL is."""
    wanted_B = jnp.where(classes_B < 0, jnp.argmax(logits_BC, axis=-1), classes_B)
    one_BC = jax.nn.one_hot(wanted_B, logits_BC.shape[-1], dtype=logits_BC.dtype)
    harmful_C = (jnp.arange(logits_BC.shape[-1]) > 0).astype(logits_BC.dtype)
    return jnp.where((classes_B == HARMFUL)[:, None], harmful_C[None, :], one_BC)


def log_odds(logits_BC: Float[Array, "B C"], members_BC: Float[Array, "B C"]) -> Float[Array, " B"]:
    """The log odds of some classes against all others: it does not flatten where the probability nears 1, and moving
    all logits alike changes nothing, as it does with a single logit."""
    among = lambda inside_BC: jax.nn.logsumexp(jnp.where(inside_BC, logits_BC, -jnp.inf), axis=-1)
    return among(members_BC > 0) - among(members_BC == 0)


def of_class(probabilities: np.ndarray, classes: np.ndarray | int) -> np.ndarray:
    """float64 [N]: the probability of the class asked for, in each row of [N, C]; of all but class 0 for HARMFUL, of
    the most likely for NOTHING."""
    classes = np.broadcast_to(classes, len(probabilities))
    wanted = np.where(classes < 0, probabilities.argmax(-1), classes)
    one = probabilities[np.arange(len(probabilities)), wanted]
    return np.where(classes == HARMFUL, 1.0 - probabilities[:, 0], one)

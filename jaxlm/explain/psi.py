"""A psi learned from the words that people marked: supervised, so it stands in a row of its own wherever it is shown.

Eq. 15 with psi(alpha) grown to psi of everything that the classifier knows of a position: the attention it receives by
head, the gradient of the class on that attention, its representation, and the words around it. The classifier itself is
not changed: nothing is learned but psi.

Axes: B rows, T position, N heads, D embed, F features, E width, V vocabulary, K offsets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxlm.explain.fidelity import auprc
from jaxlm.explain.relevance import Batch, every_layer
from jaxlm.explain.subject import HARMFUL, ROWS, Subject
from jaxlm.explain.texts import Example, by_word
from jaxlm.model.classifier import Classifier
from jaxlm.model.mlp import dropout
from jaxlm.model.param import constant, param


def features(model: Classifier, batch: Batch, classes_B: Int[Array, " B"]) -> Float[Array, "B T F"]:
    """Of each position: attention received, and what of it speaks for the class, by layer and head; the class's
    gradient along its embedding; the share that the classifier pools; its representation. No gradient flows back."""
    found = every_layer(model, batch, classes_B)
    length_B11 = jnp.sum(batch["segments"] > 0, axis=-1).astype(jnp.float32)[:, None, None]
    L, B, N, T, _ = found.maps.shape
    heads = lambda x_LBNTS: jnp.sum(x_LBNTS, axis=3).transpose(1, 3, 0, 2).reshape(B, T, L * N)
    parts = [
        heads(found.maps),
        heads(found.maps * jax.nn.relu(found.dmaps)) * length_B11,
        jnp.sum((found.x * found.dx).astype(jnp.float32), axis=-1, keepdims=True) * length_B11,
        found.pooled[:, :, None] * length_B11,
        found.out.astype(jnp.float32),
    ]
    return jax.lax.stop_gradient(jnp.concatenate(parts, axis=-1))


class LearnedPsi(nnx.Module):
    """`psi(features, tokens)`: exponents of eq. 15, float32 [B, T]; their softmax over a row is the relevance, their
    sigmoid the probability that a person marks the word."""

    def __init__(
        self, count: int, vocab: int, *, width: int = 64, window: int = 2, rate: float = 0.3, key: PRNGKeyArray
    ):
        kt, kf, km, ko = jax.random.split(key, 4)
        offsets = 2 * window + 1
        self.window, self.rate = window, rate
        self.table = param(kt, (vocab, width), ("vocab", "embed"), std=0.1)
        self.near = constant(0.0, (vocab, offsets), ("vocab", "norm"))
        self.into = param(kf, (count, width), ("norm", "embed"), std=count**-0.5)
        self.mixed = param(km, (offsets, 2 * width, width), ("norm", "mlp", "embed"), std=(2 * width * offsets) ** -0.5)
        self.out = param(ko, (width,), ("embed",), std=width**-0.5)
        self.bias = constant(0.0, (), ())

    def __call__(
        self,
        features_BTF: Float[Array, "B T F"],
        tokens_BT: Int[Array, "B T"],
        segments_BT: Int[Array, "B T"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B T"]:
        kz, kh = (None, None) if key is None else jax.random.split(key)
        real_BT1 = (segments_BT > 0).astype(jnp.float32)[:, :, None]
        z_BTE = jnp.concatenate([self.table[...][tokens_BT], jnp.tanh(features_BTF @ self.into[...])], axis=-1)
        z_BTE, near_BTK = dropout(z_BTE, self.rate, kz) * real_BT1, self.near[...][tokens_BT] * real_BT1
        offsets = range(-self.window, self.window + 1)
        mixed = [_moved(z_BTE, k) @ self.mixed[...][i] for i, k in enumerate(offsets)]
        hidden_BTE = dropout(jax.nn.relu(sum(mixed[1:], mixed[0])), self.rate, kh)
        words = [_moved(near_BTK[:, :, i : i + 1], k)[:, :, 0] for i, k in enumerate(offsets)]
        return hidden_BTE @ self.out[...] + sum(words[1:], words[0]) + self.bias[...]


def _moved(x_BTE: jax.Array, by: int) -> jax.Array:
    """What stands `by` positions further on; zeros beyond the ends."""
    length = x_BTE.shape[1]
    padded = jnp.pad(x_BTE, ((0, 0), (max(0, -by), max(0, by)), (0, 0)))
    return jax.lax.slice_in_dim(padded, max(0, by), max(0, by) + length, axis=1)


def learned(model: Classifier, batch: Batch, classes_B: Int[Array, " B"], psi: LearnedPsi) -> Float[Array, "B T"]:
    """Log odds that a person marks each position; 0 on padding."""
    exponents_BT = psi(features(model, batch, classes_B), batch["tokens"], batch["segments"])
    return exponents_BT * (batch["segments"] > 0)


_learned = jax.jit(learned)


@dataclass(frozen=True)
class Supervised:
    """A learned psi with its classifier."""

    subject: Subject
    psi: LearnedPsi

    def scores(self, texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Log odds that a person marks each word, the mean over its tokens; float64 [W] per text. Words beyond the
        longest row get the lowest of the row."""
        found: list[np.ndarray] = [np.zeros(0)] * len(texts)
        none = np.full(self.subject.rows, HARMFUL, np.int32)
        for places, batch in self.subject.encoder.batches(texts, self.subject.rows):
            given = {name: batch[name] for name in ("tokens", "positions", "segments")}
            exponents = np.asarray(_learned(self.subject.model, given, none, self.psi))
            for row, place in enumerate(places):
                owners, words = batch["owners"][row], len(texts[place])
                many = by_word(np.ones(len(owners)), owners, words)
                mean = by_word(exponents[row], owners, words) / np.maximum(many, 1)
                found[place] = np.where(many > 0, mean, mean.min(initial=0.0) - 1.0)
        return found


def learn(
    subject: Subject,
    train: Sequence[Example],
    valid: Sequence[Example],
    *,
    epochs: int = 8,
    rate: float = 3e-3,
    seed: int = 0,
    window: int = 2,
    say: Any = lambda _: None,
) -> Supervised:
    """Learns psi from rationales by binary cross entropy per token, and keeps the epoch with the best AUPRC on `valid`.

    Raises ValueError where no training text has a rationale.
    """
    train = [e for e in train if e.rationale is not None]
    valid = [e for e in valid if e.rationale is not None and e.rationale.any()]
    if not train or not valid:
        raise ValueError("a supervised psi needs training and validation texts with rationales, and there are none")
    gold = [e.rationale for e in valid if e.rationale is not None]
    prepared = [_prepared(subject, places, batch, train) for places, batch in _cut(subject, train)]
    psi = LearnedPsi(
        prepared[0]["features"].shape[-1], subject.model.config.padded_vocab, window=window, key=jax.random.key(seed)
    )
    tx = optax.adamw(optax.cosine_decay_schedule(rate, epochs * len(prepared)), weight_decay=0.05)
    state: Any = tx.init(psi)  # pyright: ignore[reportArgumentType]

    def loss(psi: LearnedPsi, given: Mapping[str, jax.Array], key: PRNGKeyArray) -> jax.Array:
        exponents_BT = psi(given["features"], given["tokens"], given["segments"], key)
        each_BT = optax.sigmoid_binary_cross_entropy(exponents_BT, given["marks"])
        return jnp.sum(each_BT * given["counts"]) / jnp.maximum(jnp.sum(given["counts"]), 1.0)

    @jax.jit
    def step(psi: Any, state: Any, given: Mapping[str, jax.Array], key: PRNGKeyArray) -> tuple[Any, Any]:
        updates, state = tx.update(jax.grad(loss)(psi, given, key), state, psi)
        return optax.apply_updates(psi, updates), state

    random, best, number = np.random.default_rng(seed), (-1.0, psi), 0
    for epoch in range(epochs):
        for at in random.permutation(len(prepared)):
            psi, state = step(psi, state, prepared[at], jax.random.fold_in(jax.random.key(seed), number))
            number += 1
        scores = Supervised(subject, psi).scores([e.words for e in valid])
        value = float(np.mean([auprc(s, g) for s, g in zip(scores, gold, strict=True)]))
        say(f"psi, epoch {epoch + 1} of {epochs}: AUPRC {value:.4f} on validation")
        best = max(best, (value, psi), key=lambda pair: pair[0])
    return Supervised(subject, best[1])


def _cut(subject: Subject, train: Sequence[Example]) -> Any:
    return subject.encoder.batches([e.words for e in train], ROWS)


@jax.jit
def _features(model: Classifier, batch: Batch, classes_B: jax.Array) -> jax.Array:
    return features(model, batch, classes_B)


def _prepared(
    subject: Subject, places: np.ndarray, batch: dict[str, np.ndarray], train: Sequence[Example]
) -> dict[str, Any]:
    """Features once and for all, what people marked, and which tokens count."""
    given = {name: batch[name] for name in ("tokens", "positions", "segments")}
    marks, counts = np.zeros(batch["tokens"].shape, np.float32), np.zeros(batch["tokens"].shape, np.float32)
    for row, place in enumerate(places):
        owners, gold = batch["owners"][row], train[place].rationale
        assert gold is not None
        ours = owners >= 0
        marks[row, ours], counts[row, ours] = gold[owners[ours]], 1.0
    found = _features(subject.model, given, np.full(ROWS, HARMFUL, np.int32))
    return {"features": np.asarray(found), "marks": marks, "counts": counts, **given}

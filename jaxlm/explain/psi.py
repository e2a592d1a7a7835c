"""A psi learned from the words that people marked: supervised, so it stands in a row of its own wherever it is shown.

Eq. 15 with psi(alpha) grown to psi of everything that the classifier knows of a position: the attention it receives by
head, the gradient of the class on that attention, its representation, and the words around it. The classifier itself is
not changed: nothing is learned but psi.

Axes: B rows, T position, N heads, D embed, F features, E width, V vocabulary, K offsets.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from jaxlm.explain.subject import HARMFUL, Subject
from jaxlm.explain.texts import Example, by_word
from jaxlm.model.classifier import Classifier
from jaxlm.model.mlp import dropout
from jaxlm.model.param import constant, param


def features(model: Classifier, batch: Batch, classes_B: Int[Array, " B"], mask: int = -1) -> Float[Array, "B T F"]:
    """Of each position: attention received, and what of it speaks for the class, by layer and head, and the class's
    gradient along what sets its embedding apart from nothing, each at the text and halfway from nothing; the share that
    the classifier pools; its representation. No gradient flows back."""
    whole = every_layer(model, batch, classes_B)
    half = every_layer(model, batch, classes_B, mask=mask, at=0.5)
    length_B11 = jnp.sum(batch["segments"] > 0, axis=-1).astype(jnp.float32)[:, None, None]
    L, B, N, T, _ = whole.maps.shape
    heads = lambda x_LBNTS: jnp.sum(x_LBNTS, axis=3).transpose(1, 3, 0, 2).reshape(B, T, L * N)
    parts = [heads(whole.maps), whole.pooled[:, :, None] * length_B11, whole.out.astype(jnp.float32)]
    for found in (whole, half):
        parts.append(heads(found.maps * jax.nn.relu(found.dmaps)) * length_B11)
        parts.append(jnp.sum((half.x * found.dx).astype(jnp.float32), axis=-1, keepdims=True) * length_B11)
        parts.append(found.dheard[:, :, None])
    return jax.lax.stop_gradient(jnp.concatenate(parts, axis=-1))


class LearnedPsi(nnx.Module):
    """`psi(features, tokens)`: exponents of eq. 15, float32 [B, T]; their softmax over a row is the relevance, their
    sigmoid the probability that a person marks the word."""

    def __init__(
        self, count: int, vocab: int, *, width: int = 64, window: int = 3, rate: float = 0.3, key: PRNGKeyArray
    ):
        kt, kf, km, kr, ko = jax.random.split(key, 5)
        offsets = 2 * window + 1
        self.window, self.rate = window, rate
        self.table = param(kt, (vocab, width), ("vocab", "embed"), std=0.1)
        self.near = constant(0.0, (vocab, offsets), ("vocab", "norm"))
        self.into = param(kf, (count, width), ("norm", "embed"), std=count**-0.5)
        self.mixed = param(km, (offsets, 2 * width, width), ("norm", "mlp", "embed"), std=(2 * width * offsets) ** -0.5)
        self.row = param(kr, (4 * width, width), ("mlp", "embed"), std=(4 * width) ** -0.5)
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
        # How much people mark depends on the whole text: its mean and its highest entries speak to every position.
        mean_BE = jnp.sum(z_BTE, axis=1) / jnp.maximum(jnp.sum(real_BT1, axis=1), 1.0)
        row_BE = jnp.concatenate([mean_BE, jnp.max(z_BTE, axis=1)], axis=-1) @ self.row[...]
        hidden_BTE = dropout(jax.nn.relu(sum(mixed[1:], mixed[0]) + row_BE[:, None, :]), self.rate, kh)
        words = [_moved(near_BTK[:, :, i : i + 1], k)[:, :, 0] for i, k in enumerate(offsets)]
        return hidden_BTE @ self.out[...] + sum(words[1:], words[0]) + self.bias[...]


def _moved(x_BTE: jax.Array, by: int) -> jax.Array:
    """What stands `by` positions further on; zeros beyond the ends."""
    length = x_BTE.shape[1]
    padded = jnp.pad(x_BTE, ((0, 0), (max(0, -by), max(0, by)), (0, 0)))
    return jax.lax.slice_in_dim(padded, max(0, by), max(0, by) + length, axis=1)


@dataclass(frozen=True)
class Supervised:
    """Learned psi, a few by different seeds, with their classifier. `mean` and `spread` float32 [F] put features on one
    scale."""

    subject: Subject
    members: tuple[LearnedPsi, ...]
    mean: np.ndarray
    spread: np.ndarray

    def scores(self, texts: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Log odds that a person marks each word, the mean over its tokens and over the members; float64 [W] per text.
        Words beyond the longest row get the lowest of the row."""
        return self.scores_of(texts, (self.prepared(*cut) for cut in _cut(self.subject, texts)))

    def prepared(self, places: np.ndarray, batch: dict[str, np.ndarray]) -> "Prepared":
        found = _prepared(self.subject, places, batch)
        return dataclasses.replace(found, features=(found.features - self.mean) / self.spread)

    def scores_of(self, texts: Sequence[Sequence[str]], batches: Iterable["Prepared"]) -> list[np.ndarray]:
        """The same, of texts whose features are there already."""
        found: list[np.ndarray] = [np.zeros(0)] * len(texts)
        for each in batches:
            exponents = np.mean([_exponents(psi, each.features, each.given) for psi in self.members], axis=0)
            for row, place in enumerate(each.places):
                owners, words = each.owners[row], len(texts[place])
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
    members: int = 3,
    rate: float = 3e-3,
    seed: int = 0,
    window: int = 3,
    say: Any = lambda _: None,
) -> Supervised:
    """Learns psi from rationales by binary cross entropy per token; each member keeps the epoch with the best AUPRC on
    `valid`.

    Raises ValueError where no training text has a rationale.
    """
    train = [e for e in train if e.rationale is not None]
    valid = [e for e in valid if e.rationale is not None and e.rationale.any()]
    if not train or not valid:
        raise ValueError("a supervised psi needs training and validation texts with rationales, and there are none")
    texts = [e.words for e in train]
    prepared = [_prepared(subject, *cut) for cut in _cut(subject, texts)]
    mean, spread = _scale(prepared)
    prepared = [dataclasses.replace(each, features=(each.features - mean) / spread) for each in prepared]
    marked = [_marked(each, train) for each in prepared]
    kept = Supervised(subject, (), mean, spread)
    judged = Judged(valid, [kept.prepared(*cut) for cut in _cut(subject, [e.words for e in valid])])
    tx = optax.adamw(optax.cosine_decay_schedule(rate, epochs * len(prepared)), weight_decay=0.05)
    step = _step(tx)
    for number in range(members):
        say(f"psi, member {number + 1} of {members}")
        psi = _member(kept, marked, judged, tx, step, epochs=epochs, seed=seed + number, window=window, say=say)
        kept = dataclasses.replace(kept, members=(*kept.members, psi))
    return kept


@dataclass(frozen=True)
class Judged:
    """Validation texts, prepared once."""

    examples: Sequence[Example]
    batches: Sequence["Prepared"]

    def auprc(self, found: Supervised) -> float:
        scores = found.scores_of([e.words for e in self.examples], self.batches)
        pairs = zip(scores, self.examples, strict=True)
        return float(np.mean([auprc(s, e.rationale) for s, e in pairs if e.rationale is not None]))


def _member(
    without: Supervised,
    marked: Sequence[dict[str, Any]],
    judged: Judged,
    tx: optax.GradientTransformation,
    step: Callable[..., tuple[Any, Any]],
    *,
    epochs: int,
    seed: int,
    window: int,
    say: Any,
) -> LearnedPsi:
    vocab = without.subject.model.config.padded_vocab
    psi = LearnedPsi(marked[0]["features"].shape[-1], vocab, window=window, key=jax.random.key(seed))
    state: Any = tx.init(psi)  # pyright: ignore[reportArgumentType]
    random, best, number = np.random.default_rng(seed), (-1.0, psi), 0
    for epoch in range(epochs):
        for at in random.permutation(len(marked)):
            psi, state = step(psi, state, marked[at], jax.random.fold_in(jax.random.key(seed), number))
            number += 1
        value = judged.auprc(dataclasses.replace(without, members=(psi,)))
        say(f"psi, epoch {epoch + 1} of {epochs}: AUPRC {value:.4f} on validation")
        best = max(best, (value, psi), key=lambda pair: pair[0])
    return best[1]


def _step(tx: optax.GradientTransformation) -> Callable[..., tuple[Any, Any]]:
    """One step of training, compiled once for all members."""

    def loss(psi: LearnedPsi, given: Mapping[str, jax.Array], key: PRNGKeyArray) -> jax.Array:
        exponents_BT = psi(given["features"], given["tokens"], given["segments"], key)
        each_BT = optax.sigmoid_binary_cross_entropy(exponents_BT, given["marks"])
        return jnp.sum(each_BT * given["counts"]) / jnp.maximum(jnp.sum(given["counts"]), 1.0)

    @jax.jit
    def step(psi: Any, state: Any, given: Mapping[str, jax.Array], key: PRNGKeyArray) -> tuple[Any, Any]:
        updates, state = tx.update(jax.grad(loss)(psi, given, key), state, psi)
        return optax.apply_updates(psi, updates), state

    return step


@dataclass(frozen=True)
class Prepared:
    """A batch with its features: the places of its texts, the words that own its tokens, and what the model reads."""

    places: np.ndarray
    owners: np.ndarray
    given: dict[str, np.ndarray]
    features: np.ndarray


def _cut(subject: Subject, texts: Sequence[Sequence[str]]) -> Any:
    return subject.encoder.batches(texts, subject.rows)


def _prepared(subject: Subject, places: np.ndarray, batch: dict[str, np.ndarray]) -> Prepared:
    given = {name: batch[name] for name in ("tokens", "positions", "segments")}
    mask = -1 if subject.encoder.mask is None else subject.encoder.mask
    found = _features(subject.model, given, np.full(subject.rows, HARMFUL, np.int32), mask)
    return Prepared(places, batch["owners"], given, np.asarray(found))


_features = jax.jit(features, static_argnums=3)


@jax.jit
def _exponents(psi: LearnedPsi, features_BTF: jax.Array, batch: Batch) -> jax.Array:
    return psi(features_BTF, batch["tokens"], batch["segments"]) * (batch["segments"] > 0)


def _scale(prepared: Sequence[Prepared]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each feature over the tokens of words, float32 [F]."""
    found = np.concatenate([each.features[each.owners >= 0] for each in prepared])
    return found.mean(0), found.std(0) + 1e-6


def _marked(batch: Prepared, train: Sequence[Example]) -> dict[str, Any]:
    """What a step reads: features, what people marked, and which tokens count."""
    marks = np.zeros(batch.owners.shape, np.float32)
    for row, place in enumerate(batch.places):
        owners, gold = batch.owners[row], train[place].rationale
        assert gold is not None
        marks[row, owners >= 0] = gold[owners[owners >= 0]]
    counts = (batch.owners >= 0).astype(np.float32)
    return {"features": batch.features, "marks": marks, "counts": counts, **batch.given}

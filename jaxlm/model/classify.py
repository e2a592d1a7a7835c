"""Learning to classify: what a user may say about it, and the objective.

Axes: B batch (one document per row), T position, D embed, C classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxlm.data.labelled.corpus import Dataset
from jaxlm.data.labelled.vocabulary import MASK
from jaxlm.model.classifier import Classifier, Pooling
from jaxlm.model.loss import Sums
from jaxlm.model.ops import pick


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyConfig:
    """A run that learns to classify labelled texts.

    Attributes:
        dataset: what lies at data.path: `hatexplain` (hatexplain.jsonl) or `civil_comments` (the CSV of Kaggle's Jigsaw
            Unintended Bias, or a folder prepared by TensorFlow Datasets).
        pooling: one vector of a text: the `mean` of its positions, the `first` or `last`, or learned `attention`.
        dropout: probability of dropping an entry of that vector during training.
        word_dropout: probability of hiding a word during training; hidden words are a token of their own.
        smoothing: share of the target spread evenly over all classes.
        vectors: begin with word vectors learned from the training texts alone, without their labels.
        spelling: how alike (0 to 1) an unknown word and a known one must be spelled for the one to be read as the
            other; 0: never. Stretched, misspelt and joined words are common in posts.
        wide: buckets of word pairs of a bag of words and pairs beside the encoder, fitted to the training rows before
            the first step; what the classifier says is the mean of both logits (jaxlm/model/wide.py); 0: none.
        strength: inverse strength of the penalty under which that bag is fitted (scikit-learn's C).
        spelled: how much each character n-gram of a word counts beside the word in that fit; 0: nothing.
        balanced: so many times the logarithm of each class's share of the training rows is taken from the logits, in
            the bias of that bag: at 1 classes are told apart as if all were equally common, which is what macro-F1 asks
            for (Menon et al. 2021, https://arxiv.org/abs/2007.07314); 0: never.
        rationales: weight of a loss that draws the shares of attention pooling to the words people marked; 0: none.
    """

    dataset: Dataset = "hatexplain"
    pooling: Pooling = "attention"
    dropout: float = 0.3
    word_dropout: float = 0.1
    smoothing: float = 0.1
    vectors: bool = True
    spelling: float = 0.0
    wide: int = 0
    strength: float = 0.1
    spelled: float = 0.0
    balanced: float = 0.0
    rationales: float = 0.0

    def __post_init__(self) -> None:
        for name in ("dropout", "word_dropout", "smoothing"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"classify.{name}={getattr(self, name)} must be in [0, 1)")
        if not 0.0 <= self.spelling <= 1.0:
            raise ValueError(f"classify.spelling={self.spelling} must be in [0, 1]")
        for name in ("rationales", "wide", "strength", "spelled", "balanced"):
            if getattr(self, name) < 0:
                raise ValueError(f"classify.{name}={getattr(self, name)} must not be negative")
        if self.balanced and not self.wide:
            raise ValueError(f"classify.balanced={self.balanced} needs a bag of words that it stands in: classify.wide")
        if self.rationales and self.pooling != "attention":
            raise ValueError(f"classify.rationales={self.rationales} needs classify.pooling=attention")


@dataclass(frozen=True, slots=True)
class Rows:
    """What a classifier makes of each row: `pooled` [B, D], `logits` [B, C], and the loss of each row, [B]; float32."""

    pooled: Float[Array, "B D"]
    logits: Float[Array, "B C"]
    loss: Float[Array, " B"]
    nll: Float[Array, " B"]


def rows(
    model: Classifier,
    batch: Mapping[str, jax.Array],
    key: PRNGKeyArray | None = None,
    how: ClassifyConfig | None = None,
) -> Rows:
    """Forward pass and loss of each row by itself, before any weighting.

    Words are hidden and entries dropped where there is a key; the target is smoothed, and shares are drawn to marked
    words, where `how` says so. The loss is that of the encoder by itself; `logits` and `nll` are of all that speaks.
    """
    kw, kt, kc = (None, None, None) if key is None else jax.random.split(key, 3)
    tokens_BT, segments_BT = batch["tokens"], batch["segments"]
    if how is not None and kw is not None and how.word_dropout:
        hidden_BT = jax.random.bernoulli(kw, how.word_dropout, tokens_BT.shape)
        tokens_BT = jnp.where(hidden_BT & (segments_BT > 0), MASK, tokens_BT)
    x_BTD = model(tokens_BT, batch["positions"], segments_BT, kt)
    pooled_BD = model.pool(x_BTD, segments_BT)
    alone_BC = model.classify(pooled_BD, kc)
    logits_BC = model.joined(alone_BC, tokens_BT, segments_BT)
    smoothing = 0.0 if how is None else how.smoothing
    with jax.named_scope("loss"):
        nll_B = _nll(logits_BC, batch["labels"])
        loss_B = _nll(alone_BC, batch["labels"], smoothing)
        if how is not None and how.rationales:
            loss_B = loss_B + how.rationales * _away(model.shares(x_BTD, segments_BT), batch["rationales"])
    return Rows(pooled_BD, logits_BC, loss_B, nll_B)


def _nll(logits_BC: jax.Array, labels_B: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Cross entropy of each row, float32 [B], to a target of which a share is spread evenly over all classes."""
    partition_B = jax.nn.logsumexp(logits_BC, axis=-1)
    nll_B = partition_B - pick(logits_BC, labels_B)
    if not smoothing:
        return nll_B
    return (1.0 - smoothing) * nll_B + smoothing * (partition_B - jnp.mean(logits_BC, axis=-1))


def _away(shares_BT: jax.Array, rationales_BT: jax.Array) -> jax.Array:
    """-log of the share that marked words get, for rows that have some; 0 else."""
    marked_BT = rationales_BT > 0.5
    share_B = jnp.sum(jnp.where(marked_BT, shares_BT, 0.0), axis=1)
    return jnp.where(jnp.any(marked_BT, axis=1), -jnp.log(jnp.clip(share_B, 1e-6, 1.0)), 0.0)


def weighted(found: Rows, batch: Mapping[str, jax.Array]) -> tuple[Float[Array, ""], Sums]:
    """The SUM over weighted rows of their loss, and sums to report: `nll` (nats), `weight` (rows), `correct`."""
    weights_B = batch["weights"]
    right_B = jnp.argmax(found.logits, axis=-1) == batch["labels"]
    sums = {
        "nll": jnp.sum(found.nll * weights_B),
        "weight": jnp.sum(weights_B),
        "correct": jnp.sum(right_B * weights_B),
    }
    return jnp.sum(found.loss * weights_B), sums


def classify(
    model: Classifier, batch: Mapping[str, jax.Array], key: PRNGKeyArray | None = None
) -> tuple[Float[Array, ""], Sums]:
    """The SUM over weighted rows of the cross entropy, and sums to report: `nll` (nats), `weight` (rows), `correct`.

    Sums, not means, as in `jaxlm.model.loss.next_token`: the trainer divides them by the weight, which makes `correct`
    the accuracy. `batch`: tokens, positions, segments [B, T] int32 (one document per row; segments 0 on padding),
    labels [B] int32 (from 0), weights [B] float32, 0 for a row that counts for nothing.
    """
    return weighted(rows(model, batch, key), batch)


def classifying(how: ClassifyConfig) -> Callable[..., tuple[jax.Array, Sums]]:
    """`classify` with what a configuration says of dropped words, smoothing and rationales."""

    def objective(
        model: Classifier, batch: Mapping[str, jax.Array], key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, ""], Sums]:
        return weighted(rows(model, batch, key, how), batch)

    return objective

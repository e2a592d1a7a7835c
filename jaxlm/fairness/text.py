"""Debiasing a classifier of texts: its objective wrapped into one that an adversary opposes (equation 14).

Axes: B rows, D embed, C classes, G groups of all attributes in their order.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxlm.data.labelled.lists import LISTS
from jaxlm.data.labelled.vocabulary import MASK
from jaxlm.fairness.adversary import Adversaries
from jaxlm.fairness.config import FairnessConfig
from jaxlm.fairness.groups import Attribute
from jaxlm.fairness.reversal import reverse
from jaxlm.model.classifier import Classifier, Pooling
from jaxlm.model.classify import ClassifyConfig, rows, weighted
from jaxlm.model.config import ModelConfig
from jaxlm.model.loss import Sums
from jaxlm.model.transformer import Execution

CELLS = "fairness_cells"
"""The sum from which gaps are reported: [4 G], for each label and group its rows and the sum of their scores."""


def attributes(how: FairnessConfig) -> list[Attribute]:
    """The attributes of a configuration; a text may be in several groups of one, or in none."""
    return [
        Attribute(name=name, groups=tuple(LISTS[name]), criterion=criterion, exclusive=False)
        for name, criterion in how.attribute.items()
    ]


class OpposedClassifier(Classifier):
    """A classifier with the adversaries that read it; they take no part in what it says."""

    def __init__(
        self,
        config: ModelConfig,
        execution: Execution,
        how: FairnessConfig,
        *,
        classes: int,
        pooling: Pooling,
        rate: float,
        wide: int = 0,
        key: PRNGKeyArray,
    ):
        super().__init__(config, execution, classes=classes, pooling=pooling, rate=rate, wide=wide, key=key)
        width = config.embed if how.sees == "representation" else classes
        self.adversaries = Adversaries(attributes(how), width, hidden=how.hidden, key=jax.random.fold_in(key, 1))


def opposed(classify: ClassifyConfig, how: FairnessConfig) -> Callable[..., tuple[jax.Array, Sums]]:
    """The objective L_task + lambda L_adv(g(reverse(f))) as sums over rows.

    Its gradient in the classifier is that of L_task - lambda L_adv, in the adversaries that of L_adv: the weight lies
    in the reversal, so that an adversary learns at full speed whatever the weight is. Beside the sums of `classify`:
    `adversary` (nats, summed over rows and attributes) where there is one, and CELLS. `batch` also holds `groups` and
    `group_weights` [B, G], and `identity` [B, T], 1 on words of the lists.
    """
    wanted = attributes(how)

    def objective(
        model: Classifier, batch: Mapping[str, jax.Array], key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, ""], Sums]:
        if how.mask_identity and key is not None:
            hidden_B = jax.random.bernoulli(jax.random.fold_in(key, 7), how.mask_identity, batch["labels"].shape)
            masked_BT = hidden_B[:, None] & (batch["identity"] > 0)
            batch = {**batch, "tokens": jnp.where(masked_BT, MASK, batch["tokens"])}
        found = rows(model, batch, key, classify)
        loss, sums = weighted(found, batch)
        harmful_B = (batch["labels"] > 0).astype(jnp.int32)
        if how.weight and isinstance(model, OpposedClassifier):
            seen = found.pooled if how.sees == "representation" else found.logits
            targets, weights, at = [], [], 0
            for attribute in wanted:
                across = slice(at, at + attribute.heads)
                targets.append(batch["groups"][:, across])
                weights.append(batch["group_weights"][:, across] * (batch["weights"] > 0)[:, None])
                at += attribute.heads
            against = model.adversaries.loss(reverse(seen, how.weight), harmful_B, targets, weights)
            loss, sums = loss + against, sums | {"adversary": against}
        scores_B = jax.lax.stop_gradient(1.0 - jax.nn.softmax(found.logits, axis=-1)[:, 0])
        return loss, sums | {CELLS: _cells(scores_B, harmful_B, batch["groups"], batch["weights"] > 0)}

    return objective


def _cells(scores_B: jax.Array, harmful_B: jax.Array, groups_BG: jax.Array, counted_B: jax.Array) -> jax.Array:
    """[4 G]: rows of each group with label 0, with label 1, and the sums of their scores."""
    member_BG = groups_BG * counted_B.astype(jnp.float32)[:, None]
    values = [value_B * (harmful_B == label) for value_B in (jnp.ones_like(scores_B), scores_B) for label in (0, 1)]
    return jnp.concatenate([jnp.sum(member_BG * value_B[:, None], axis=0) for value_B in values])


class Gaps:
    """Running gaps of a run that trains, from what its steps report: for each attribute the largest difference between
    its groups in mean score, over all rows (`ATTRIBUTE_parity_gap`), over harmless ones (`_fpr_gap`) and over harmful
    ones (`_tpr_gap`); scores take the place of decisions, so that the figures move smoothly."""

    LEAST = 5.0
    """Rows, in the running sums, below which a group is left out."""

    def __init__(self, how: FairnessConfig):
        self.how, self.attributes = how, attributes(how)
        self.sums = np.zeros(4 * sum(a.heads for a in self.attributes))

    def __call__(self, cells: np.ndarray) -> dict[str, float]:
        """`cells` [4 G]: the sums of one step. What there is to report."""
        self.sums = self.how.decay * self.sums + np.asarray(cells, np.float64)
        counts, scores = self.sums.reshape(2, 2, -1)
        found, at = {}, 0
        for attribute in self.attributes:
            n, s = counts[:, at : at + attribute.heads], scores[:, at : at + attribute.heads]
            at += attribute.heads
            for name, rows_G, sums_G in (("parity", n.sum(0), s.sum(0)), ("fpr", n[0], s[0]), ("tpr", n[1], s[1])):
                enough = rows_G >= self.LEAST
                if enough.sum() > 1:
                    means = sums_G[enough] / rows_G[enough]
                    found[f"{attribute.name}_{name}_gap"] = float(means.max() - means.min())
        return found


def raked(harmful: np.ndarray, groups: np.ndarray, rounds: int = 50) -> np.ndarray:
    """float32 [rows]: weights of mean 1 under which every group has the share of harmful rows that all rows have:
    Kamiran and Calders' weights where groups overlap, found by scaling one group after the other.

    harmful bool [rows], groups [rows, G] of 0 and 1. A group without both labels is left alone.
    """
    weights, share = np.ones(len(harmful)), harmful.mean()
    for _ in range(rounds):
        for member in groups.T > 0:
            positive, negative = weights[member & harmful].sum(), weights[member & ~harmful].sum()
            if positive and negative:
                total = positive + negative
                weights[member & harmful] *= share * total / positive
                weights[member & ~harmful] *= (1 - share) * total / negative
        weights = np.clip(weights, 0.1, 10.0)
    return (weights / weights.mean()).astype(np.float32)

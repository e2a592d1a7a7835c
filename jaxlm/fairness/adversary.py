"""The adversary: a small network that guesses a protected attribute from what the model says or thinks.

Axes: B rows, Z what the adversary sees of the model, C classes of the label, W its input, H heads.
"""

import math
from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxlm.fairness.groups import Attribute, Criterion
from jaxlm.fairness.stopping import auc
from jaxlm.model.param import constant, param


class Adversary(nnx.Module):
    """An MLP with ReLU between its layers, `width` -> hidden -> heads; the paper's is 128-64-1 (section 4.4)."""

    def __init__(self, width: int, heads: int = 1, *, hidden: Sequence[int] = (128, 64), key: PRNGKeyArray):
        if width < 1 or heads < 1 or any(h < 1 for h in hidden):
            raise ValueError(f"sizes of an adversary must be positive: {[width, *hidden, heads]}")
        sizes = [width, *hidden, heads]
        keys = jax.random.split(key, len(sizes) - 1)
        pairs = list(zip(keys, sizes[:-1], sizes[1:], strict=True))
        self.weights = nnx.List(
            [param(k, (i, o), ("adversary_in", "adversary_out"), std=math.sqrt(2 / i)) for k, i, o in pairs]
        )
        self.biases = nnx.List([constant(0.0, (o,), ("adversary_out",)) for _, _, o in pairs])

    def __call__(self, x_BW: Float[Array, "B W"]) -> Float[Array, "B H"]:
        """Logits of belonging to each head's group, float32."""
        with jax.named_scope("adversary"):
            last = len(self.weights) - 1
            for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                x_BW = x_BW @ cast(nnx.Param, weight)[...] + cast(nnx.Param, bias)[...][None, :]
                if i < last:
                    x_BW = jax.nn.relu(x_BW)
            return x_BW


class Adversaries(nnx.Module):
    """One adversary per attribute, over the same `width` numbers of the model and `classes` of the label."""

    def __init__(
        self,
        attributes: Sequence[Attribute],
        width: int,
        classes: int = 2,
        *,
        hidden: Sequence[int] = (128, 64),
        key: PRNGKeyArray,
    ):
        self.criteria: tuple[Criterion, ...] = tuple(a.criterion for a in attributes)
        self.classes = classes
        keys = jax.random.split(key, max(len(attributes), 1))
        self.each = nnx.List(
            [
                Adversary(width + seen_labels(a.criterion, classes), a.heads, hidden=hidden, key=k)
                for a, k in zip(attributes, keys, strict=True)
            ]
        )

    def __call__(self, z_BZ: Float[Array, "B Z"], labels_B: Int[Array, " B"]) -> list[Float[Array, "B H"]]:
        """Logits of each attribute's heads."""
        return [
            cast(Adversary, adversary)(see(criterion, z_BZ, labels_B, self.classes))
            for adversary, criterion in zip(self.each, self.criteria, strict=True)
        ]

    def loss(
        self,
        z_BZ: Float[Array, "B Z"],
        labels_B: Int[Array, " B"],
        targets: Sequence[Float[Array, "B H"]],
        weights: Sequence[Float[Array, "B H"]],
    ) -> Float[Array, ""]:
        """The SUM over rows of the cross entropy in nats, averaged over the heads of an attribute and then summed over
        attributes.

        `targets` and `weights` come from `Attribute.targets` and `groups.balance`, one pair per attribute. Sums are
        linear in the rows, as in `jaxlm.model.loss`: any split of a batch over devices gives the same gradient.
        """
        total = jnp.zeros((), jnp.float32)
        for logits, criterion, target, weight in zip(
            self(z_BZ, labels_B), self.criteria, targets, weights, strict=True
        ):
            counted = weight * counted_rows(criterion, labels_B)[:, None]
            total += jnp.sum(cross_entropy(logits, target) * counted) / target.shape[1]
        return total


def cross_entropy(logits: Float[Array, "*shape"], targets: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Nats of a yes-or-no prediction, entry by entry."""
    return jax.nn.softplus(logits) - targets * logits


def seen_labels(criterion: Criterion, classes: int) -> int:
    """How many numbers of the label an adversary sees: its classes under equalized odds, else none."""
    return classes if criterion == "equalized_odds" else 0


def see(
    criterion: Criterion, z_BZ: Float[Array, "B Z"], labels_B: Int[Array, " B"], classes: int
) -> Float[Array, "B W"]:
    """What the adversary reads: z, or z and the one-hot label under equalized odds."""
    if criterion != "equalized_odds":
        return z_BZ
    return jnp.concatenate([z_BZ, jax.nn.one_hot(labels_B, classes, dtype=z_BZ.dtype)], axis=1)


def counted_rows(criterion: Criterion, labels_B: Int[Array, " B"]) -> Float[Array, " B"]:
    """1 for the rows that the adversary is judged on: those of label 1 under equal opportunity, else all."""
    if criterion == "equal_opportunity":
        return (labels_B == 1).astype(jnp.float32)
    return jnp.ones(labels_B.shape, jnp.float32)


def discriminator_auc(
    adversaries: Adversaries,
    z_BZ: Float[Array, "B Z"],
    labels_B: Int[Array, " B"],
    targets: Sequence[Float[Array, "B H"]],
    attributes: Sequence[Attribute],
) -> Float[Array, ""]:
    """How well the adversaries do, from 0.5 (they know nothing) to 1: the mean over attributes and their heads.

    Under equalized odds the AUC is taken within each label and averaged: an adversary that sees the label would score
    above 0.5 by base rates alone, which the criterion allows. Each AUC is oriented: max(AUC, 1 - AUC).
    """
    found = []
    for logits, target, attribute in zip(adversaries(z_BZ, labels_B), targets, attributes, strict=True):
        within = strata_rows(attribute.criterion, labels_B, adversaries.classes)
        each = [auc(target[:, k] > 0.5, logits[:, k], counted) for k in range(attribute.heads) for counted in within]
        found.append(sum(jnp.maximum(a, 1 - a) for a in each) / len(each))
    return sum(found, start=jnp.zeros(())) / len(found)


def strata_rows(criterion: Criterion, labels_B: Int[Array, " B"], classes: int) -> list[Float[Array, " B"]]:
    """Which rows each AUC of the discriminator is taken over."""
    if criterion == "equalized_odds":
        return [(labels_B == c).astype(jnp.float32) for c in range(classes)]
    return [counted_rows(criterion, labels_B)]

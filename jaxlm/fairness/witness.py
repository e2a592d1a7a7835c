"""Equation 3 of the paper in its sup form: how far apart do groups lie for the worst witness function of a class?

    sup over h of |E[h(f(x)) | a = 0] - E[h(f(x)) | a = 1]|

The class decides what is measured. `decision`: one witness, the softened decision itself, so that the sup is the gap of
decisions that is reported in the end. `mmd`: the unit ball of a kernel space, where the sup has a closed form (Gretton
et al. 2012). `network`: an MLP that is 1-Lipschitz by construction and trained to reach the sup, which is then the
Wasserstein-1 distance (an integral probability metric). All three are taken within the labels that the criterion
conditions on, and for each group against the rest.

Axes: B rows, Z what the witness sees, H heads of an attribute, S strata (labels conditioned on).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxlm.fairness.adversary import Adversary
from jaxlm.fairness.groups import Criterion

Witness = Literal["decision", "mmd", "network"]
WIDTHS = (0.25, 1.0, 4.0)
"""Kernel widths, as multiples of the mean squared distance in the batch."""


def strata(criterion: Criterion, labels_B: Int[Array, " B"], classes: int = 2) -> Float[Array, "B S"]:
    """Which rows each comparison is made in: all; those of each label (equalized odds); those of label 1."""
    if criterion == "demographic_parity":
        return jnp.ones((labels_B.shape[0], 1), jnp.float32)
    if criterion == "equal_opportunity":
        return (labels_B == 1).astype(jnp.float32)[:, None]
    return jax.nn.one_hot(labels_B, classes, dtype=jnp.float32)


def gaps(
    h_B: Float[Array, " B"], strata_BS: Float[Array, "B S"], targets_BH: Float[Array, "B H"]
) -> tuple[Float[Array, "S H"], Float[Array, "S H"]]:
    """Mean of h in each group minus its mean in the rest, within each stratum, and the variance of that difference.

    A comparison with fewer than two rows on a side is 0 with variance 0: such a batch says nothing about it.
    """
    inside_BSH = strata_BS[:, :, None] * targets_BH[:, None, :]
    outside_BSH = strata_BS[:, :, None] * (1 - targets_BH[:, None, :])

    def moments(weights_BSH: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        n_SH = jnp.sum(weights_BSH, axis=0)
        mean_SH = jnp.einsum("B,BSH->SH", h_B, weights_BSH) / jnp.maximum(n_SH, 1.0)
        square_SH = jnp.einsum("B,BSH->SH", jnp.square(h_B), weights_BSH) / jnp.maximum(n_SH, 1.0)
        return n_SH, mean_SH, jnp.maximum(square_SH - jnp.square(mean_SH), 0.0) / jnp.maximum(n_SH - 1.0, 1.0)

    n1, m1, v1 = moments(inside_BSH)
    n0, m0, v0 = moments(outside_BSH)
    known_SH = (n1 >= 2) & (n0 >= 2)
    return jnp.where(known_SH, m1 - m0, 0.0), jnp.where(known_SH, v1 + v0, 0.0)


def decision_gap(
    logits_B: Float[Array, " B"],
    strata_BS: Float[Array, "B S"],
    targets_BH: Float[Array, "B H"],
    sharpness: float = 1.0,
) -> Float[Array, ""]:
    """Sum over strata and heads of the squared gap of softened decisions `sigmoid(sharpness * logit)`.

    Estimated without bias: the square of a batch's gap exceeds that of all rows by the gap's variance, which is taken
    off; otherwise small batches would punish a fair model for chance. May therefore be below zero on a batch.
    """
    gap_SH, variance_SH = gaps(jax.nn.sigmoid(sharpness * logits_B), strata_BS, targets_BH)
    return jnp.sum(jnp.square(gap_SH) - variance_SH)


class Memory(NamedTuple):
    """A running mean of gaps: a sum [S, H] whose terms fade, and the sum of their weights (0: nothing seen yet)."""

    total: jax.Array
    weight: jax.Array

    @classmethod
    def empty(cls, criterion: Criterion, heads: int) -> "Memory":
        size = 2 if criterion == "equalized_odds" else 1
        return cls(total=jnp.zeros((size, heads)), weight=jnp.zeros(()))


def remembered_gap(
    past: Memory,
    logits_B: Float[Array, " B"],
    strata_BS: Float[Array, "B S"],
    targets_BH: Float[Array, "B H"],
    rate: float,
    sharpness: float = 1.0,
) -> tuple[Float[Array, ""], Memory]:
    """A term with the gradient of `decision_gap` that knows the gap from earlier batches, and what is remembered next.

    The gradient of gap^2 is 2 gap d(gap): the first factor is the running mean of batches before this one, so that
    neither factor's noise meets the other's (no bias to take off), and a batch's chance gap no longer steers.
    """
    gap_SH, _ = gaps(jax.nn.sigmoid(sharpness * logits_B), strata_BS, targets_BH)
    mean_SH = past.total / jnp.maximum(past.weight, 1e-6)
    now = jax.lax.stop_gradient(gap_SH)
    memory = Memory(total=rate * past.total + (1 - rate) * now, weight=rate * past.weight + (1 - rate))
    return jnp.sum(2 * jax.lax.stop_gradient(mean_SH) * gap_SH), memory


def mmd(z_BZ: Float[Array, "B Z"], strata_BS: Float[Array, "B S"], targets_BH: Float[Array, "B H"]) -> Float[Array, ""]:
    """Sum over strata and heads of the squared maximum mean discrepancy, kernels of `WIDTHS`, without bias."""
    norms_B = jnp.sum(jnp.square(z_BZ), axis=1)
    square_BB = jnp.maximum(norms_B[:, None] + norms_B[None, :] - 2 * z_BZ @ z_BZ.T, 0.0)
    scale = jax.lax.stop_gradient(jnp.mean(square_BB)) + 1e-12
    kernel_BB = sum(jnp.exp(-square_BB / (width * scale)) for width in WIDTHS) / len(WIDTHS)
    kernel_BB = kernel_BB * (1 - jnp.eye(z_BZ.shape[0]))

    def one(inside_B: jax.Array, outside_B: jax.Array) -> jax.Array:
        n1, n0 = jnp.sum(inside_B), jnp.sum(outside_B)
        within1 = inside_B @ kernel_BB @ inside_B / jnp.maximum(n1 * (n1 - 1), 1.0)
        within0 = outside_B @ kernel_BB @ outside_B / jnp.maximum(n0 * (n0 - 1), 1.0)
        between = inside_B @ kernel_BB @ outside_B / jnp.maximum(n1 * n0, 1.0)
        return jnp.where((n1 >= 2) & (n0 >= 2), within1 + within0 - 2 * between, 0.0)

    return _over_heads(one, strata_BS, targets_BH)


def network_gap(
    witness: Adversary, z_BZ: Float[Array, "B Z"], strata_BS: Float[Array, "B S"], targets_BH: Float[Array, "B H"]
) -> Float[Array, ""]:
    """Sum over strata and heads of |mean of h in the group - mean in the rest|, h the network made 1-Lipschitz.

    The witness has one output per stratum and head. It is trained to make this large, the model to make it small.
    """
    h_BSH = lipschitz(witness, z_BZ).reshape(z_BZ.shape[0], strata_BS.shape[1], targets_BH.shape[1])
    total = jnp.zeros((), jnp.float32)
    for s in range(strata_BS.shape[1]):
        for k in range(targets_BH.shape[1]):
            gap, _ = gaps(h_BSH[:, s, k], strata_BS[:, s : s + 1], targets_BH[:, k : k + 1])
            total += jnp.abs(gap[0, 0])
    return total


def lipschitz(network: Adversary, x_BW: Float[Array, "B W"]) -> Float[Array, "B H"]:
    """The network with each weight matrix divided by a bound of its spectral norm, where that is above 1.

    The bound is sqrt(largest column sum * largest row sum) of absolute values, which no spectral norm exceeds.
    """
    last = len(network.weights) - 1
    for i, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        w = cast(nnx.Param, weight)[...]
        bound = jnp.sqrt(jnp.max(jnp.sum(jnp.abs(w), axis=0)) * jnp.max(jnp.sum(jnp.abs(w), axis=1)))
        x_BW = x_BW @ (w / jnp.maximum(bound, 1.0)) + cast(nnx.Param, bias)[...][None, :]
        if i < last:
            x_BW = jax.nn.relu(x_BW)
    return x_BW


def _over_heads(
    one: Callable[[jax.Array, jax.Array], jax.Array], strata_BS: jax.Array, targets_BH: jax.Array
) -> jax.Array:
    total = jnp.zeros((), jnp.float32)
    for s in range(strata_BS.shape[1]):
        for k in range(targets_BH.shape[1]):
            total += one(strata_BS[:, s] * targets_BH[:, k], strata_BS[:, s] * (1 - targets_BH[:, k]))
    return total

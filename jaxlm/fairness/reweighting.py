"""Weights and samplings that take the link between group and label out of the training rows, and group DRO.

Axes: B rows, C cells (group and label together).
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Reweighting = Literal["none", "kamiran_calders", "balanced_classes", "balanced_sampling", "group_dro"]


def cells(labels_B: np.ndarray, codes: Sequence[np.ndarray]) -> np.ndarray:
    """The cell of each row: label and group of every attribute together, numbered from 0 without holes."""
    _, found = np.unique(np.stack([labels_B, *codes], axis=1), axis=0, return_inverse=True)
    return np.asarray(found).reshape(-1).astype(np.int32)


def kamiran_calders(labels_B: np.ndarray, groups_B: np.ndarray, weights_B: np.ndarray | None = None) -> np.ndarray:
    """w(a, y) = P(a) P(y) / P(a, y): group and label are independent under it (Kamiran and Calders 2012). Mean 1."""
    w = np.ones(len(labels_B)) if weights_B is None else np.asarray(weights_B, np.float64)
    result = np.zeros(len(labels_B))
    for a in np.unique(groups_B):
        for y in np.unique(labels_B):
            cell = (groups_B == a) & (labels_B == y)
            if w[cell].sum() > 0:
                result[cell] = w[groups_B == a].sum() * w[labels_B == y].sum() / (w.sum() * w[cell].sum())
    return result


def balanced_classes(labels_B: np.ndarray, groups_B: np.ndarray) -> np.ndarray:
    """Every label weighs the same within its group (FairBalance, arXiv 2107.08310). Mean 1."""
    result = np.zeros(len(labels_B))
    for a in np.unique(groups_B):
        ys = np.unique(labels_B[groups_B == a])
        for y in ys:
            cell = (groups_B == a) & (labels_B == y)
            result[cell] = (groups_B == a).sum() / (len(ys) * cell.sum())
    return result


def sampling_weights(cells_B: np.ndarray) -> np.ndarray:
    """Chances of drawing each row under which every cell comes up equally often; they add up to 1."""
    counts = np.bincount(cells_B)
    return 1.0 / (np.count_nonzero(counts) * counts[cells_B])


def dro_weights(
    q_C: Float[Array, " C"], losses_B: Float[Array, " B"], cells_B: Int[Array, " B"], rate: float = 0.01
) -> tuple[Float[Array, " C"], Float[Array, " B"]]:
    """One step of group DRO (Sagawa et al., arXiv 1911.08731): the next q, and weights of the rows with mean about 1.

    q grows with exp(rate * mean loss of the cell); a row weighs B q(cell) / rows of its cell in the batch.
    """
    member_BC = jax.nn.one_hot(cells_B, q_C.shape[0], dtype=jnp.float32)
    rows_C = jnp.sum(member_BC, axis=0)
    mean_C = losses_B @ member_BC / jnp.maximum(rows_C, 1.0)
    q_C = q_C * jnp.exp(rate * jax.lax.stop_gradient(mean_C))
    q_C = q_C / jnp.sum(q_C)
    return q_C, member_BC @ (q_C / jnp.maximum(rows_C, 1.0)) * losses_B.shape[0]

"""Equations 1 and 7 of the paper as printed, for the record and for `--objective eq1`.

Both add squared gradient norms over bandwidths to seconds, which has no unit. What we price instead are bytes over
bandwidth plus latency, and only what compute does not hide.
"""

from dataclasses import dataclass

import numpy as np

from planners.candidates import Candidates
from planners.machines.topology import Cluster
from planners.plan import BATCH_AXES
from planners.prices.comm import group


@dataclass(frozen=True, slots=True, kw_only=True)
class Eq1:
    """What eq. 1 needs beyond a plan.

    Attributes:
        beta: weight of the communication term.
        steps: optimizer steps to the target: constant at a fixed global batch and exact mathematics.
        gradient_norm: norm of the whole gradient; clipped gradients are at most the clip norm.
    """

    beta: float = 0.0
    steps: int = 1
    gradient_norm: float = 1.0

    def __call__(self, candidates: Candidates, cluster: Cluster, step_seconds: np.ndarray) -> np.ndarray:
        """T_conv + beta * sum over links of |grad W_ij|^2 / B_ij, one number per candidate."""
        return step_seconds * self.steps + self.beta * norms_over_bandwidth(candidates, cluster, self.gradient_norm)


def norms_over_bandwidth(candidates: Candidates, cluster: Cluster, gradient_norm: float) -> np.ndarray:
    """Sum over links of |grad W_ij|^2 / B_ij: every device's link on each axis that sums gradients.

    A device holds 1 / (fsdp x tensor x stage) of the gradient; for want of anything better, that share of its squared
    norm.
    """
    shards = candidates.sizes["fsdp"] * candidates.sizes["tensor"] * candidates.sizes["stage"]
    total = np.zeros(len(candidates))
    for axis in BATCH_AXES:
        for ranks, link in group(cluster, candidates.sizes, axis).rings:
            total += np.where(ranks > 1, candidates.devices / shards * gradient_norm**2 / link.bandwidth, 0.0)
    return total


def c_comm_eq7(candidates: Candidates, cluster: Cluster, gradient_norm: float, times: np.ndarray) -> np.ndarray:
    """Sum over links of |grad W_ij|^2 / B_ij + delta_ij tau_ij, as printed; delta is messages per step.

    `times` are microbatches per step: plain jit sums the gradient once in each.
    """
    total = norms_over_bandwidth(candidates, cluster, gradient_norm)
    for axis in BATCH_AXES:
        for ranks, link in group(cluster, candidates.sizes, axis).rings:
            latency = link.latency + link.doubling * np.log2(np.maximum(ranks, 1))
            total += np.where(ranks > 1, candidates.devices * times * latency, 0.0)
    return total

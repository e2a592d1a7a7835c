"""What others would choose: rules of thumb to be beaten, over the same candidates and with the same verdict on memory.

A chooser takes candidates and which of them fit, and gives the row that it picks, or None where it finds nothing.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from planners.candidates import Candidates

Chooser: TypeAlias = Callable[[Candidates, np.ndarray], int | None]
"""(candidates, which of them fit) -> row."""


def simple_rule(candidates: Candidates, fits: np.ndarray) -> int | None:
    """No checkpointing, then one sequence at a time, then the smallest tensor x stage, then the smallest tensor.

    The rule of planners.md 0.3, after Aleph-Alpha's advice (arXiv:2311.05610): regret 0.6 % on their own runs, 19 to
    23 % on vTrain's. Where everything is left open, data parallelism comes before fsdp and context.
    """
    sizes, per_replica = candidates.sizes, candidates.microbatch // candidates.replicas
    return _first(
        fits,
        candidates.remat != candidates.remats.index("none"),
        per_replica,
        sizes["tensor"] * sizes["stage"],
        sizes["tensor"],
        sizes["context"],
        sizes["fsdp"],
        candidates.zero,
        candidates.virtual,
    )


def random_choice(candidates: Candidates, fits: np.ndarray, *, seed: int = 0) -> int | None:
    """Any that fits, each as likely as the others."""
    rows = np.flatnonzero(fits)
    return int(np.random.default_rng(seed).choice(rows)) if len(rows) else None


def data_parallel(candidates: Candidates, fits: np.ndarray) -> int | None:
    """Only the batch is split: whole replicas, without checkpointing if that fits, the largest microbatch that fits."""
    alone = fits & (candidates.replicas == candidates.devices) & (candidates.sizes["fsdp"] == 1)
    return _first(
        alone,
        candidates.zero,
        candidates.remat != candidates.remats.index("none"),
        -candidates.microbatch,
        candidates.sizes["zone"],
    )


def megatron_heuristic(candidates: Candidates, fits: np.ndarray, *, node: int = 8) -> int | None:
    """The takeaways of Megatron-LM (arXiv:2104.04473, 3.1 to 3.4).

    Model parallelism, tensor x stage, just large enough to fit; of it as much tensor as a node holds, then stages; data
    parallelism for the rest. Checkpointing only where nothing fits without. The microbatch is the largest that leaves
    at least four microbatches per stage, so that the bubble stays below a quarter; else the smallest.
    """
    sizes = candidates.sizes
    usual = (
        fits & (sizes["fsdp"] == 1) & (sizes["context"] == 1) & (sizes["tensor"] <= node) & (candidates.virtual == 1)
    )
    per_replica = candidates.microbatch // candidates.replicas
    # The number of microbatches does not need the batch: of one mesh, it falls as the microbatch grows.
    most = np.max(np.where(usual, candidates.microbatch, 1), initial=1)
    enough = (sizes["stage"] == 1) | (most // np.maximum(candidates.microbatch, 1) >= 4 * sizes["stage"])
    return _first(
        usual,
        candidates.remat != candidates.remats.index("none"),
        sizes["tensor"] * sizes["stage"],
        -sizes["tensor"],
        candidates.zero,
        ~enough,
        np.where(enough, -per_replica, per_replica),
        sizes["zone"],
    )


BASELINES: dict[str, Chooser] = {
    "simple rule": simple_rule,
    "random": random_choice,
    "data parallel only": data_parallel,
    "Megatron-style": megatron_heuristic,
}
"""Name -> chooser, as every comparison prints them."""


def _first(allowed: np.ndarray, *keys: np.ndarray) -> int | None:
    """The allowed row with the smallest keys, the first key counting most."""
    rows = np.flatnonzero(allowed)
    if not len(rows):
        return None
    return int(rows[np.lexsort([np.asarray(key)[rows] for key in reversed(keys)])[0]])

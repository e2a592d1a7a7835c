"""Which of the choices that fit is best, and which trade memory for time."""

import numpy as np

from planners.machines.topology import Cluster
from planners.plan import MESH_AXES
from planners.prices.assumptions import Assumptions
from planners.space.choices import Choices


def ranked(choices: Choices, cluster: Cluster, assumptions: Assumptions, score: np.ndarray | None = None) -> np.ndarray:
    """Rows of the choices that fit, best first.

    Ties with the fastest go to the simplest: fewest mesh axes and splits, then fewest microbatches. On a CPU host,
    whose devices share cores and memory, splitting the batch comes before any other split. `score` takes the place of
    the step's seconds.
    """
    rows = np.flatnonzero(choices.fits)
    at, sizes = choices.candidates, choices.candidates.sizes
    seconds = choices.prices.step_seconds if score is None else score
    memory = choices.prices.memory_bytes
    last = [sizes[axis] for axis in ("tensor", "fsdp", "stage", "context")] if cluster.shared else []
    least = np.ones(len(rows), bool)
    for size in last:
        least &= size[rows] == size[rows][least].min()
    limit = seconds[rows][least].min() * (1.0 + assumptions.tie)
    tied = least & (seconds[rows] <= limit)
    plain = sum((sizes[axis] > 1).astype(int) for axis in MESH_AXES) + at.zero + (at.virtual > 1)
    keys = [
        *last,
        ~_spread(tied, rows, len(choices)),
        np.where(_spread(tied, rows, len(choices)), plain, 0),
        np.where(_spread(tied, rows, len(choices)), -at.microbatch, 0),
        seconds,
        memory,
        *(sizes[axis] for axis in MESH_AXES),
    ]
    return rows[np.lexsort([key[rows] for key in reversed(keys)])]


def _spread(mask: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    whole = np.zeros(count, bool)
    whole[rows] = mask
    return whole


def pareto(seconds: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """Rows that no other row beats in both time and memory, fastest first; of equal rows the first."""
    order = np.lexsort([np.arange(len(seconds)), memory, seconds])
    least = np.minimum.accumulate(memory[order])
    better = np.append(True, memory[order][1:] < least[:-1])
    return order[better]

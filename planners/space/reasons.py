"""Why each runner-up lost, in a sentence."""

import numpy as np

from planners.explain import duration, gib
from planners.findings import Alternative
from planners.machines.topology import Cluster
from planners.plan import Workload
from planners.prices.assumptions import Assumptions
from planners.space.choices import Choice, Choices, summarise

ALTERNATIVES = 5
"""Runners-up that a plan tells of."""


def alternatives(
    choices: Choices, order: np.ndarray, workload: Workload, cluster: Cluster, assumptions: Assumptions
) -> tuple[Alternative, ...]:
    """The next best of each other mesh and remat, after the fastest choice that only lacked memory.

    `order` are the rows that fit, best first.
    """
    winner = choices[order[0]]
    told: list[tuple[Choice, str]] = []
    seconds, memory = choices.prices.step_seconds, choices.prices.memory_bytes
    faster = np.flatnonzero(~choices.fits & (seconds < winner.predicted.step_seconds))
    if len(faster):
        first = choices[int(faster[np.lexsort([memory[faster], seconds[faster]])[0]])]
        told.append((first, why_too_big(winner, first, choices.budget)))
    losers = [choices[row] for row in distinct(choices, order, ALTERNATIVES + 1 - len(told))[1:]]
    told.extend((loser, why_slower(winner, loser, cluster, assumptions)) for loser in losers)
    return tuple(
        Alternative(
            summary=summarise(choice, workload),
            step_seconds=choice.predicted.step_seconds,
            memory_bytes=choice.predicted.memory_bytes,
            reason=reason,
        )
        for choice, reason in told
    )


def distinct(choices: Choices, order: np.ndarray, count: int) -> list[int]:
    """The first row of each mesh and remat, in the given order, at most `count` of them."""
    at = choices.candidates
    found: dict[tuple[int, ...], int] = {}
    for row in order.tolist():
        found.setdefault((*(int(size[row]) for size in at.sizes.values()), int(at.remat[row])), row)
        if len(found) == count:
            break
    return list(found.values())


def why_too_big(winner: Choice, loser: Choice, budget: float) -> str:
    memory = loser.predicted.memory
    part = max(memory, key=lambda name: memory[name] - winner.predicted.memory.get(name, 0.0))
    gain = 1.0 - loser.predicted.step_seconds / winner.predicted.step_seconds
    return (
        f"would be {gain:.0%} faster but does not fit: it needs {gib(loser.predicted.memory_bytes)} of "
        f"{gib(budget)}; {part} alone takes {gib(memory[part])} "
        f"(winner {gib(winner.predicted.memory.get(part, 0.0))})"
    )


def why_slower(winner: Choice, loser: Choice, cluster: Cluster, assumptions: Assumptions) -> str:
    mine, theirs = winner.predicted.seconds, loser.predicted.seconds
    part = max({**mine, **theirs}, key=lambda name: theirs.get(name, 0.0) - mine.get(name, 0.0))
    takes = duration(theirs.get(part, 0.0))
    term = f"{part} adds {takes}"
    if part in mine:
        term = f"{part} takes {takes} instead of {duration(mine[part])}"
    excess = loser.predicted.step_seconds / winner.predicted.step_seconds - 1.0
    if excess > assumptions.tie:
        return f"{excess:.1%} slower: {term}"
    if cluster.shared and loser.mesh != winner.mesh:
        return "the devices share the same cores, where splitting only the batch comes first"
    if excess >= 0:
        return f"a tie ({excess:.1%} slower): {term}"
    return f"a tie ({-excess:.1%} faster), but less simple: {loser.axes} mesh axes instead of {winner.axes}"

"""The paper's static strategy: of L blocks every ceil(sqrt(L))-th is stored, the others are recomputed.

It does not look at the budget. Where in a scan the stored blocks stand changes neither bytes nor seconds, so they are
gathered into one run: a loop per stored block would have to be compiled otherwise.
"""

import dataclasses
import math

from planners.plan import PlanError
from planners.remat.counts import allowed, split
from planners.remat.policy import Mix, Problem, fits
from planners.remat.refusal import refusal


def solve(problem: Problem) -> Mix:
    """Raises PlanError when that does not fit."""
    layers = sum(kind.count for kind in problem.classes)
    every, first, counts = math.isqrt(layers - 1) + 1, 0, []
    for k, kind in enumerate(problem.classes):
        kept = (first + kind.count) // every - first // every
        counts.append(split(problem, k, kept))
        first += kind.count
    mix = allowed(dataclasses.replace(problem, budget=math.inf), counts, "static")
    if not fits(mix, problem):
        raise PlanError(refusal(problem, mix, f"storing every {every}. layer"))
    return mix

"""The paper's algorithm 1: sort layers by recompute cost per byte, falling, and store each one that still fits.

Algorithm 1 as printed writes z = 0 for a stored layer, eq. 8 z = 1: here the same layers are stored, and z = 1 means
*store*. It knows two choices per layer: store it (the policy of the fewest extra seconds) or recompute it (the policy
of the fewest bytes).
"""

from planners.remat.counts import allowed, gathered, recomputed, split, stored
from planners.remat.policy import Mix, Problem, fits


def solve(problem: Problem) -> Mix:
    """Raises PlanError when recomputing every layer does not fit."""
    kinds = range(len(problem.classes))
    store, again = [stored(problem, k) for k in kinds], [recomputed(problem, k) for k in kinds]
    counts = [split(problem, k, 0) for k in kinds]

    def worth(kind: int) -> float:
        """Seconds of recomputing a layer per byte of storing it: tau/m."""
        more = problem.classes[kind].in_flight * (store[kind].kept - again[kind].kept)
        return (again[kind].seconds - store[kind].seconds) / more

    for kind in sorted((k for k in kinds if store[k].kept > again[k].kept), key=worth, reverse=True):
        for kept in range(1, problem.classes[kind].count + 1):
            more = split(problem, kind, kept)
            if not fits(gathered(problem, [*counts[:kind], more, *counts[kind + 1 :]]), problem):
                break
            counts[kind] = more
    return allowed(problem, counts, "recomputing every layer")

"""Strategies by the name that a user gives."""

import itertools
from collections.abc import Callable

import numpy as np

from planners.plan import PlanError
from planners.remat.policy import Mix, Problem, Run


def solve(problem: Problem) -> Mix:
    (layers,) = problem.classes
    L, best = layers.count, None
    P = sorted(layers.policies, key=lambda p: -p.transient)
    for size in (1, 2, 3):
        for combo in itertools.combinations(range(len(P)), min(size, len(P))):
            c = [P[i] for i in combo]
            m, t, s = (np.array([getattr(p, n) for p in c]) for n in ("kept", "transient", "seconds"))
            if size == 1:
                counts = np.array([[L]])
            elif size == 2:
                a = np.arange(2, L - 1)
                counts = np.stack([a, L - a], 1)
            else:
                a, b = (g.ravel() for g in np.meshgrid(np.arange(2, L - 3), np.arange(2, L - 3)))
                good = a + b <= L - 2
                counts = np.stack([a[good], b[good], L - a[good] - b[good]], 1)
            if not len(counts):
                continue
            peak = np.max(np.cumsum(counts * m, axis=1) + t, axis=1)
            sec = np.where(peak <= problem.budget, counts @ s, np.inf)
            i = int(np.argmin(sec))
            if np.isfinite(sec[i]) and (best is None or sec[i] < best[0]):
                best = (sec[i], [Run(0, p, int(n)) for p, n in zip(c, counts[i], strict=True)])
    if best is None:
        raise PlanError("nothing fits")
    return Mix.of(best[1], problem.classes)


SOLVERS: dict[str, Callable[[Problem], Mix]] = {"dp": solve}

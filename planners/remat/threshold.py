"""The rule of the paper's section 4.3.1: a layer is rematerialised when m(A_k) > M_threshold.

The paper gives no threshold; here it is the largest at which the step fits. Equal layers have equal m(A_k), so the rule
decides for all layers of a class at once: that is its weakness, not a simplification of it.
"""

from planners.plan import PlanError
from planners.remat.counts import recomputed, stored
from planners.remat.policy import Mix, Problem, fits
from planners.remat.refusal import refusal
from planners.remat.uniform import of_classes


def solve(problem: Problem) -> Mix:
    """Raises PlanError when no threshold fits."""
    kinds = range(len(problem.classes))
    sizes = [problem.classes[k].in_flight * stored(problem, k).kept for k in kinds]
    mixes = []
    for most in sorted({*sizes, 0.0}, reverse=True):
        mixes.append(with_threshold(problem, most))
        if fits(mixes[-1], problem):
            return mixes[-1]
    least = min(mixes, key=lambda mix: mix.peak)
    raise PlanError(refusal(problem, least, "the threshold that asks for the least"))


def with_threshold(problem: Problem, most: float) -> Mix:
    """Layers whose activations take more than `most` bytes are recomputed."""
    choose = [
        recomputed if kind.in_flight * stored(problem, k).kept > most else stored
        for k, kind in enumerate(problem.classes)
    ]
    return of_classes(problem, [pick(problem, k) for k, pick in enumerate(choose)])

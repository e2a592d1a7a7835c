"""Eqs. 10 and 13 read as a Lagrangian: every layer takes the policy of the least seconds + price x bytes.

Printed with a price of one second per byte, the sum has no meaning; with the price as a multiplier it is the relaxation
of "fewest seconds within the budget". The price falls through the values at which some layer changes its policy, down
to the least at which the stage still fits. Equal layers change together, so a mix of two policies is out of its reach:
the difference to its own lower bound, the duality gap, is reported.
"""

from dataclasses import dataclass

import numpy as np

from planners.plan import PlanError
from planners.remat.policy import Mix, Policy, Problem, fits
from planners.remat.prices import slopes
from planners.remat.refusal import refusal
from planners.remat.uniform import of_classes


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxation:
    """What the prices say.

    Attributes:
        price: seconds per byte at which `mix` is the best of all.
        mix: the layers' choices at that price.
        bound: seconds that no mix can go below: the largest value of the dual.
    """

    price: float
    mix: Mix
    bound: float

    @property
    def gap(self) -> float:
        """Seconds between the mix and the bound."""
        return self.mix.seconds - self.bound


def solve(problem: Problem) -> Mix:
    """Raises PlanError when the leanest policies do not fit."""
    return relax(problem).mix


def relax(problem: Problem) -> Relaxation:
    """The mix at the least price that fits, and the dual bound. Raises PlanError when no price fits."""
    usable = [[p for p in kind.policies if problem.may_run(k, p)] for k, kind in enumerate(problem.classes)]
    if not all(usable):
        raise PlanError("remat: a class has fewer layers than any of its groups; add a policy without groups")
    falling = [slopes(problem, choices)[0] for choices in (usable, [kind.policies for kind in problem.classes])]
    changes = np.unique(np.append(np.concatenate(falling), 0.0))
    # Between two changes nothing moves: one price of each interval is enough, and one above them all.
    between = [*(changes[:-1] + changes[1:]) / 2, 2 * changes[-1] + 1.0] if len(changes) > 1 else [1.0]
    found, mixes = None, []
    for price in [0.0, *between]:
        mixes.append(of_classes(problem, [_cheapest(problem, k, price, usable[k]) for k in range(len(usable))]))
        if fits(mixes[-1], problem):
            found = price
            break
    if found is None:
        raise PlanError(refusal(problem, min(mixes, key=lambda mix: mix.peak), "the leanest policy at any price"))
    return Relaxation(price=float(found), mix=mixes[-1], bound=max(dual(problem, price) for price in changes))


def dual(problem: Problem, price: float) -> float:
    """Seconds that any mix within the budget takes at least, says this price per byte."""
    layers = sum(
        kind.count * min(p.seconds + price * kind.in_flight * p.kept for p in kind.policies) for kind in problem.classes
    )
    return layers - price * problem.budget


def _cheapest(problem: Problem, kind: int, price: float, policies: list[Policy]) -> Policy:
    flights = problem.classes[kind].in_flight
    return min(policies, key=lambda p: (p.seconds + price * flights * p.kept, p.kept, p.transient))

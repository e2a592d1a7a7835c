"""Decides at the end of each epoch what the layers do in the next, by the costs as measured so far (eq. 13).

The dynamic program solves the problem at the believed costs, and at draws of them: a mix that would be the best if
recomputing were cheaper than believed is worth a trial while that is likely enough. A trial costs a compilation, and
may be left again; whether it is worth that is the rule of the learning agent (`planners.learning.agent`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from planners.learning.agent import trial_gains
from planners.learning.remat_costs import RematCosts, key
from planners.plan import PlanError
from planners.remat import dynamic
from planners.remat.policy import Run

Runs = tuple[Run, ...]
Kind = Literal["keep", "try", "return", "shrink"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Toggling:
    """How a decision is made.

    Attributes:
        solved: draws of the costs that the dynamic program is run on, besides their mean.
        draws: draws by which the mixes found are compared.
        worth: a change must be expected to save this share of the remaining time, as of the learning agent.
        sure: share of the draws in which a mix that ran before must be faster to be returned to.
        seed: of the draws.
    """

    solved: int = 16
    draws: int = 256
    worth: float = 0.005
    sure: float = 0.75
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Toggle:
    """What the layers do next, and why.

    Attributes:
        runs: with believed costs.
        kind: `keep` what runs, `try` a mix that has not run yet, `return` to one that has, `shrink` to one that needs
            no more than the budget, where what runs does.
        seconds: expected of a step; `gain` what is expected to be saved in the steps that are left, its price paid.
        peak: believed bytes.
    """

    runs: Runs
    kind: Kind
    reason: str
    seconds: float
    gain: float
    peak: float


def decide(
    costs: RematCosts,
    budget: float,
    now: Runs,
    seen: Sequence[Runs],
    *,
    epoch: int,
    left: int,
    trial: int,
    price: float,
    back: float = 0.0,
    banned: Callable[[Runs], bool] = lambda runs: False,
    toggling: Toggling | None = None,
) -> Toggle:
    """The mix of the next epoch.

    Args:
        costs: as measured so far.
        budget: bytes that a mix may use.
        now: what runs.
        seen: mixes whose program is there, `now` among them; to change to one costs `back` seconds.
        epoch: that has ended, from 1.
        left: steps until the end of the run, `trial` of them in the next epoch.
        price: seconds of compiling another mix.
        banned: mixes that were shown not to fit; what runs may be one of them, and is then left as soon as can be.
    """
    toggling = toggling or Toggling()
    random = np.random.default_rng((toggling.seed, epoch))
    layers = sum(run.layers for run in now)
    mixes = {named(runs): runs for runs in (now, *(each for each in seen if not banned(each)))}
    known = len(mixes)
    for factors in (None, *costs.time.draw(random, toggling.solved)):
        try:
            solved = dynamic.solve(costs.problem(budget, layers, factors)).runs
        except PlanError:  # at these peaks nothing fits: what runs is there all the same
            continue
        found = tuple(run for run in solved if run.policy.layer)
        if not banned(found):
            mixes.setdefault(named(found), found)
    names, tried = list(mixes), [costs.believed_runs(runs) for runs in mixes.values()]
    samples = costs.step_seconds(tried, costs.time.draw(random, toggling.draws))
    means = costs.step_seconds(tried, costs.time.mean[None])[0]
    home = int(np.argmin(means[:known]))
    prices = np.array([0.0 if name == named(now) else back if at < known else price for at, name in enumerate(names)])
    worth = toggling.worth * left * float(means[home])

    def say(at: int, kind: Kind, reason: str, gain: float) -> Toggle:
        return Toggle(
            runs=tried[at], kind=kind, reason=reason, seconds=float(means[at]), gain=gain, peak=costs.peak(tried[at])
        )

    here = names.index(named(now))
    if banned(now) and len(names) > 1:
        at = 1 + int(np.argmin(means[1:]))
        return say(at, "shrink", "what runs needs more than the budget", float(means[here] - means[at]) * left)
    gains = trial_gains(samples, home, left, prices, back, trial).mean(axis=0)
    if len(names) > known and gains[known:].max() > worth:
        best = known + int(np.argmax(gains[known:]))
        ahead = float(np.mean(samples[:, best] < samples[:, home]))
        why = (
            f"faster than the best that has run in {ahead:.0%} of {toggling.draws} draws; to try it is worth "
            f"{gains[best]:.3g} s in {left} steps, its price paid"
        )
        return say(best, "try", why, float(gains[best]))
    saved = float(np.mean(samples[:, here] - samples[:, home])) * left - prices[home]
    if home != here and saved > worth and float(np.mean(samples[:, home] < samples[:, here])) >= toggling.sure:
        why = f"{1 - means[home] / means[here]:.1%} faster as measured, which saves {saved:.3g} s in {left} steps"
        return say(home, "return", why, saved)
    why = "nothing else fits that is expected to be faster by more than its price"
    return say(here, "keep", why, 0.0)


def named(runs: Sequence[Run]) -> tuple[tuple[object, int], ...]:
    """What a mix does, whatever it costs."""
    return tuple((key(run.policy), run.layers) for run in runs)

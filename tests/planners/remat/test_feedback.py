"""Measured steps and peaks move the costs of eq. 13, and the layers then do what is best at the true costs."""

import dataclasses

import numpy as np
import pytest

from planners.learning.remat_costs import RematCosts
from planners.learning.remat_feedback import Toggle, decide, named
from planners.plan import PlanError
from planners.remat import dynamic
from planners.remat.policy import Layers, Mix, Policy, Problem, Run

NONE = Policy(name="none", save=None, kept=10.0, transient=1.0, seconds=0.0)
MOST = Policy(name="mlp", save=("mlp",), kept=6.0, transient=1.5, seconds=0.020)
SOME = Policy(name="qkv", save=("qkv",), kept=4.0, transient=1.5, seconds=0.024)
FULL = Policy(name="full", save=(), kept=1.0, transient=3.0, seconds=0.035)
POLICIES = (NONE, MOST, SOME, FULL)
LAYERS, BASE = 12, 1.0


def runs(*counts: tuple[Policy, int]) -> tuple[Run, ...]:
    return tuple(Run(0, policy, layers) for policy, layers in counts)


class Machine:
    """Steps take what these true policies take, times a nominal rate that is far off, and noise."""

    def __init__(self, true: dict[str, Policy], rate: float = 3.0, beyond: float = 0.0, noise: float = 0.004):
        self.true, self.rate, self.beyond = true, rate, beyond
        self.random, self.noise = np.random.default_rng(7), noise

    def seconds(self, mix: tuple[Run, ...], steps: int = 8) -> list[float]:
        extra = sum(run.layers * self.true[run.policy.name].seconds for run in mix)
        return list(self.rate * (BASE + extra) * (1 + self.noise * self.random.standard_normal(steps)))

    def problem(self, budget: float) -> Problem:
        return Problem(classes=(Layers(count=LAYERS, policies=tuple(self.true.values())),), budget=budget - self.beyond)

    def peak(self, mix: tuple[Run, ...]) -> float:
        truly = [run._replace(policy=self.true[run.policy.name]) for run in mix]
        held, most = 0.0, 0.0
        for run in truly:
            held += run.layers * run.policy.kept
            most = max(most, held + run.policy.transient)
        return most + self.beyond


def train(machine: Machine, budget: float, epochs: int, price: float = 3.0) -> tuple[list[Toggle], RematCosts]:
    """What is decided after each epoch of 8 steps."""
    costs = RematCosts(POLICIES, BASE)
    now = dynamic.solve(costs.problem(budget, LAYERS)).runs
    seen, banned, found = [now], set(), []
    costs.learn_peak(costs.predicted_runs(now), machine.peak(now))
    if machine.peak(now) > budget:
        banned.add(named(now))
    for epoch in range(1, epochs + 1):
        costs.learn_seconds(now, machine.seconds(now))
        toggle = decide(
            costs, budget, now, seen, epoch=epoch, left=8 * (epochs - epoch), trial=8, price=price,
            banned=lambda mix: named(mix) in banned,
        )  # fmt: skip
        found.append(toggle)
        mix = toggle.runs
        if named(mix) not in map(named, seen):
            costs.learn_peak(costs.predicted_runs(mix), machine.peak(mix))
            if machine.peak(mix) > budget:
                banned.add(named(mix))
                continue
            seen.append(mix)
        now = mix
    return found, costs


def extra(machine: Machine, mix: tuple[Run, ...]) -> float:
    return sum(run.layers * machine.true[run.policy.name].seconds for run in mix)


def test_layers_leave_a_policy_that_measures_slower_than_it_was_predicted():
    """Keeping `mlp` is truly no cheaper than keeping nothing, and `qkv` spares twice as much as predicted."""
    true = {"none": NONE, "full": FULL} | {
        "mlp": dataclasses.replace(MOST, seconds=0.034), "qkv": dataclasses.replace(SOME, seconds=0.012),
    }  # fmt: skip
    machine, budget = Machine(true), 78.0
    first = dynamic.solve(RematCosts(POLICIES, BASE).problem(budget, LAYERS))
    best = dynamic.solve(machine.problem(budget))
    assert {run.policy.name for run in first.runs} != {run.policy.name for run in best.runs}
    found, costs = train(machine, budget, 30, price=0.3)
    last = found[-1].runs
    assert extra(machine, first.runs) - best.seconds > 0.02, "there is something to win"
    assert extra(machine, last) - best.seconds < 0.25 * (extra(machine, first.runs) - best.seconds)
    kinds = [toggle.kind for toggle in found]
    assert kinds[0] == "try", "an early trial can be won back"
    assert kinds[-5:] == ["keep"] * 5, "in the end none can"
    believed = {each.name: each.seconds / costs.unit for each in costs.believed() if costs.unit}
    assert believed["qkv"] < SOME.seconds


def test_where_the_predictions_are_right_little_is_tried_and_nothing_is_lost():
    machine = Machine({each.name: each for each in POLICIES})
    found, costs = train(machine, 78.0, 20, price=8.0)
    best = dynamic.solve(machine.problem(78.0))
    assert extra(machine, found[-1].runs) == pytest.approx(best.seconds, rel=0.15)
    assert costs.unit == pytest.approx(3.0, rel=0.02)


def test_a_trial_whose_price_cannot_be_won_back_is_not_made():
    true = {"none": NONE, "full": FULL, "mlp": dataclasses.replace(MOST, seconds=0.034), "qkv": SOME}
    found, _ = train(Machine(true), 78.0, 10, price=1e4)
    assert [toggle.kind for toggle in found] == ["keep"] * 10


def test_peaks_that_are_higher_than_predicted_are_learned_and_no_mix_above_the_budget_runs():
    true = {each.name: dataclasses.replace(each, kept=1.05 * each.kept) for each in POLICIES}
    machine = Machine(true, beyond=2.0)
    costs = RematCosts(POLICIES, BASE)
    problem = costs.problem(90.0, LAYERS)
    tried = [runs((NONE, 4), (FULL, 8)), runs((SOME, 12)), runs((NONE, 2), (SOME, 5), (FULL, 5)), runs((FULL, 12))]
    for mix in tried:
        costs.learn_peak(mix, machine.peak(mix))
    fresh = runs((NONE, 6), (SOME, 3), (FULL, 3))
    believed = Mix.of(costs.believed_runs(fresh), problem.classes).peak
    predicted = Mix.of(fresh, problem.classes).peak
    assert abs(believed - machine.peak(fresh)) < 0.3 * abs(predicted - machine.peak(fresh))
    found, _ = train(machine, 78.0, 15)
    assert machine.peak(dynamic.solve(RematCosts(POLICIES, BASE).problem(78.0, LAYERS)).runs) > 78.0
    assert found[0].kind == "shrink"
    assert all(machine.peak(toggle.runs) <= 78.0 for toggle in found[-5:])


def test_beliefs_survive_a_restart():
    machine = Machine({each.name: each for each in POLICIES})
    _, costs = train(machine, 78.0, 4)
    again = RematCosts(POLICIES, BASE)
    again.restore(costs.to_json())
    assert again.believed() == costs.believed()
    np.testing.assert_array_equal(again.spread(), costs.spread())
    with pytest.raises(ValueError, match="other policies"):
        RematCosts(POLICIES[:3], BASE).restore(costs.to_json())


def test_epochs_that_differ_though_nothing_changed_count_for_less():
    """On a machine that others use, one slow epoch says little about the policy that ran in it."""
    quiet, loud = RematCosts(POLICIES, BASE), RematCosts(POLICIES, BASE)
    now, other = runs((NONE, 6), (FULL, 6)), runs((NONE, 6), (SOME, 6))
    for costs, medians in ((quiet, (3.0, 3.01, 2.99, 3.0)), (loud, (3.0, 3.6, 2.5, 3.0))):
        for median in medians:
            costs.learn_seconds(now, [median] * 8)
        costs.learn_seconds(other, [3.6] * 8)
    at = [each.name for each in quiet.policies].index("qkv")
    moved = [abs(costs.time.mean[1 + at] - 1.0) for costs in (loud, quiet)]
    assert moved[0] < 0.8 * moved[1]


def test_a_budget_that_nothing_fits_keeps_what_runs():
    costs = RematCosts(POLICIES, BASE)
    with pytest.raises(PlanError):
        dynamic.solve(costs.problem(1.0, LAYERS))
    now = runs((FULL, 12))
    costs.learn_seconds(now, [3.0] * 5)
    assert decide(costs, 1.0, now, [now], epoch=1, left=100, trial=10, price=1.0).kind == "keep"


def test_one_epoch_tells_the_unit_and_not_how_the_step_divides():
    costs = RematCosts(POLICIES, BASE)
    now = runs((NONE, 6), (FULL, 6))
    costs.learn_seconds(now, [4.0] * 5)
    assert costs.step_seconds([now], costs.time.mean[None])[0, 0] == pytest.approx(4.0)
    assert costs.unit == pytest.approx(4.0 / (BASE + 6 * FULL.seconds))
    assert costs.unit is not None
    assert costs.spread()[-1] > 0.3 * FULL.seconds * costs.unit

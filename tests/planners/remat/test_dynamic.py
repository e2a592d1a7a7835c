"""The dynamic program finds the best mix there is, by trying all of them."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planners.plan import PlanError
from planners.remat.dynamic import solve
from planners.remat.least import least
from planners.remat.policy import Layers, Mix, Policy, Problem, Run, fits, ordered, peak
from tests.planners.remat.instances import (
    brute_force,
    compositions,
    least_bytes,
    random_problem,
    sequences,
    simulated_peak,
)

FAMILIES = {
    "one class": {"layers": 9, "policies": 4, "most_segments": 3},
    "gradients": {"layers": 7, "policies": 3, "most_segments": 4, "freed": True},
    "stages": {"layers": 7, "policies": 4, "most_segments": 3, "flights": True},
    "groups": {"layers": 9, "policies": 4, "most_segments": 3, "groups": True},
    "two classes": {"classes": 2, "layers": 5, "policies": 3, "most_segments": 4},
    "three classes, all of it": {
        "classes": 3,
        "layers": 4,
        "policies": 3,
        "most_segments": 5,
        "freed": True,
        "flights": True,
        "groups": True,
    },
}


def problem_of(family: str, seed: int) -> Problem:
    return random_problem(np.random.default_rng(seed), whole=bool(seed % 2), **FAMILIES[family])


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=170, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_mix_that_fits_is_better(family: str, seed: int):
    problem = problem_of(family, seed)
    want = brute_force(problem)
    if want == np.inf:
        with pytest.raises(PlanError):
            solve(problem)
        return
    found = solve(problem)
    assert found.seconds == pytest.approx(want, rel=1e-12)
    assert fits(found, problem)
    assert simulated_peak(found.runs, problem) == pytest.approx(found.peak, rel=1e-12)
    assert check_shape(found, problem)


def check_shape(found: Mix, problem: Problem) -> bool:
    """Whether the mix is one of those that are allowed."""
    layers = [sum(run.layers for run in found.runs if run.kind == kind) for kind in range(len(problem.classes))]
    kinds = [run.kind for run in found.runs]
    return (
        layers == [kind.count for kind in problem.classes]
        and kinds == sorted(kinds)
        and len(found.runs) <= problem.most_segments
        and all(
            run.layers % run.policy.group == 0
            and (
                run.layers // run.policy.group >= problem.shortest
                or run.layers == problem.classes[run.kind].count < problem.shortest
            )
            for run in found.runs
        )
    )


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_least_hungry_mix_is_found(family: str, seed: int):
    problem = problem_of(family, seed)
    want = least_bytes(problem)
    if want == np.inf:
        with pytest.raises(PlanError, match=r"add up|too few"):
            least(problem)
        return
    found = least(problem)
    assert found.peak == pytest.approx(want, rel=1e-12)
    assert brute_force(dataclasses.replace(problem, budget=found.peak)) < np.inf


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_order_of_the_runs_has_a_lower_peak(seed: int):
    problem = problem_of("gradients", seed)
    every: dict[frozenset[tuple[int, str, int]], float] = {}
    for runs in sequences(problem):
        if len({p.name for _, p, _ in runs}) == len(runs):
            key = frozenset((kind, p.name, n) for kind, p, n in runs)
            every[key] = min(every.get(key, np.inf), simulated_peak(runs, problem))
    for key, want in every.items():
        by_name = {p.name: p for p in problem.classes[0].policies}
        runs = [Run(kind, by_name[name], n) for kind, name, n in key]
        assert peak(ordered(runs, problem.classes), problem.classes) == pytest.approx(want, rel=1e-12)


def test_compositions_are_all_there_are():
    assert compositions(4, 2) == ((1, 3), (2, 2), (3, 1))


def test_a_budget_that_nothing_fits_is_refused_with_what_would_do():
    policies = (
        Policy(name="none", save=None, kept=16 * 2.0**30, transient=0.0, seconds=0.0),
        Policy(name="full", save=(), kept=2.0**30, transient=16 * 2.0**30, seconds=1.0),
    )
    problem = Problem(classes=(Layers(count=32, policies=policies, in_flight=2),), budget=40 * 2.0**30)
    with pytest.raises(PlanError, match=r"needs 80\.000 GiB .* 40\.000 GiB are left") as refused:
        solve(problem)
    for remedy in ("fewer sequences per microbatch", "more loss chunks", "in groups", "fewer pipeline stages"):
        assert remedy in str(refused.value)
    assert solve(dataclasses.replace(problem, budget=80 * 2.0**30)).summary() == "full x32"

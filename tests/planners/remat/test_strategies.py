"""Every strategy obeys the stage, none beats the dynamic program, and each does what its rule says."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planners.plan import PlanError
from planners.remat import dynamic, exact, greedy, lagrangian, static, threshold
from planners.remat.policy import Layers, Policy, Problem, fits
from planners.remat.solvers import SOLVERS
from planners.remat.uniform import uniforms
from tests.planners.remat.instances import random_problem, simulated_peak
from tests.planners.remat.test_dynamic import check_shape

GIB = 2.0**30
NONE = Policy(name="none", save=None, kept=8.0, transient=1.0, seconds=0.0)
SOME = Policy(name="some", save=("context",), kept=3.0, transient=5.0, seconds=0.3)
FULL = Policy(name="full", save=(), kept=1.0, transient=8.0, seconds=1.0)
GROUPS = Policy(name="full by 4", save=(), group=4, kept=0.25, transient=32.0, seconds=1.0)


def stage(count: int, budget: float, *policies: Policy, **changes) -> Problem:
    return Problem(classes=(Layers(count=count, policies=policies or (NONE, SOME, FULL)),), budget=budget, **changes)


def seconds(solve, problem: Problem) -> float:
    """inf where the strategy finds nothing that fits."""
    try:
        found = solve(problem)
    except PlanError:
        return np.inf
    assert fits(found, problem)
    assert check_shape(found, problem)
    assert found.peak == pytest.approx(simulated_peak(found.runs, problem), rel=1e-12)
    return found.seconds


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_nothing_beats_the_dynamic_program(seed: int):
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(1, 4))
    problem = random_problem(
        rng, classes=classes, layers=40, policies=6, most_segments=5, flights=seed % 2 == 0, freed=seed % 3 == 0
    )
    best = seconds(dynamic.solve, problem)
    for name in ("greedy", "learned", "threshold", "lagrangian", "static"):
        assert best <= seconds(SOLVERS[name], problem) * (1 + 1e-12), name
    for name, mix in uniforms(problem).items():
        assert not fits(mix, problem) or best <= mix.seconds * (1 + 1e-12), name
    if best < np.inf:
        assert lagrangian.dual(problem, 0.0) <= best


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_dynamic_program_equals_the_integer_program(seed: int):
    check_against_milp(seed, layers=24, policies=5)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_dynamic_program_equals_the_integer_program_on_many_layers(seed: int):
    check_against_milp(seed, layers=64, policies=8)


def check_against_milp(seed: int, *, layers: int, policies: int):
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(1, 3))
    problem = random_problem(
        rng,
        classes=classes,
        layers=layers // classes,
        policies=policies,
        most_segments=4,
        whole=seed % 2 == 0,
        freed=bool(rng.integers(2)),
        flights=bool(rng.integers(2)),
        groups=bool(rng.integers(2)),
    )
    assert seconds(dynamic.solve, problem) == pytest.approx(seconds(exact.solve, problem), rel=1e-7)


def test_greedy_is_algorithm_1():
    """Stores the first layers that fit: 8 a + 1 (10 - a) bytes and the stored ones' transient of 1 within 60."""
    assert greedy.solve(stage(10, 60.0)).summary() == "full x3, none x7"
    two = Problem(
        classes=(
            Layers(count=4, policies=(NONE, dataclasses.replace(FULL, seconds=7.0))),
            Layers(count=4, policies=(NONE, dataclasses.replace(FULL, seconds=14.0))),
        ),
        budget=8.0 + 28.0 + 1.0,
    )
    # The second class costs more per byte: all of it is stored before any of the first.
    assert greedy.solve(two).summary() == "full x4, none x4"


def test_static_stores_every_sixth_of_32_layers_whatever_the_budget():
    for budget in (1e3, 1e6):
        assert static.solve(stage(32, budget)).summary() == "full x27, none x5"
    with pytest.raises(PlanError, match=r"storing every 6\. layer"):
        static.solve(stage(32, 40.0))


def test_a_threshold_decides_for_all_equal_layers_at_once():
    assert threshold.solve(stage(10, 80.0)).summary() == "full x10"
    assert threshold.solve(stage(10, 81.0)).summary() == "none x10"
    small = Layers(count=4, policies=(dataclasses.replace(NONE, kept=4.0), FULL))
    both = Problem(classes=(Layers(count=4, policies=(NONE, FULL)), small), budget=30.0)
    assert threshold.with_threshold(both, 5.0).summary() == "full x4, none x4"
    assert threshold.solve(both).summary() == "full x4, none x4"


def test_the_price_per_byte_moves_all_equal_layers_at_once_and_the_gap_is_told():
    problem = stage(10, 60.0)
    relaxed = lagrangian.relax(problem)
    assert relaxed.mix.summary() == "some x10"
    assert relaxed.bound <= dynamic.solve(problem).seconds < relaxed.mix.seconds
    # The bound is the mix of both neighbours that fills the budget: 30 + 5 b = 60 bytes, 0.3 (10 - b) seconds.
    assert relaxed.bound == pytest.approx(0.3 * 4)
    assert relaxed.gap == pytest.approx(0.3 * 6)
    assert 0.3 / 5 < relaxed.price < 0.7 / 2


def test_full_and_none_are_what_they_say():
    assert SOLVERS["full"](stage(10, 60.0)).summary() == "full x10"
    assert SOLVERS["none"](stage(10, 81.0)).summary() == "none x10"
    with pytest.raises(PlanError, match="none for every layer needs"):
        SOLVERS["none"](stage(10, 80.0))
    with pytest.raises(PlanError, match="remat full: no such policy among none, some"):
        SOLVERS["full"](stage(10, 80.0, NONE, SOME))


def test_groups_go_below_what_one_input_per_layer_needs():
    # 12 / 4 bytes and 32 while a group goes back; before that 3 + 4 x 8 + 1 while a layer that keeps all does.
    assert dynamic.solve(stage(16, 36.0, NONE, FULL, GROUPS)).summary() == "full by 4 x12, none x4"
    with pytest.raises(PlanError, match="in groups"):
        dynamic.solve(stage(40, 47.9, NONE, FULL))
    assert dynamic.solve(stage(40, 47.9, FULL, GROUPS)).seconds == 40.0


def test_the_learned_strategy_is_near_the_best():
    """On stages like those it was trained on, but others."""
    from planners.remat.learned import network
    from planners.remat.training import excess

    learned, best = excess(network(), np.random.default_rng(12345), 60)
    assert best <= learned <= 1.1 * best


# 22B parameters, Korthikanti et al. (arXiv:2205.05198): 48 layers, 8 tensor ranks; units of s b h bytes, ms per layer.
KORTHIKANTI = (
    Policy(name="none", save=None, kept=(34 + 5 * 64 * 2048 / 6144) / 8, transient=0.0, seconds=19.0 - 19.0),
    Policy(name="selective", save=("all but scores",), kept=34 / 8, transient=0.0, seconds=20.3 - 19.0),
    Policy(name="full", save=(), kept=2.0, transient=0.0, seconds=27.2 - 19.0),
)


@pytest.mark.parametrize(
    ("budget", "counts", "percent"),
    [
        (0.90, (41, 7, 0), 1.0),
        (0.75, (32, 16, 0), 2.3),
        (0.50, (16, 32, 0), 4.6),
        (0.24, (0, 47, 1), 7.6),
        (0.20, (0, 32, 16), 19.0),
        (0.15, (0, 13, 35), 33.3),
    ],
)
def test_mixes_of_korthikantis_layers(budget: float, counts: tuple[int, int, int], percent: float):
    """The mixes that trying all counts gives at a share of what storing everything takes."""
    most = 48 * KORTHIKANTI[0].kept
    found = dynamic.solve(stage(48, budget * most, *KORTHIKANTI, shortest=1))
    by_name = {run.policy.name: run.layers for run in found.runs}
    assert tuple(by_name.get(policy.name, 0) for policy in KORTHIKANTI) == counts
    assert 100 * found.seconds / (48 * 19.0) == pytest.approx(percent, abs=0.06)
    looped = dynamic.solve(stage(48, budget * most, *KORTHIKANTI))
    assert all(run.layers >= 2 for run in looped.runs)
    assert looped.seconds >= found.seconds


def test_a_lone_layer_is_not_left_over():
    most = 48 * KORTHIKANTI[0].kept
    found = dynamic.solve(stage(48, 0.24 * most, *KORTHIKANTI))
    assert {run.policy.name: run.layers for run in found.runs} == {"selective": 46, "full": 2}

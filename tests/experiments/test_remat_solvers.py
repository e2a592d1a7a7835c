"""The benchmark of the strategies: what it compares, and that it would show a strategy that is better, or a miss."""

import numpy as np
import pytest

from experiments.benchmarks import remat_solvers
from experiments.benchmarks.remat_solvers import Config, execute, instance, judged, seconds, stage
from planners.remat import dynamic, exact
from planners.remat.policy import Mix, Problem
from planners.remat.uniform import full


def test_a_few_instances_and_the_table_that_they_give(tmp_path):
    report = execute(Config(instances=25, timed=3, layers=12, policies=4), tmp_path)
    rows = {(row.what, row.quantity): row for row in report.rows}
    first = rows["dp", "instances equal to the integer program"]
    assert first.measured == "25 of 25"
    assert "target all: met" in first.note
    closed = {row.what: float(row.measured or 0.0) for row in report.rows if row.quantity == "gap closed, %"}
    assert closed["dp"] == pytest.approx(100)
    assert closed["full"] == pytest.approx(0)
    assert all(-1e-9 <= closed[name] <= 100 + 1e-9 for name in ("greedy", "lagrangian", "learned", "best uniform"))
    assert closed["greedy"] > closed["none"]
    assert sum("ms, " in row.quantity for row in report.rows) == 3


def test_a_strategy_that_beats_the_dynamic_program_would_show(monkeypatch):
    def lazy(problem: Problem) -> Mix:
        return full(problem)

    monkeypatch.setattr(remat_solvers.dynamic, "solve", lazy)
    equal, _, worst, tallies = judged(Config(instances=10, layers=10, policies=4))
    assert equal < 10
    assert worst > 1e-3
    assert tallies["greedy"].better > 0


def test_stages_are_of_every_kind():
    rng = np.random.default_rng(3)
    found = [instance(rng, 16, 5) for _ in range(60)]
    assert {len(problem.classes) for problem in found} == {1, 2, 3}
    assert {problem.classes[0].in_flight for problem in found} >= {1, 2, 3, 4}
    assert any(problem.classes[0].freed for problem in found)
    assert any(policy.group == 2 for problem in found for policy in problem.classes[0].policies)
    sizes = [seconds(dynamic.solve, problem) for problem in found]
    assert 0.0 in sizes, "some budgets hold everything"
    assert any(0 < size < np.inf for size in sizes)


def test_a_timed_stage_has_so_many_layers_and_policies_and_is_solved_exactly():
    problem = stage(np.random.default_rng(1), 128, 32)
    (kind,) = problem.classes
    assert (kind.count, len(kind.policies)) == (128, 32)
    small = stage(np.random.default_rng(1), 16, 6, flying=3)
    assert dynamic.solve(small).seconds == pytest.approx(exact.solve(small).seconds, rel=1e-7)

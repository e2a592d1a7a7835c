"""Rotor's dynamic program: its schedules run within their memory, and it agrees with ours where both may do that."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planners.plan import PlanError
from planners.remat import dynamic
from planners.remat.chain import Block, Schedule, solve
from planners.remat.policy import Layers, Policy, Problem


def walk(blocks: list[Block], schedule: Schedule) -> tuple[float, float]:
    """(peak bytes, seconds of all forward passes), step by step; fails when a step lacks what it reads."""
    values: set[int] = set()
    inputs, at, back = {0}, 0, len(blocks)
    peak, seconds = 0.0, 0.0

    def held() -> float:
        """All values of some blocks, the kept inputs that are no output among them, and the output's gradient."""
        size = sum(blocks[k].values for k in values)
        size += sum(blocks[k - 1].output for k in inputs if k > 0 and k - 1 not in values)
        return size + blocks[back - 1].output

    for what, k in schedule.steps:
        block = blocks[k]
        if what == "back":
            assert k == back - 1
            assert k in values
            peak = max(peak, held() + block.working)
            values.discard(k)
            inputs.discard(k + 1)
            back = k
            continue
        assert k == at or k in inputs or k - 1 in values
        seconds += block.forward
        if what == "all":
            values.add(k)
            peak = max(peak, held() + block.working)
        else:
            if what == "input":
                inputs.add(k)
            carried = 0.0 if k in inputs or k - 1 in values or k == 0 else blocks[k - 1].output
            peak = max(peak, held() + carried + block.output + block.working)
        at = k + 1
    assert back == 0
    return peak, seconds


def random_chain(rng: np.random.Generator) -> list[Block]:
    outputs = rng.integers(1, 8, int(rng.integers(1, 8)))
    return [
        Block(
            forward=float(rng.integers(1, 10)),
            output=float(size),
            values=float(size + rng.integers(0, 20)),
            working=float(rng.integers(0, 5)),
        )
        for size in outputs
    ]


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_schedule_runs_within_its_budget(seed: int):
    rng = np.random.default_rng(seed)
    blocks = random_chain(rng)
    budget = float(rng.integers(5, 80))
    try:
        found = solve(blocks, budget)
    except PlanError:
        return
    peak, seconds = walk(blocks, found)
    assert peak <= budget
    assert found.seconds == pytest.approx(seconds - sum(block.forward for block in blocks))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_equal_blocks_cost_what_the_dynamic_program_says(seed: int):
    """Ours with groups of every size; below what it can do, rotor recomputes several times."""
    rng = np.random.default_rng(seed)
    count, output, working = (int(rng.integers(low, high)) for low, high in ((2, 9), (1, 5), (0, 6)))
    values = output + int(rng.integers(0, 30))
    budget = float(rng.integers(output + values + working, count * values + output + working + 1))
    none = Policy(name="none", save=None, kept=values, transient=output + working, seconds=0.0)
    groups = tuple(
        Policy(name=f"by {n}", save=(), group=n, kept=output / n, transient=n * values + working, seconds=1.0)
        for n in range(1, count + 1)
    )
    problem = Problem(
        classes=(Layers(count=count, policies=(none, *groups)),), budget=budget, shortest=1, most_segments=count
    )
    block = Block(forward=1.0, output=float(output), values=float(values), working=float(working))
    oracle = _seconds(lambda: solve([block] * count, budget).seconds)
    ours = _seconds(lambda: dynamic.solve(problem).seconds)
    assert oracle == ours if ours < np.inf else oracle >= count or oracle == np.inf


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_unequal_blocks_never_cost_more_than_one_choice_for_each(seed: int):
    rng = np.random.default_rng(seed)
    blocks = random_chain(rng)
    budget = float(rng.integers(20, 80))
    kinds = []
    for block in blocks:
        none = Policy(name="none", save=None, kept=block.values, transient=block.output + block.working, seconds=0.0)
        full = Policy(
            name="full", save=(), kept=block.output, transient=block.values + block.working, seconds=block.forward
        )
        kinds.append(Layers(count=1, policies=(none, full)))
    problem = Problem(classes=tuple(kinds), budget=budget, shortest=1, most_segments=len(kinds))
    assert _seconds(lambda: solve(blocks, budget).seconds) <= _seconds(lambda: dynamic.solve(problem).seconds)


def test_a_chain_that_fits_nowhere_is_refused():
    with pytest.raises(PlanError, match="2 blocks does not fit in 10 bytes"):
        solve([Block(forward=1.0, output=4.0, values=9.0)] * 2, 10.0)


def _seconds(solve) -> float:
    try:
        return solve()
    except PlanError:
        return np.inf

"""Shares follow measured throughput by eq. 6: in proportion, soon, in whole microbatches, and only for a reason."""

import json
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planners.balance import Balance, Shares, begin, eq6, observe, quotas, resume, whole

rates_of = st.lists(st.floats(0.05, 20.0), min_size=2, max_size=9)


def run(
    speeds: Callable[[int], Sequence[float]], *, steps: int, noise: float, seed: int, balance: Balance = Balance()
) -> list[tuple[int, ...]]:
    """The shares after each step, with lognormal noise and one step in a hundred that takes three times as long."""
    random = np.random.default_rng(seed)
    shares, seen = begin(balance, len(speeds(0)), 64), []
    for step in range(steps):
        rates = 1e4 * np.asarray(speeds(step)) * np.exp(noise * random.normal(size=len(speeds(step))))
        rates *= np.where(random.random(len(rates)) < 0.01, 1 / 3, 1.0)
        shares = observe(balance, shares, rates)
        seen.append(shares.microbatches)
    return seen


def moves(seen: list[tuple[int, ...]]) -> list[int]:
    return [step for step in range(1, len(seen)) if seen[step] != seen[step - 1]]


@given(st.floats(1.0, 1e6), st.floats(1.0, 1e6), st.floats(0.1, 3.0))
def test_two_replicas_share_by_the_sigmoid_of_equation_6(one, other, gamma):
    alpha = np.exp(eq6(Balance(gamma=gamma), np.log([one, other])))
    assert alpha[0] == pytest.approx(1 / (1 + math.exp(-gamma * (math.log(one) - math.log(other)))), rel=1e-9)
    assert alpha.sum() == pytest.approx(1.0)


def test_raw_throughput_as_eta_saturates_as_the_paper_has_it():
    assert math.exp(eq6(Balance(literal=True), np.log([1500.0, 1000.0]))[0]) == 1.0
    shares = begin(Balance(literal=True), 2, 16)
    for _ in range(3):
        shares = observe(Balance(literal=True), shares, [1500.0, 1000.0])
    assert shares.microbatches == (15, 1)


@given(rates_of)
def test_gamma_1_gives_shares_in_proportion_to_throughput(rates):
    alpha = np.exp(eq6(Balance(), np.log(rates)))
    np.testing.assert_allclose(alpha, np.array(rates) / sum(rates), rtol=1e-9)


@given(rates_of, st.integers(0, 100), st.floats(1.0, 4.0), st.floats(0.0, 4.0), st.booleans())
def test_microbatches_add_up_within_bounds_and_within_one_of_the_quota(rates, more, ceiling, gamma, literal):
    balance, replicas, total = Balance(ceiling=ceiling, gamma=gamma, literal=literal), len(rates), len(rates) + more
    low, high = balance.bounds(replicas, total)
    quota = quotas(eq6(balance, np.log(rates) + 3.0), total, low, high)
    assert quota.sum() == pytest.approx(total)
    counts = whole(quota, total)
    assert sum(counts) == total
    assert low <= min(counts) <= max(counts) <= high
    assert np.abs(np.array(counts) - quota).max() < 1.0


def test_what_rounding_leaves_goes_to_those_who_finish_first():
    assert whole(np.array([128 / 7, 128 / 7, 128 / 7, 64 / 7]), 64) == (19, 18, 18, 9)
    assert whole(np.array([2.0, 3.0, 4.0]), 9) == (2, 3, 4)


def test_a_replica_at_half_speed_has_half_the_work_three_steps_later():
    seen = run(lambda k: [1, 1, 1, 0.5 if k >= 20 else 1], steps=60, noise=0.0, seed=1)
    assert seen[19] == (16, 16, 16, 16)
    assert seen[22] == (19, 18, 18, 9)
    back = run(lambda k: [1, 1, 1, 0.5 if 20 <= k < 60 else 1], steps=90, noise=0.0, seed=1)
    assert back[62] == back[-1] == (16, 16, 16, 16)


@pytest.mark.parametrize(("noise", "most"), [(0.02, 1), (0.05, 3), (0.1, 4)])
def test_noise_moves_nothing_back_and_forth(noise, most):
    for seed in range(2):
        seen = run(lambda k: [1, 1, 1, 0.5], steps=400, noise=noise, seed=seed)
        kept = [seen[step] for step in [0, *moves(seen)]]
        assert len(kept) == len(set(kept)), f"seed {seed} came back to shares that it had left: {kept}"
        assert len(moves(seen)) <= most


def test_without_hysteresis_the_same_noise_does():
    restless = Balance(hysteresis=0.0, confidence=0.0)
    assert len(moves(run(lambda k: [1, 1, 1, 0.5], steps=300, noise=0.05, seed=0, balance=restless))) > 20


def test_one_interrupted_step_moves_nothing():
    shares = begin(Balance(), 2, 16)
    for step in range(20):
        shares = observe(Balance(), shares, [1.0, 0.1 if step == 9 else 1.0])
        assert shares.microbatches == (8, 8)


def test_gamma_0_keeps_the_shares_even():
    seen = run(lambda k: [1, 0.3], steps=30, noise=0.01, seed=0, balance=Balance(gamma=0.0))
    assert set(seen) == {(32, 32)}


def test_shares_survive_json_and_go_on_as_if_nothing_had_happened():
    random, shares = np.random.default_rng(2), begin(Balance(), 4, 32)
    for _ in range(7):
        shares = observe(Balance(), shares, random.lognormal(0, 0.1, 4) * [1, 1, 1, 0.5])
    again = resume(Balance(), json.loads(json.dumps(shares.to_json())), 4, 32)
    assert again == shares
    assert observe(Balance(), again, [1, 1, 1, 0.5]) == observe(Balance(), shares, [1, 1, 1, 0.5])


@pytest.mark.parametrize(
    ("replicas", "total", "expected"),
    [(2, 32, (19, 13)), (8, 64, (9, 9, 9, 9, 9, 9, 5, 5)), (4, 16, (5, 4, 4, 3)), (1, 16, (16,))],
)
def test_other_replicas_take_over_the_part_of_the_batch_at_their_place(replicas, total, expected):
    saved = Shares(microbatches=(9, 9, 9, 5), alpha=(2 / 7, 2 / 7, 2 / 7, 1 / 7)).to_json()
    resumed = resume(Balance(), saved, replicas, total)
    assert resumed.total == total
    assert np.abs(np.array(resumed.microbatches) - expected).max() <= 1, resumed.microbatches
    assert resumed.measured == ()


def test_what_cannot_be_shared_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match="3 microbatches cannot be shared by 4 replicas"):
        begin(Balance(), 4, 3)
    with pytest.raises(ValueError, match="one positive number for each of 2 replicas"):
        begin(Balance(), 2, 8, (1.0, 0.0))
    with pytest.raises(ValueError, match="one positive number for each of 2"):
        observe(Balance(), begin(Balance(), 2, 8), [1.0, 0.0])
    with pytest.raises(ValueError, match="no shares can be read"):
        resume(Balance(), {"microbatches": [1]}, 1, 1)
    with pytest.raises(ValueError, match="gamma=-1"):
        Balance(gamma=-1)
    with pytest.raises(ValueError, match="window=2"):
        Balance(window=2)
    with pytest.raises(ValueError, match=r"ceiling=0\.5"):
        Balance(ceiling=0.5)

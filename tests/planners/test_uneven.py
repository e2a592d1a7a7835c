"""Splits for unequal devices are the best there are, by trying all of them."""

import itertools

import numpy as np
import pytest

from planners.space.uneven import balance, pipeline_seconds, split_batch, split_chain, split_layers


def every_split(layers: int, stages: int):
    for cuts in itertools.combinations(range(1, layers), stages - 1):
        edges = (0, *cuts, layers)
        yield np.diff(edges)


@pytest.mark.parametrize("seed", range(8))
def test_no_split_of_equal_layers_has_a_faster_slowest_stage(seed: int):
    random = np.random.default_rng(seed)
    each, extra = random.uniform(0.5, 3.0, 4), random.uniform(0.0, 4.0, 4)
    most = random.integers(3, 10, 4)
    found = split_layers(each, 12, extra=extra, most=most)
    options = [s for s in every_split(12, 4) if np.all(s <= most)]
    if found is None:
        assert not options
        return
    assert found.sum() == 12
    assert np.all((found >= 1) & (found <= most))
    assert np.max(extra + each * found) == pytest.approx(min(np.max(extra + each * s) for s in options))


def test_a_device_twice_as_fast_gets_twice_the_layers():
    assert split_layers([1.0, 2.0], 30).tolist() == [20, 10]  # pyright: ignore[reportOptionalMemberAccess]


def test_layers_that_fit_nowhere_are_refused():
    assert split_layers([1.0, 1.0], 10, most=[4, 5]) is None
    assert split_layers([1.0, 1.0], 10, most=[5, 5]) is not None


@pytest.mark.parametrize("seed", range(6))
def test_no_split_of_unequal_layers_has_a_faster_slowest_stage(seed: int):
    random = np.random.default_rng(seed)
    seconds = random.uniform(0.5, 3.0, (3, 9))
    sizes, room = random.uniform(1, 2, 9), [6.0, 7.0, 5.5]
    found = split_chain(seconds, sizes=list(sizes), room=room)

    def slowest(split: np.ndarray) -> float:
        edges = np.concatenate([[0], np.cumsum(split)])
        if any(sizes[edges[i] : edges[i + 1]].sum() > room[i] for i in range(3)):
            return np.inf
        return max(seconds[i, edges[i] : edges[i + 1]].sum() for i in range(3))

    best = min(slowest(split) for split in every_split(9, 3))
    if found is None:
        assert best == np.inf
    else:
        assert slowest(np.array(found)) == pytest.approx(best)


def test_shares_are_proportional_to_speed_and_add_up():
    shares = split_batch([3.0, 1.0], 64)
    assert shares.tolist() == [48, 16]
    uneven = split_batch([2.9, 1.0, 1.1], 40, microbatch=2)
    assert uneven.sum() == 40
    assert np.all(uneven % 2 == 0)


@pytest.mark.parametrize("seed", range(6))
def test_no_other_shares_finish_earlier(seed: int):
    random = np.random.default_rng(seed)
    speeds, fixed = random.uniform(1.0, 4.0, 3), random.uniform(0.0, 2.0, 3)
    found = split_batch(speeds, 20, fixed=fixed)
    best = min(np.max(fixed + split / speeds) for split in every_split(20, 3))
    assert np.max(fixed + found / speeds) == pytest.approx(best)


def test_a_batch_that_microbatches_cannot_make_is_refused():
    with pytest.raises(ValueError, match="whole microbatches of 3"):
        split_batch([1.0, 1.0], 10, microbatch=3)
    with pytest.raises(ValueError, match="add up"):
        split_batch([1.0, 1.0], 9, microbatch=[2, 4])


def test_a_pipeline_waits_for_its_slowest_stage():
    assert pipeline_seconds([1.0, 1.0, 1.0, 1.0], 8) == pytest.approx(8 + 3)
    assert pipeline_seconds([1.0, 3.0], 8) == pytest.approx(8 * 3 + 1)
    assert pipeline_seconds([1.0, 1.0, 1.0, 1.0], 8, virtual=3) == pytest.approx(8 + 3 / 3)
    assert balance(np.array([1.0, 3.0])) == pytest.approx(2 / 3)

"""The simulator against the closed forms of pipelines (planners.md 3.6 and the papers of each schedule)."""

import itertools
from typing import Any, cast

import numpy as np
import pytest

from planners.schedules.durations import Duration
from planners.schedules.pipeline_time import pipeline_seconds
from planners.schedules.pipelines import PIPELINES, Shape, stage_durations
from planners.schedules.profiling import Profile
from planners.schedules.simulate import run

SIZES = [(1, 1), (2, 1), (2, 2), (4, 4), (4, 8), (3, 12), (8, 16), (5, 7)]


def step(shape: Shape, forward, backward, **more) -> float:
    known = stage_durations(shape, [Duration(f) for f in forward], [Duration(b) for b in backward], **more)
    return float(run(shape.graph, shape.order(), Profile(known).draw(shape.graph, 1, 0)).makespan[0])


@pytest.mark.parametrize("pipeline", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("p", "m"), SIZES)
def test_equal_stages_take_m_plus_p_less_one_turns(pipeline, p, m):
    assert step(Shape(pipeline, p, m), [1.0], [2.0]) == pytest.approx((m + p - 1) * 3.0)


@pytest.mark.parametrize(
    ("p", "m", "v"), [(2, 2, 2), (4, 4, 3), (4, 8, 2), (4, 16, 5), (8, 16, 2), (2, 6, 3), (3, 9, 4)]
)
def test_the_interleaved_bubble_is_p_less_one_over_v_m(p, m, v):
    busy = m * 3.0
    got = step(Shape("interleaved", p, m, v), [1.0 / v], [2.0 / v])
    assert got / busy - 1.0 == pytest.approx((p - 1) / (v * m))


@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 8), (4, 12), (8, 16)])
def test_the_zero_bubble_schedule_has_the_bubble_of_its_paper(p, m):
    """ZB-H1, arXiv:2401.10241, table 2: (p - 1) (T_F + T_B - T_W)."""
    f, b, w = 1.0, 1.2, 0.8
    got = step(Shape("zero_bubble", p, m), [f], [b + w], weight_share=w / (b + w))
    assert got == pytest.approx(m * (f + b + w) + (p - 1) * (f + b - w))


@pytest.mark.parametrize("slowest", [0, 1, 3])
def test_unequal_stages_take_their_sum_and_the_slowest_for_every_further_microbatch(slowest):
    """Exact for GPipe; 1F1B does no worse, and better where the slowest stage warms up meanwhile."""
    forward = [1.0 + (i == slowest) for i in range(4)]
    backward = [2.0 * f for f in forward]
    turns = [f + b for f, b in zip(forward, backward, strict=True)]
    closed = sum(turns) + 11 * max(turns)
    assert step(Shape("gpipe", 4, 12), forward, backward) == pytest.approx(closed)
    taken = step(Shape("1f1b", 4, 12), forward, backward)
    assert taken == pytest.approx(closed) if slowest == 3 else 0.9 * closed < taken < closed


def test_a_message_between_stages_is_paid_on_the_way_in_and_out_and_in_1f1b_once_per_turn():
    c, p, m = 0.25, 4, 16
    gpipe = step(Shape("gpipe", p, m), [1.0], [2.0], send=Duration(c))
    assert gpipe == pytest.approx((m + p - 1) * 3.0 + 2 * (p - 1) * c)
    taut = step(Shape("1f1b", p, m), [1.0], [2.0], send=Duration(c))
    assert taut > gpipe
    assert taut <= (m + p - 1) * (3.0 + 2 * c)


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_1f1b_holds_no_more_than_p_less_i_microbatches_and_gpipe_all(p, m):
    assert Shape("1f1b", p, m).in_flight(Shape("1f1b", p, m).order()) == [min(m, p - i) for i in range(p)]
    assert Shape("gpipe", p, m).in_flight(Shape("gpipe", p, m).order()) == [m] * p


def test_the_first_device_of_an_interleaved_pipeline_holds_what_korthikanti_count():
    """1 + (p - 1) / (p v) of a full pipeline's p microbatches (arXiv:2205.05198, section 4.2.3)."""
    p, m, v = 8, 64, 3
    shape = Shape("interleaved", p, m, v)
    assert shape.in_flight(shape.order())[0] / v == pytest.approx(p * (1 + (p - 1) / (p * v)))


def test_what_each_device_does_at_the_end_of_a_step_is_added():
    shape = Shape("1f1b", 4, 8, tail=("reduce", "update"))
    assert step(shape, [1.0], [2.0], tail=[Duration(5.0), Duration(0.5)]) == pytest.approx(11 * 3.0 + 5.5)


def test_every_device_runs_every_pass_of_its_chunks_exactly_once():
    for pipeline in PIPELINES:
        v = 3 if pipeline == "interleaved" else 1
        shape = Shape(pipeline, 4, 8, v)
        shape.graph.check(shape.order())
        held = [turn[1:] for i in range(4) for turn in shape.turns(i) if turn[0] == "forward"]
        assert sorted(held) == sorted(itertools.product(range(4 * v), range(8)))


def test_impossible_pipelines_are_refused_with_the_reason():
    bad = cast(Any, "2f2b")
    with pytest.raises(ValueError, match="no multiple"):
        Shape("interleaved", 4, 6, 2)
    with pytest.raises(ValueError, match="use interleaved"):
        Shape("1f1b", 4, 8, 2)
    with pytest.raises(ValueError, match="known: gpipe"):
        Shape(bad, 4, 8)
    with pytest.raises(ValueError, match="4 chunks need as many durations"):
        stage_durations(Shape("1f1b", 4, 8), [Duration(1.0)] * 3, [Duration(1.0)])


def test_random_durations_make_a_step_longer_than_their_means_do():
    """E[max] > max of E: the reason for following distributions."""
    shape = Shape("1f1b", 4, 8)
    steady = stage_durations(shape, [Duration(1.0)], [Duration(2.0)])
    noisy = stage_durations(shape, [Duration(1.0, 0.3)], [Duration(2.0, 0.6)])
    times = run(shape.graph, shape.order(), Profile(noisy).draw(shape.graph, 256, 0)).makespan
    assert times.mean() > 1.05 * run(shape.graph, shape.order(), Profile(steady).draw(shape.graph, 1, 0)).makespan[0]
    assert np.std(times) > 0


@pytest.mark.parametrize(("pipeline", "v"), [("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("zero_bubble", 1)])
def test_a_long_pipeline_is_extended_exactly_from_shorter_ones(pipeline, v):
    shape = Shape(pipeline, 4, 40, v, tail=("update",))
    uneven = [Duration(1.0 + 0.1 * (k == 4 * v - 1)) for k in range(4 * v)]
    known = stage_durations(shape, uneven, [d.scaled(2.0) for d in uneven], send=Duration(0.05), tail=[Duration(0.5)])
    whole = run(shape.graph, shape.order(), Profile(known).draw(shape.graph, 1, 0)).makespan[0]
    assert pipeline_seconds(shape, known) == pytest.approx(whole, rel=1e-6)

"""Which order is chosen, when it changes, and how it travels in a plan."""

import dataclasses

import numpy as np
import pytest

from planners.layout import rules
from planners.plan import MESH_AXES, Batch, Plan, PlanError, Schedule, Segment
from planners.schedules.durations import Duration
from planners.schedules.pipelines import Shape, stage_durations
from planners.schedules.profiling import Profile
from planners.schedules.reductions import Replicas, buckets
from planners.schedules.schedule import choose, listed, pipeline_options, replica_options
from planners.schedules.simulate import run

LAYERS = (4_000_000, 1_000_000, 1_000_000, 2_000_000)


def profile(latency: float, bandwidth: float, compute: float = 1e-3) -> Profile:
    """Four layers, and all-reduces of any sum of them."""
    sizes = {sum(size for i, size in enumerate(LAYERS) if mask >> i & 1) for mask in range(1, 16)}
    known = {f"all_reduce/{size}": Duration(latency + size / bandwidth) for size in sizes}
    known |= {f"forward/{i}": Duration(compute) for i in range(4)} | {
        f"backward/{i}": Duration(2 * compute) for i in range(4)
    }
    return Profile(known | {"launch": Duration(0.0), "update": Duration(0.0)})


def test_buckets_hold_every_layer_once_and_close_at_their_limit():
    assert buckets(LAYERS, 0, "reverse") == ((3,), (2,), (1,), (0,))
    assert buckets(LAYERS, 3_000_000, "reverse") == ((3, 2), (1, 0))
    assert buckets(LAYERS, 3_000_000, "forward") == ((0,), (1, 2, 3))
    assert buckets(LAYERS, 10**9, "reverse") == ((3, 2, 1, 0),)
    assert buckets(LAYERS, 0, "size")[0] == (0,)


def test_one_layer_and_one_bucket_take_the_sum_of_their_parts():
    step = Replicas(2, (100,), accumulation=3, reduce_every=3)
    known = {"forward/0": Duration(1.0), "backward/0": Duration(2.0), "launch": Duration(0.1), "update": Duration(0.5)}
    seconds = Profile(known | {"all_reduce/100": Duration(4.0)}).draw(step.graph, 1, 0)
    assert run(step.graph, step.order, seconds).makespan[0] == pytest.approx(3 * 3.0 + 0.1 + 4.0 + 0.5)


def test_a_collective_waits_for_the_slowest_replica():
    step = Replicas(4, (100,))
    known = {"forward/0": Duration(1.0), "backward/0": Duration(2.0), "launch": Duration(0.0), "update": Duration(0.0)}
    slow = Profile(known | {"all_reduce/100": Duration(1.0)}).slowed("device 2", 2.0)
    assert run(step.graph, step.order, slow.draw(step.graph, 1, 0)).makespan[0] == pytest.approx(7.0)


def test_a_costly_call_asks_for_one_bucket_and_one_sum_and_a_cheap_one_for_many_buckets():
    options = list(replica_options(4, LAYERS, 4, overlap=True))
    costly = choose(options, profile(latency=50e-3, bandwidth=1e9))
    assert costly.schedule.reduce_every == 4
    assert len(buckets(LAYERS, costly.schedule.bucket_bytes or 0, "reverse")) == 1
    cheap = choose(options, profile(latency=0.0, bandwidth=1.5e9))
    assert len(buckets(LAYERS, cheap.schedule.bucket_bytes or 0, cheap.schedule.bucket_order)) > 1
    assert cheap.schedule.bucket_order == "reverse"


def test_devices_that_share_their_cores_with_the_network_gain_nothing_from_overlap():
    reverse = Replicas(4, LAYERS, overlap=False)
    assert run(reverse.graph, reverse.order, profile(0.0, 1e9).draw(reverse.graph, 1, 0)).makespan[0] == pytest.approx(
        4 * 3e-3 + sum(LAYERS) / 1e9
    )


def test_a_link_that_loses_its_bandwidth_changes_the_order_and_small_changes_do_not():
    options = list(replica_options(4, LAYERS, 4, overlap=True))
    healthy = profile(latency=1e-3, bandwidth=8e9)
    first = choose(options, healthy)
    assert choose(options, healthy.slowed("network", 1.02), incumbent=first.schedule).schedule == first.schedule
    after = choose(options, healthy.slowed("network", 20.0), incumbent=first.schedule)
    assert after.schedule != first.schedule
    old = next(j for j in after.judged if j.schedule == first.schedule)
    assert after.seconds < 0.99 * old.seconds
    assert any("chosen" in line for line in after.lines())


def test_an_incumbent_stays_where_another_order_saves_too_little():
    options = list(pipeline_options([Shape("1f1b", 4, 8), Shape("interleaved", 4, 8, 2)]))
    known = stage_durations(Shape("1f1b", 4, 8), [Duration(1.0)], [Duration(2.0)])
    known |= stage_durations(Shape("interleaved", 4, 8, 2), [Duration(0.5)], [Duration(1.0)])
    known |= {f"{w}/{k}": Duration(1.0 if w == "forward" else 2.0) for w in ("forward", "backward") for k in range(4)}
    kept = choose(options[:1] + options[1:], Profile(known), incumbent=Schedule(), hysteresis=0.9)
    assert kept.schedule == Schedule()


def interleaved_or_not(send: float, m: int = 8) -> str:
    """What is chosen for 4 stages when a message takes `send` of a stage's turn."""
    plain, folded = Shape("1f1b", 4, m), Shape("interleaved", 4, m, 4)
    totals = {}
    for shape, v in ((plain, 1), (folded, 4)):
        known = stage_durations(shape, [Duration(1.0 / v, 0.05 / v)], [Duration(2.0 / v, 0.1 / v)], send=Duration(send))
        (option,) = pipeline_options([shape])
        totals[shape.pipeline] = choose([option], Profile(known)).seconds
    return min(totals, key=lambda name: totals[name])


def test_interleaving_wins_while_messages_are_cheap_and_loses_when_they_are_not():
    assert interleaved_or_not(0.0) == "interleaved"
    assert interleaved_or_not(1.0) == "1f1b"


def test_an_order_whose_activations_do_not_fit_is_no_option():
    shapes = [Shape("gpipe", 4, 16), Shape("1f1b", 4, 16)]
    left = list(pipeline_options(shapes, lambda shape, held: max(held) <= 4))
    assert [option.schedule.pipeline for option in left] == ["1f1b"]


def test_list_scheduling_of_a_step_is_as_good_as_its_best_bucket_order_when_calls_are_free():
    step = Replicas(1, LAYERS)
    known = profile(0.0, 1.5e9)
    seconds = known.draw(step.graph, 1, 0)
    made = run(step.graph, listed(step.graph, known), seconds).makespan[0]
    assert made <= run(step.graph, step.order, seconds).makespan[0] * (1 + 1e-9)


def test_the_same_draws_make_the_difference_of_two_orders_far_surer_than_their_times():
    options = list(replica_options(4, LAYERS, 2, overlap=True))
    base = profile(1e-3, 2e9)
    noisy = Profile({kind: dataclasses.replace(d, std=0.3 * d.mean) for kind, d in base.durations.items()})
    judged = choose(options, noisy).judged
    close = [j for j in judged if 0 < j.slower < 0.1 * j.seconds]
    assert np.median([j.slower_error for j in close]) < np.median([j.std for j in close]) / 8


def plan(schedule: Schedule) -> Plan:
    mesh = dict.fromkeys(MESH_AXES, 1)
    batch = Batch(sequences=8, microbatch=2, accumulation=4)
    return Plan(mesh=mesh, rules=rules(mesh), batch=batch, remat=(Segment(layers=2),), schedule=schedule)


def test_a_schedule_travels_in_the_plan_and_changes_its_digest(tmp_path):
    made = plan(Schedule(pipeline="interleaved", virtual=3, bucket_bytes=1 << 20, reduce_every=4))
    made.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == made
    assert made.digest != plan(Schedule()).digest


def test_a_plan_without_a_schedule_keeps_its_old_json_and_loads_as_neutral(tmp_path):
    raw = plan(Schedule()).to_json()
    assert "schedule" not in raw
    plan(Schedule()).save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").schedule == Schedule()


def test_a_schedule_that_cannot_be_is_refused():
    with pytest.raises(PlanError, match="must divide the 4"):
        plan(Schedule(reduce_every=3))
    with pytest.raises(PlanError, match="use interleaved"):
        Schedule(virtual=2)

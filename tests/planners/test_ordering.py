"""Which bucket of gradients a plan asks for, on links of known cost."""

import dataclasses

from planners.explain import explain
from planners.machines.presets import nodes
from planners.machines.topology import Cluster
from planners.plan import MESH_AXES, Schedule
from planners.prices.assumptions import Assumptions
from planners.schedules.ordering import COMBINE, simulate
from planners.search import plan
from planners.wishes import Search
from tests.planners.workloads import llama_1b


def a100(latency: float, bandwidth: float, count: int = 8) -> Cluster:
    cluster = nodes("A100-80", count)
    links = tuple(dataclasses.replace(t, latency=latency, doubling=0.0, bandwidth=bandwidth) for t in cluster.tiers)
    return dataclasses.replace(cluster, tiers=links)


WORKLOAD = llama_1b(sequence=2048)
SEARCH = Search(mesh=dict.fromkeys(MESH_AXES, 1) | {"data": 8}, balance="never")


def test_the_compiler_orders_the_sums_unless_the_planner_is_asked():
    made = plan(WORKLOAD, a100(50e-6, 200e9), SEARCH)
    assert made.schedule == Schedule()
    assert COMBINE not in made.compile.options


def test_a_simulated_order_travels_in_the_plan_and_tells_xla_the_size_of_a_bucket():
    asked = dataclasses.replace(SEARCH, schedule="simulated")
    cluster = a100(50e-6, 200e9)
    made = plan(WORKLOAD, cluster, asked)
    assert made.schedule.bucket_bytes is not None
    assert made.compile.options[COMBINE] == max(made.schedule.bucket_bytes, 1)
    assert "order" in explain(made, cluster)
    assert "chosen" in made.assumptions["order of gradient sums"]
    own = plan(WORKLOAD, cluster, dataclasses.replace(asked, options={COMBINE: 7}))
    assert own.compile.options[COMBINE] == 7


def test_slow_calls_ask_for_larger_buckets_than_slow_bytes():
    asked = dataclasses.replace(SEARCH, schedule="simulated")
    sizes = [plan(WORKLOAD, a100(*link), asked).schedule.bucket_bytes for link in ((20e-3, 300e9), (0.0, 2e9))]
    assert sizes[0] is not None
    assert sizes[1] is not None
    assert sizes[0] > sizes[1]


def test_one_replica_has_nothing_to_order():
    alone = Search(mesh=dict.fromkeys(MESH_AXES, 1) | {"fsdp": 8}, schedule="simulated")
    cluster = a100(50e-6, 200e9)
    made = plan(WORKLOAD, cluster, alone)
    assert made.schedule == Schedule()
    assert simulate(made, WORKLOAD, cluster, Assumptions()) is None


def test_an_interleaved_choice_says_so_in_its_plan():
    deep = Search(mesh=dict.fromkeys(MESH_AXES, 1) | {"stage": 4, "data": 2}, microbatch=4, balance="never")
    cluster = a100(5e-6, 300e9)
    made = plan(WORKLOAD, cluster, deep, axes=MESH_AXES)
    assert made.schedule.pipeline == "interleaved"
    assert made.schedule.virtual > 1
    assert WORKLOAD.layers // 4 % made.schedule.virtual == 0

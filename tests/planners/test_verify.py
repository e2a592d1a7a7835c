"""Plans judged by a compiler: refused, ranked again, and said so. Programs are real; their memory is made up."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from planners.candidates import Candidates
from planners.explain import explain
from planners.learning.ledger import candidate
from planners.machines.cluster_file import load_cluster
from planners.machines.topology import Cluster
from planners.plan import MESH_AXES, Plan, PlanError
from planners.prices.assumptions import Assumptions
from planners.prices.cost import price
from planners.prices.memory_calibration import observe
from planners.prices.memory_phases import Habits
from planners.programs.compiled import Compiled, CompileError, OutOfMemory, TooSlow
from planners.programs.hlo import Collective
from planners.search import shortlist
from planners.verify import COMMUNICATION, FOLLOWING, Checked, call_seconds, learn_memory, sent_by_axis, verify
from planners.wishes import Search
from tests.planners.workloads import llama

GIB = 2**30
WORK = llama("small", layers=4, embed=1024, heads=8, mlp=2816, vocab=4096, batch=16, sequence=512)
CLUSTER = load_cluster("h100x8")
SEARCH = Search()


@functools.cache
def program(times: int = 1, axis: str = "data") -> str:
    """A step that sums 4 MiB over one axis of eight devices, `times` times in a loop."""
    mesh = jax.make_mesh((8,), (axis,), axis_types=(jax.sharding.AxisType.Auto,))

    def step(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda y, _: (jnp.tanh(jax.lax.psum(y, axis)), None), x, length=times)[0]

    whole = P(None)
    mapped = jax.shard_map(step, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)
    array = jax.ShapeDtypeStruct((2**20,), jnp.float32, sharding=NamedSharding(mesh, whole))
    return jax.jit(mapped).lower(array).compile().as_text() or ""


def made(gigabytes: float = 1.0, times: int = 1, warnings: tuple[str, ...] = ()) -> Compiled:
    size = int(gigabytes * GIB)
    return Compiled(
        target="8 x H100",
        arguments=size // 4,
        outputs=size // 4,
        aliased=size // 4,
        temporaries=size - size // 4,
        hlo=program(times),
        warnings=warnings,
        versions={"jax": "9.9"},
    )


SLOW = functools.partial(made, times=10_000)
"""A step that sends so much that it cannot win."""


def best(share: float, count: int, cluster: Cluster = CLUSTER) -> Sequence[Plan]:
    return shortlist(WORK, cluster, dataclasses.replace(SEARCH, memory_fraction=share), count)


def judge(compile: Callable[[Plan], Compiled], top: int = 3) -> tuple[Plan, tuple[Checked, ...]]:
    return verify(best, compile, CLUSTER, fraction=0.9, top=top)


def by_order(*results: Compiled | Exception) -> Callable[[Plan], Compiled]:
    """A compiler that gives these results, one after the other."""
    left = list(results)

    def compile(plan: Plan) -> Compiled:
        result = left.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    return compile


def test_shortlist_begins_with_the_plan_and_repeats_no_mesh_and_remat() -> None:
    plans = best(0.9, 4)
    assert len(plans) == 4
    assert len({(tuple(plan.mesh.values()), plan.remat) for plan in plans}) == 4
    seconds = [plan.predicted.step_seconds for plan in plans if plan.predicted]
    assert seconds[1:] == sorted(seconds[1:])


def test_the_winner_carries_what_was_compiled() -> None:
    plan, checked = judge(by_order(made(), SLOW(), SLOW()))
    assert plan.compiled is not None
    assert plan.mesh in [each.mesh for each in best(0.9, 3)]
    assert plan.compiled.memory_bytes == GIB
    (traffic,) = plan.compiled.traffic
    assert (traffic.kind, traffic.dtype, traffic.size, traffic.calls) == ("all-reduce", "f32", 4 * 2**20, 1)
    assert sum(plan.compiled.link_bytes.values()) == pytest.approx(2 * 7 / 8 * 4 * 2**20)
    assert [each.refused for each in checked] == ["", "", ""]
    assert "3 plans compiled for 8 x H100 with jax 9.9" in plan.assumptions["verified"]
    text = explain(plan, CLUSTER)
    assert "compiled for 8 x H100, per device" in text
    assert "all-reduce f32" in text
    assert "no collective travels beside matrix products" in text


def test_a_plan_that_xla_needs_more_memory_for_is_refused_and_the_next_one_wins() -> None:
    plan, checked = judge(by_order(made(80.0), made(), SLOW()))
    first, second, _ = best(0.9, 3)
    assert plan.summary() == second.summary()
    refused = checked[-1]
    assert refused.plan.summary() == first.summary()
    assert "compiled, it needs 82.00 GiB of 71.68 GiB" in refused.refused
    assert any("82.00 GiB" in item.reason for item in plan.alternatives)


def test_when_all_need_more_the_search_is_asked_for_less() -> None:
    asked: list[float] = []

    def remembering(share: float, count: int) -> Sequence[Plan]:
        asked.append(share)
        return best(0.9, 8)[-count:] if len(asked) > 1 else best(0.9, count)

    results = by_order(made(80.0), made(90.0), made(1.0))
    plan, checked = verify(remembering, results, CLUSTER, fraction=0.9, top=2)
    assert plan.summary() == best(0.9, 8)[-1].summary()
    assert len(asked) == 2
    assert asked[1] < asked[0] / 2
    assert [bool(each.refused) for each in checked] == [False, True, True]


def test_when_nothing_fits_all_that_was_compiled_is_listed() -> None:
    with pytest.raises(PlanError, match="none of the 3 plans that were compiled for 8 x H100") as caught:
        verify(lambda share, count: best(0.9, 3), lambda plan: made(80.0), CLUSTER, fraction=0.9, top=3)
    assert str(caught.value).count("82.00 GiB of 71.68 GiB") == 3


def test_involuntary_full_rematerialization_is_a_planning_error() -> None:
    warned = made(warnings=("Involuntary full rematerialization. The compiler cannot go from A to B",))
    plan, checked = judge(by_order(warned, made(), SLOW()))
    assert plan.summary() == best(0.9, 2)[1].summary()
    assert "force the compiler to gather whole tensors" in checked[-1].refused


def test_more_compiled_bytes_than_predicted_change_the_ranking() -> None:
    plan, checked = judge(by_order(made(times=10_000), made(), made()))
    assert plan.summary() != best(0.9, 1)[0].summary()
    slow = next(each for each in checked if each.plan.summary() == best(0.9, 1)[0].summary())
    assert not slow.refused
    assert slow.compiled is not None
    assert slow.compiled.traffic[0].calls == 10_000
    reason = next(item.reason for item in plan.alternatives if item.summary == slow.plan.summary())
    assert "slower with its compiled collectives" in reason


def test_a_plan_that_does_not_compile_leaves_the_others() -> None:
    plan, checked = judge(by_order(OutOfMemory("the compiler ran out of memory"), made(), SLOW()))
    assert plan.summary() == best(0.9, 2)[1].summary()
    assert checked[-1].refused == "the compiler ran out of memory"
    assert checked[-1].compiled is None


def test_compiled_memory_teaches_the_memory_of_other_plans() -> None:
    """XLA, here, needs a fifth more than counted for a block in flight: so will it for the plans not compiled."""
    truth = Habits(block=1.2)

    def temporaries(plan: Plan) -> float:
        one = candidate(plan)
        assert one is not None
        return observe(WORK, one, 1.0).predicted(truth)

    def compile(plan: Plan) -> Compiled:
        return dataclasses.replace(made(), temporaries=int(temporaries(plan)))

    plans = shortlist(WORK, CLUSTER, dataclasses.replace(SEARCH, remat="full"), 3)
    checked = verify(lambda share, count: plans[:2], compile, CLUSTER, fraction=0.9)[1]
    learnt = learn_memory(checked, WORK, "9.9")
    assert learnt is not None
    assert learnt.habits["full"].block == pytest.approx(1.2, abs=0.03)
    other = candidate(plans[2])
    assert other is not None

    def priced(assumptions: Assumptions) -> float:
        parts = price(WORK, CLUSTER, other, assumptions=assumptions).memory
        outside = ("parameters", "optimizer", "batch", "runtime")
        return float(sum(size[0] for name, size in parts.items() if name not in outside))

    before, after = priced(Assumptions()), priced(Assumptions(memory_habits=learnt.habits))
    assert abs(after / temporaries(plans[2]) - 1) < 0.02 < abs(before / temporaries(plans[2]) - 1)
    assert "full" in Assumptions(memory_habits=learnt.habits).record()["memory_habits"]
    assert "memory_habits" not in Assumptions().record()


def test_time_that_is_up_ends_everything() -> None:
    with pytest.raises(CompileError, match="took more than 5 s"):
        judge(by_order(TooSlow("took more than 5 s"), made(), made()))


def test_bytes_over_several_axes_add_up_to_those_of_one_ring() -> None:
    row = Collective(kind="all-gather", dtype="f32", size=1024.0, groups="", times=1)
    sent = sent_by_axis(row, {"data": 4, "fsdp": 2})
    assert sent == {"fsdp": 512.0, "data": 384.0}
    assert sum(sent.values()) == 1024.0 * 7 / 8
    twice = sent_by_axis(dataclasses.replace(row, kind="all-reduce"), {"data": 4, "fsdp": 2})
    assert sum(twice.values()) == 2 * sum(sent.values())


def test_a_collective_over_the_slower_link_takes_longer() -> None:
    cluster = load_cluster("a100-80x64")
    plan = shortlist(WORK, cluster, SEARCH, 1)[0]
    plan = dataclasses.replace(plan, mesh=dict.fromkeys(MESH_AXES, 1) | {"data": 8, "tensor": 8})
    row = Collective(kind="reduce-scatter", dtype="f32", size=2.0**30, groups="", times=1)
    inside, outside = (call_seconds(row, {axis: 8}, plan, cluster) for axis in ("tensor", "data"))
    assert outside > 5 * inside


def test_every_part_of_the_prediction_that_waits_for_links_is_known_as_communication() -> None:
    """Or the compiled collectives would be added to the predicted ones instead of taking their place."""
    cluster = load_cluster("a100-80x64")
    slow = dataclasses.replace(
        cluster, tiers=tuple(dataclasses.replace(t, bandwidth=t.bandwidth / 50) for t in cluster.tiers)
    )
    candidates = Candidates.of({"data": 2, "fsdp": 4, "tensor": 8}, microbatch=16)
    fast, late = (price(WORK, c, candidates, assumptions=Assumptions()).seconds for c in (cluster, slow))
    waiting = {name for name, value in fast.items() if late[name][0] != value[0]}
    assert waiting
    assert waiting <= {*COMMUNICATION, *FOLLOWING}

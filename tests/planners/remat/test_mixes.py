"""Plans under a memory budget: what lies between full and no rematerialisation."""

import dataclasses
from pathlib import Path

import optax
import pytest

from jaxlm.model.config import preset
from jaxlm.model.describe import describe
from planners.explain import gib
from planners.learning.remat_costs import RematCosts
from planners.machines.cluster_file import load_cluster
from planners.plan import Plan, PlanError, Segment, Workload
from planners.prices.assumptions import Assumptions
from planners.programs.compiled import Compiled, CompileError
from planners.remat.dynamic import solve
from planners.search import plan
from planners.space.mixes import Blocks
from planners.space.remat_strategies import ends_of_plan, remat_strategies, strategies_table, verified_strategies
from planners.wishes import Search, parse_bytes

CLUSTER = load_cluster("h100x8")
FIXED = Search(mesh={"fsdp": 8}, microbatch=16, loss_chunks=1)


@pytest.fixture(scope="module")
def work() -> Workload:
    tx = optax.adam(1e-3)
    return describe(preset("llama-7b"), tx, batch=16, sequence=4096, kernel="cudnn", dtype="bfloat16", packed=False)


def budgeted(work: Workload, gib: float, **wish: object) -> Plan:
    return plan(work, CLUSTER, dataclasses.replace(FIXED, memory_budget=f"{gib}GiB", **wish))  # pyright: ignore


def test_less_memory_costs_more_time_and_both_ends_are_the_old_ones(work: Workload) -> None:
    budgets = (60, 44, 36, 30, 24, 20)
    found = [budgeted(work, budget) for budget in budgets]
    predicted = [each.predicted for each in found if each.predicted]
    assert all(each.memory_bytes <= budget * 2**30 for each, budget in zip(predicted, budgets, strict=True))
    seconds = [each.step_seconds for each in predicted]
    assert seconds == sorted(seconds)
    assert [segment.save for segment in found[0].remat] == [None]
    full = plan(work, CLUSTER, dataclasses.replace(FIXED, remat="full")).predicted
    assert full is not None
    assert seconds[-1] < full.step_seconds
    assert all(sum(segment.layers for segment in each.remat) == 32 for each in found)
    assert all(segment.layers >= 2 for each in found for segment in each.remat), "a loop of one turn is inlined"
    assert predicted[2].unrematerialised == pytest.approx(predicted[0].memory_bytes)
    assert found[2].compile.options == {"xla_disable_hlo_passes": "rematerialization"}


def test_a_little_less_memory_is_almost_free(work: Workload) -> None:
    """Norms, the gated product and cast weights cost bandwidth, no product: a fifth of the peak for 3% more time."""
    none, some = budgeted(work, 60).predicted, budgeted(work, 40).predicted
    assert none is not None
    assert some is not None
    assert some.step_seconds < 1.03 * none.step_seconds


def test_below_the_minimum_is_refused_with_the_minimum_and_what_would_fit(work: Workload) -> None:
    with pytest.raises(
        PlanError, match=r"least hungry plan is predicted to need .* GiB(?s:.*)plan.memory_budget=\d+MiB"
    ):
        budgeted(work, 12)


def test_host_memory_takes_the_place_of_recomputation(work: Workload) -> None:
    without, made = budgeted(work, 24), budgeted(work, 24, offload=True)
    assert any(segment.offload for segment in made.remat)
    assert made.predicted is not None
    assert without.predicted is not None
    assert made.predicted.step_seconds < without.predicted.step_seconds


def test_strategies_stand_side_by_side_and_none_beats_the_dynamic_program(work: Workload) -> None:
    search = dataclasses.replace(FIXED, memory_budget="32GiB")
    found = {each.name: each for each in remat_strategies(plan(work, CLUSTER, search), work, CLUSTER, search)}
    assert {"none", "full", "dp", "greedy", "lagrangian", "static", "threshold", "learned"} <= set(found)
    best = found["dp"]
    assert best.fits
    assert all(best.seconds <= each.seconds + 1e-9 for each in found.values() if each.fits)
    assert found["full"].flops == pytest.approx(0.29, abs=0.04)
    assert best.kept < found["none"].kept
    assert best.peak == pytest.approx(best.memory - 0.5 * 2**30, rel=0.1), "runtime libraries left out"
    said = strategies_table(list(found.values()))
    assert "dp" in said
    assert "XLA" not in said


def test_strategies_are_verified_once_each_and_judged_by_what_the_compiler_says(work: Workload) -> None:
    search = dataclasses.replace(FIXED, memory_budget="32GiB")
    made = plan(work, CLUSTER, search)
    strategies = remat_strategies(made, work, CLUSTER, search)
    asked: list[tuple[Segment, ...]] = []

    def compile(asking: Plan) -> Compiled:
        asked.append(asking.remat)
        if asking.remat[0].save == () and len(asking.remat) == 1:
            raise CompileError("the compiler gave up")
        size = 40 * 2**30 if asking.remat[0].save is None else 20 * 2**30
        return Compiled(target="8 x H100", arguments=size, outputs=0, aliased=0, temporaries=2**20)

    found = {each.name: each for each in verified_strategies(strategies, made, compile, CLUSTER, search)}
    assert len(asked) == len(set(asked)) == len({each.remat for each in strategies if each.remat})
    assert found["dp"].verified == 20 * 2**30 + 2**20
    assert found["dp"].fits
    assert not found["none"].fits
    assert found["full"].refused == "the compiler gave up"
    assert not found["full"].fits
    said = strategies_table(list(found.values()))
    assert "peak by XLA" in said
    assert gib(20 * 2**30 + 2**20) in said
    assert "the compiler gave up" in said
    assert all(value == value for each in found.values() for value in each.facts().values()), "no NaN"


@pytest.mark.parametrize("name", ["greedy", "lagrangian", "learned", "static", "threshold"])
def test_other_strategies_can_be_asked_for(work: Workload, name: str) -> None:
    made = budgeted(work, 32, remat=name).predicted
    assert made is not None
    assert made.memory_bytes <= 32 * 2**30


def test_a_strategy_that_one_mesh_cannot_satisfy_does_not_end_the_search(work: Workload) -> None:
    made = plan(work, CLUSTER, Search(memory_budget="32GiB", remat="static")).predicted
    assert made is not None
    assert made.memory_bytes <= 32 * 2**30
    with pytest.raises(PlanError, match="GiB"):
        budgeted(work, 20, remat="static")


def test_feedback_counts_memory_as_the_planner_does(work: Workload) -> None:
    made = budgeted(work, 32)
    ends = ends_of_plan(made, work, CLUSTER, Assumptions())
    blocks = Blocks(work, CLUSTER.device, Search(), Assumptions())
    policies = blocks.policies(made.mesh, ends)
    costs = RematCosts(policies, ends.none.step_seconds, around=ends.around)
    for segments in ([Segment(layers=32, save=())], [Segment(layers=20, save=policies[3].save), Segment(layers=12)]):
        runs = blocks.of(segments, made.mesh, ends).runs
        known = RematCosts([run.policy for run in runs], ends.none.step_seconds, around=ends.around)
        assert known.peak(known.predicted_runs(runs)) == pytest.approx(ends.peak(runs), rel=1e-9)
    solved = solve(costs.problem(32 * 2.0**30, ends.layers))
    assert ends.peak([run for run in solved.runs if run.policy.layer]) <= 32 * 2**30


def test_segments_come_from_a_file(work: Workload, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("- {layers: 16, save: []}\n- {layers: 16, save: [q, k, v]}\n")
    made = plan(work, CLUSTER, dataclasses.replace(FIXED, remat=str(path)))
    assert [(segment.layers, segment.save) for segment in made.remat] == [(16, ()), (16, ("q", "k", "v"))]
    full, none = (plan(work, CLUSTER, dataclasses.replace(FIXED, remat=name)).predicted for name in ("full", "none"))
    assert made.predicted is not None
    assert full is not None
    assert none is not None
    assert none.step_seconds < made.predicted.step_seconds < full.step_seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {layers: 30, save: []}\n", "have 30 layers"),
        ("- {layers: 32, save: [qq]}\n", "qq"),
        ("- {layers: 32, keep: []}\n", "keep"),
        ("layers: 32\n", "list of segments"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(work: Workload, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(PlanError, match=message):
        plan(work, CLUSTER, dataclasses.replace(FIXED, remat=str(path)))


def test_budgets_and_strategies_are_spelt_right() -> None:
    assert parse_bytes("24GiB") == 24 * 2**30
    assert parse_bytes("80 GB") == parse_bytes("8e10") == 80e9
    for wrong in ("", "24 gigs", "-3GiB", "0GiB"):
        with pytest.raises(ValueError, match="memory_budget"):
            Search(memory_budget=wrong)
    with pytest.raises(ValueError, match="did you mean 'greedy'"):
        Search(remat="greddy")

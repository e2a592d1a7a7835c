"""A plan obeys its own arithmetic, its budget and the user; and when there is none, the message says why."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import workloads
from hypothesis import given, settings
from hypothesis import strategies as st

from planners.layout import indivisible
from planners.machines.cluster_file import load_cluster
from planners.machines.presets import host, nodes
from planners.machines.topology import Cluster
from planners.plan import MESH_AXES, Plan, PlanError, Workload, structure
from planners.prices.assumptions import Assumptions
from planners.search import check, plan, price
from planners.space.choices import priced_choices
from planners.wishes import Planner, Search

GOLDEN = Path(__file__).parent / "golden"
GIB = 2**30

PAIRS: dict[str, tuple[Workload, Cluster]] = {
    "nano_on_one_cpu": (workloads.nano(), host(count=1, memory=8 * GIB, cores=2)),
    "nano_on_eight_forced_cpus": (workloads.nano(), host(count=8, memory=GIB, cores=2)),
    "llama_1b_on_one_h200": (workloads.llama_1b(), nodes("H200", 1)),
    "llama_7b_on_8_h100": (workloads.llama_7b(), nodes("H100", 8)),
    "llama_8b_on_64_a100_40": (workloads.llama_8b(), nodes("A100-40", 64)),
    "llama_70b_on_512_a100_80": (workloads.llama_70b(), nodes("A100-80", 512)),
}

works = st.builds(
    workloads.nano,
    batch=st.sampled_from([8, 12, 16, 24]),
    layers=st.integers(2, 6),
    embed=st.sampled_from([128, 256]),
    heads=st.sampled_from([4, 8]),
    kv_heads=st.sampled_from([2, 4]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
clusters = st.one_of(
    st.builds(nodes, st.sampled_from(["V100", "A100-40", "H100", "H200"]), st.sampled_from([1, 2, 4, 8])),
    st.builds(
        host,
        count=st.sampled_from([1, 2, 4, 8]),
        memory=st.sampled_from([2 * GIB, 8 * GIB]),
        cores=st.just(2),
    ),
)
wishes = st.builds(
    Search,
    remat=st.sampled_from(["auto", "none", "full"]),
    loss_chunks=st.sampled_from([0, 1, 4]),
    memory_fraction=st.sampled_from([0.5, 0.9]),
)


@settings(deadline=None, max_examples=60)
@given(work=works, cluster=clusters, search=wishes)
def test_plan_divides_fits_and_obeys(work: Workload, cluster: Cluster, search: Search) -> None:
    made = plan(work, cluster, search)
    assert tuple(made.mesh) == MESH_AXES
    assert math.prod(made.mesh.values()) == cluster.count
    assert made.batch.sequences == work.batch
    assert made.batch.microbatch % made.replicas == 0
    assert made.layers == work.layers
    assert not indivisible(work, made.rules, made.mesh)
    assert made.predicted is not None
    assert made.predicted.memory_bytes <= cluster.device.memory * search.memory_fraction
    assert all(value >= 0 for value in (*made.predicted.memory.values(), *made.predicted.seconds.values()))
    if search.remat != "auto":
        assert (made.remat[0].save is None) == (search.remat == "none")
    if search.loss_chunks:
        assert made.compile.loss_chunks == search.loss_chunks
    check(made, work, cluster)


@settings(deadline=None, max_examples=30)
@given(work=works, cluster=clusters, search=wishes)
def test_plan_survives_json(work: Workload, cluster: Cluster, search: Search) -> None:
    made = plan(work, cluster, search)
    again = structure(json.loads(json.dumps(made.to_json())), Plan)
    assert structure(made.to_json(), Plan) == made == again
    assert again.digest == made.digest == plan(work, cluster, search).digest


def test_plan_survives_a_file(tmp_path: Path) -> None:
    made = plan(*PAIRS["llama_7b_on_8_h100"], Search())
    made.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == made


@pytest.mark.parametrize("name", PAIRS)
def test_golden_plans(name: str) -> None:
    """Mesh, batch and remat are pinned. After a deliberate change of the cost model, write the files anew."""
    made = plan(*PAIRS[name], Search()).to_json()
    decided = {key: made[key] for key in ("mesh", "batch", "remat")}
    assert json.loads(json.dumps(decided)) == json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize("name", PAIRS)
def test_winner_is_the_fastest_that_fits(name: str) -> None:
    work, cluster = PAIRS[name]
    assumptions = Assumptions()
    made = plan(work, cluster, Search())
    assert made.predicted is not None
    budget = 0.9 * cluster.device.memory
    prices = priced_choices(work, cluster, Search(), assumptions).prices
    fitting = prices.step_seconds[prices.memory_bytes <= budget]
    if not cluster.shared:
        assert made.predicted.step_seconds <= fitting.min() * (1 + assumptions.tie)
    assert len({item.summary for item in made.alternatives}) == len(made.alternatives) <= 5
    assert all(item.reason for item in made.alternatives)


def test_one_cpu_takes_the_whole_batch_and_recomputes_nothing() -> None:
    made = plan(*PAIRS["nano_on_one_cpu"], Search())
    assert set(made.mesh.values()) == {1}
    assert made.batch.accumulation == 1
    assert made.remat[0].save is None
    assert made.predicted is not None
    assert made.predicted.mfu is None, "no peak is known for a CPU, so no MFU may be predicted"


def test_forced_cpus_split_the_batch_and_accumulate_only_for_memory() -> None:
    work = workloads.nano(batch=64)
    roomy = plan(work, host(count=8, memory=2 * GIB, cores=2), Search())
    assert (roomy.mesh["data"], roomy.batch.accumulation) == (8, 1)
    tight = plan(work, host(count=8, memory=200 * 2**20, cores=2), Search(remat="none", loss_chunks=1))
    assert tight.mesh["data"] == 8
    assert tight.batch.accumulation > 1


@pytest.mark.parametrize("name", ["v100x16", "v100x16+a100-80x16"])
def test_a_dtype_that_some_devices_compute_in_another_one_is_warned_of_and_no_faster_there(name: str) -> None:
    cluster = load_cluster(name)
    half, whole = (
        plan(dataclasses.replace(workloads.nano(64), compute_dtype=dtype), cluster, Search())
        for dtype in ("bfloat16", "float32")
    )
    assert half.assumptions["warning"].startswith(
        "V100 multiplies no bfloat16: XLA converts it and computes in float32"
    )
    assert "warning" not in whole.assumptions
    assert half.predicted is not None
    assert whole.predicted is not None
    assert half.predicted.seconds["compute"] >= whole.predicted.seconds["compute"]
    a100 = plan(dataclasses.replace(workloads.nano(64), compute_dtype="bfloat16"), nodes("A100-80", 16), Search())
    assert "warning" not in a100.assumptions


def test_fixed_fields_are_obeyed() -> None:
    work, cluster = PAIRS["llama_7b_on_8_h100"]
    wish = Search(mesh={"tensor": 2}, microbatch=8, remat="full", loss_chunks=4, options={"a": 1}, unroll=2)
    made = plan(work, cluster, wish)
    assert made.mesh["tensor"] == 2
    assert (made.batch.microbatch, made.batch.accumulation) == (8, 2)
    assert made.remat[0].save == ()
    assert (made.compile.loss_chunks, made.compile.unroll, made.compile.options) == (4, 2, {"a": 1})


def test_price_equals_the_plan() -> None:
    work, cluster = PAIRS["llama_7b_on_8_h100"]
    made = plan(work, cluster, Search())
    priced = price(work, cluster, Search(), made.mesh, made.batch.microbatch, "none", made.compile.loss_chunks)
    assert priced == made.predicted


def test_plan_is_a_planner() -> None:
    assert isinstance(plan, Planner)


@pytest.mark.parametrize(
    ("work", "count", "search", "words"),
    [
        (workloads.nano(6), 8, Search(mesh={"data": 4, "fsdp": 1}), ["batch 6", "4 replicas", "work: 4, 8"]),
        (
            workloads.nano(8, heads=6, embed=192),
            8,
            Search(mesh={"tensor": 4}),
            ["heads=6 is not divisible by tensor=4", "tensor can be 1, 2, 3, 6"],
        ),
        (
            workloads.nano(8, kv_heads=1),
            8,
            Search(mesh={"tensor": 2}),
            ["kv_heads=1 is not divisible by tensor=2", "tensor can be 1"],
        ),
        (
            workloads.nano(8),
            8,
            Search(mesh={"data": 2, "fsdp": 2, "tensor": 1}),
            ["data=2 x fsdp=2 x tensor=1 makes 4 devices", "h100x8 has 8"],
        ),
        (workloads.nano(8), 8, Search(mesh={"data": 3}), ["data=3 makes 3 devices", "divisor of 8"]),
        (workloads.nano(8), 8, Search(mesh={"stage": 2}), ["cannot execute stage > 1 yet", "stage=1"]),
        (workloads.nano(8), 8, Search(mesh={"data": 0}), ["data=0 must be at least 1"]),
        (workloads.nano(12), 1, Search(microbatch=5), ["microbatch 5", "batch 12", "1, 2, 3, 4, 6, 12"]),
        (
            workloads.nano(16),
            8,
            Search(microbatch=4, mesh={"data": 8}),
            ["microbatch 4 cannot be split over 8 replicas", "it can be 8, 16"],
        ),
        (workloads.nano(8), 1, Search(loss_chunks=3), ["loss_chunks=3", "sequence=256"]),
    ],
)
def test_refusals_name_the_numbers(work: Workload, count: int, search: Search, words: list[str]) -> None:
    with pytest.raises(PlanError) as caught:
        plan(work, nodes("H100", count), search)
    for word in words:
        assert word in str(caught.value)


def test_refusal_holds_the_memory_table_and_what_would_fit() -> None:
    work, cluster = workloads.llama_7b(), nodes("H200", 1)
    with pytest.raises(PlanError) as caught:
        plan(work, cluster, Search())
    message = str(caught.value)
    assert "predicted memory per device" in message
    assert f"{8 * work.parameter_count:,}" in message, "optimizer state is exact"
    assert f"{0.9 * cluster.device.memory:,.0f}" in message
    assert "2 devices of this kind instead of 1" in message
    assert plan(work, nodes("H200", 2), Search()).predicted is not None


def test_refusal_tells_which_wish_is_in_the_way() -> None:
    with pytest.raises(PlanError, match=r"plan\.remat=auto instead of none"):
        plan(workloads.llama_7b(8, 16384), nodes("H100", 8), Search(remat="none", mesh={"tensor": 1}))


def test_check_says_what_differs() -> None:
    work, cluster = PAIRS["llama_7b_on_8_h100"]
    made = plan(work, cluster, Search())
    with pytest.raises(PlanError, match="plan is for 8 devices, h100x4 has 4"):
        check(made, work, nodes("H100", 4))
    with pytest.raises(PlanError, match="batch of 16 sequences, the config says 32"):
        check(made, workloads.llama_7b(32), cluster)
    with pytest.raises(PlanError, match="covers 32 layers, llama2-7b has 16"):
        check(made, dataclasses.replace(work, layers=16), cluster)
    wrong = dataclasses.replace(made, remat=(dataclasses.replace(made.remat[0], save=("nothing",)),))
    with pytest.raises(PlanError, match="keeps \\['nothing'\\]"):
        check(wrong, work, cluster)
    tensor = dataclasses.replace(made, mesh={**made.mesh, "fsdp": 1, "tensor": 8})
    with pytest.raises(PlanError, match="heads=6 is not divisible by tensor=8"):
        check(tensor, workloads.nano(16, layers=32, heads=6, embed=192), cluster)


def test_a_hand_edited_plan_says_what_is_wrong(tmp_path: Path) -> None:
    made = plan(*PAIRS["llama_7b_on_8_h100"], Search())
    raw = json.loads(json.dumps(made.to_json()))
    raw["batch"]["microbatch"] = 5
    (tmp_path / "plan.json").write_text(json.dumps(raw))
    with pytest.raises(PlanError, match="batch 16 is not microbatch 5 x accumulation 1"):
        Plan.load(tmp_path / "plan.json")

"""The scheduler of gradient exchanges: figures by hand, `none` on fast links, and budgets that always hold."""

import dataclasses
import itertools

import numpy as np
import pytest

from planners.communication import (
    RUNGS,
    Axis,
    allocate,
    allowed,
    axis_of,
    choose,
    communication,
    frequency,
    price,
    ranked,
    travelling,
)
from planners.machines.link_table import Timing
from planners.machines.presets import nodes
from planners.machines.topology import Device, Link
from planners.plan import MESH_AXES, PlanError
from planners.search import plan
from planners.wishes import Search, Travel
from tests.planners import workloads

DEVICE = Device(kind="cpu", memory=2**34, bandwidth=1e10)
BY = {rung.scheme: rung for rung in RUNGS}
M25 = 25_000_000


def axis(rate: float, workers: int = 2, elements: int = M25, latency: float = 0.0, **more) -> Axis:
    link = Link(name="zone", devices=workers, bandwidth=rate, latency=latency)
    return Axis(name="zone", workers=workers, link=link, elements=elements, device=DEVICE, **more)


def test_seconds_by_hand():
    slow = axis(12.5e6)  # 100 Mbit/s
    exact = price(BY["none"], slow)
    assert exact.seconds == pytest.approx(2 * 0.5 * 4 * M25 / 12.5e6)
    two_shot = price(BY["int8"], slow)
    assert two_shot.parts["all_to_all"] == pytest.approx(0.5 * M25 * (8 + 16 / 256) / 8 / 12.5e6)
    assert two_shot.parts["codec"] == pytest.approx(8 * 4 * M25 / 1e10)
    assert price(BY["topk"], slow).parts["all_gather"] == pytest.approx(0.5 * 2 * M25 * 10 * 4 / 1024 / 12.5e6)
    assert price(BY["bf16"], axis(12.5e6, codec={"bf16": 1e-8})).parts["codec"] == pytest.approx(0.25)


def test_each_collective_is_read_off_its_own_measurements():
    rows = {
        "all_reduce": (Timing(ranks=2, bytes=10**6, seconds=0.1), Timing(ranks=2, bytes=10**8, seconds=9.4)),
        "all_to_all": (Timing(ranks=2, bytes=10**7, seconds=3.0), Timing(ranks=2, bytes=10**8, seconds=30.0)),
        "all_gather": (Timing(ranks=2, bytes=10**7, seconds=0.5), Timing(ranks=2, bytes=10**8, seconds=5.0)),
    }
    link = Link(name="zone", devices=2, bandwidth=12.5e6, measured=rows)
    measured = Axis(name="zone", workers=2, link=link, elements=M25, device=DEVICE)
    assert price(BY["none"], measured).seconds == pytest.approx(9.4)
    assert price(BY["int8"], measured).parts["all_to_all"] > 5 * price(BY["int8"], measured).parts["all_gather"]
    assert choose(measured, "8-bit").rung.scheme == "int8_shared"


@pytest.mark.parametrize(("budget", "scheme"), [("exact", "none"), ("16-bit", "bf16"), ("8-bit", "int8_shared")])
def test_a_slow_link_is_worth_what_the_budget_allows(budget, scheme):
    assert choose(axis(12.5e6), budget).rung.scheme == scheme


def test_fast_links_and_hidden_exchanges_are_left_alone():
    for budget in ("exact", "16-bit", "8-bit", "feedback"):
        assert choose(axis(1e12), budget).rung.scheme == "none"
        assert choose(axis(12.5e6, hidden=60.0), budget).rung.scheme == "none"
    assert choose(axis(12.5e6), "feedback").rung.scheme == "topk"
    assert ranked(axis(1e12), "8-bit")[0].rung.scheme == "none"


def test_a_shared_scale_is_for_two_and_sparse_codes_for_few():
    assert choose(axis(12.5e6, workers=4), "8-bit").rung.scheme == "int8"
    assert "topk" not in [rung.scheme for rung in allowed(axis(12.5e6, workers=16), "feedback")]
    with pytest.raises(PlanError, match="did you mean '8-bit'"):
        allowed(axis(1.0), "8bit")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("optimizer", "scheme"), [("adamw", "topk"), ("lion", "int4"), ("sgd", "int4")])
def test_only_what_the_optimizer_bears_is_chosen(optimizer, scheme):
    assert choose(axis(12.5e6, optimizer=optimizer), "feedback").rung.scheme == scheme
    work = dataclasses.replace(workloads.nano(16), trained_by=optimizer)
    mesh = dict.fromkeys(MESH_AXES, 1) | {"zone": 2, "data": 2, "fsdp": 4}
    made = plan(work, nodes("H100", 16), Search(mesh=mesh))
    wish = {"zone": Travel(scheme="auto", budget="feedback")}
    said, why = travelling(made, wish, work, nodes("H100", 16))
    listed = why["communication zone"]
    assert ("topk" in listed) == (optimizer == "adamw"), listed
    assert all(each.scheme != "topk" for each in said) or optimizer == "adamw"


def test_small_buckets_pay_latency():
    patient = choose(axis(12.5e6, latency=0.02), "16-bit")
    count = -(-M25 // patient.bucket)
    assert 2 * 0.02 * count <= 0.03 * patient.seconds
    assert choose(axis(12.5e6), "16-bit").bucket < patient.bucket
    said = communication(patient, axis(12.5e6))
    assert said.scheme == "bf16"
    assert said.parameters["bucket_mb"] == pytest.approx(4 * patient.bucket / 2**20, rel=0.01)


def test_what_is_in_use_stays_unless_another_is_clearly_faster():
    near = axis(12.5e6, codec={"int8": 0.0, "int8_shared": 1e-9})
    assert [each.rung.scheme for each in ranked(near, "8-bit")[:2]] == ["int8", "int8_shared"]
    assert choose(near, "8-bit").rung.scheme == "int8"
    assert choose(near, "8-bit", now="int8_shared").rung.scheme == "int8_shared"
    assert choose(near, "8-bit", now="none").rung.scheme == "int8"


def test_local_steps_make_the_exchange_a_small_share():
    slow = axis(12.5e6)
    steps = frequency(slow, compute=1.0)
    exchange = price(BY["none"], slow).seconds
    assert exchange / (exchange + steps) <= 0.1 < exchange / (exchange + steps - 1)
    assert frequency(axis(1e12), compute=1.0) == 1
    with pytest.raises(PlanError, match="local steps would be needed"):
        frequency(slow, compute=0.01)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_allocation_is_the_best_of_all_within_its_budget(seed):
    random = np.random.default_rng(seed)
    lost = [0.0, 1e-4, 0.03, 0.9]
    sizes, energy = random.integers(1, 100, 6), random.exponential(size=6) ** 3
    seconds = sizes[:, None] * np.array([32.0, 8.0, 4.0, 0.3])[None]
    for epsilon in (0.0, 1e-4, 0.01, 0.2, 1.0):
        chosen = allocate(energy.tolist(), seconds, lost, epsilon)
        spent = sum(e * lost[r] for e, r in zip(energy, chosen, strict=True))
        assert spent <= epsilon * energy.sum() * (1 + 1e-9)
        took = sum(seconds[i, r] for i, r in enumerate(chosen))
        feasible = [
            sum(seconds[i, r] for i, r in enumerate(picks))
            for picks in itertools.product(range(4), repeat=6)
            if sum(e * lost[r] for e, r in zip(energy, picks, strict=True)) <= epsilon * energy.sum() * 0.995
        ]
        assert took <= min(feasible) * (1 + 1e-9)
    with pytest.raises(PlanError, match="no way to travel"):
        allocate([1.0], np.ones((1, 1)), [0.5], 0.1)


def test_the_axis_of_a_cluster_crosses_its_slowest_link():
    cluster = nodes("H100", 16)
    mesh = dict.fromkeys(MESH_AXES, 1) | {"zone": 2, "data": 2, "fsdp": 4}
    found = axis_of(cluster, mesh, "zone", 1_000_000)
    assert found.link == cluster.tiers[-1]
    assert (found.workers, found.elements) == (2, 125_000)

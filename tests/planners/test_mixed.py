"""Unequal pools: fast devices do more, slow ones set no pace, and what must fit fits."""

import dataclasses

import numpy as np
import pytest

from planners.candidates import Candidates
from planners.machines.presets import nodes
from planners.machines.topology import Cluster, Pool, join
from planners.prices.assumptions import Assumptions
from planners.space.mixed import by_layers, pool_prices, uneven
from tests.planners.workloads import llama

WORK = llama("small", layers=24, embed=1024, heads=16, mlp=4096, vocab=32000, batch=256, sequence=1024, dtype="float16")


def mixed(each: int = 16) -> Cluster:
    pools = [
        Pool(name=name, device=nodes(kind, 8).device, count=each, tiers=nodes(kind, each).tiers)
        for name, kind in (("old", "V100"), ("new", "A100-40"))
    ]
    outer = dataclasses.replace(nodes("V100", 16).tiers[-1], devices=2 * each)
    return join("mixed", pools, [outer])


def plans(cluster: Cluster, candidates: Candidates):
    return uneven(WORK, cluster, candidates, assumptions=Assumptions())


def test_a_cluster_of_equal_devices_has_no_uneven_plan():
    assert plans(nodes("A100-40", 16), Candidates.of({"data": 16}, microbatch=16)) == []


def test_replicas_on_faster_devices_compute_more_microbatches_and_the_step_is_shorter():
    found = [one for one in plans(mixed(), Candidates.of({"data": 32}, microbatch=32)) if one.kind == "shares"]
    best = found[0]
    counts, pools = np.array(best.counts), np.array(best.pools)
    assert counts.sum() == WORK.batch
    assert counts[pools == 1].min() > counts[pools == 0].max()
    assert best.seconds < best.even
    assert sum(best.shares) == pytest.approx(1.0)
    assert "microbatches per replica: old" in best.describe(mixed())


def test_a_replica_that_spans_pools_gets_no_share_of_its_own():
    across = Candidates.of({"data": 1, "fsdp": 32}, microbatch=32)
    assert not [one for one in plans(mixed(), across) if one.kind == "shares"]


def test_stages_on_faster_devices_hold_more_layers():
    cluster, candidates = mixed(), Candidates.of({"data": 16, "stage": 2}, microbatch=16)
    prices = pool_prices(WORK, cluster, candidates, assumptions=Assumptions())
    budgets = np.array([pool.device.memory for pool in cluster.parts])
    (layers,) = by_layers(WORK, cluster, candidates, prices, budgets)
    assert sum(layers.counts) == WORK.layers
    assert layers.counts[layers.pools.index(1)] > layers.counts[layers.pools.index(0)]


def test_the_fastest_comes_first():
    options = Candidates.of({"data": np.array([32, 16, 8]), "tensor": np.array([1, 2, 4])}, microbatch=32)
    seconds = [one.seconds for one in plans(mixed(), options)]
    assert seconds == sorted(seconds)


def test_a_split_that_a_better_even_plan_beats_is_not_proposed():
    options = Candidates.of({"data": np.array([32, 2]), "tensor": np.array([1, 16])}, microbatch=32)
    rows = {one.row for one in plans(mixed(), options)}
    assert rows <= {0}


def test_nothing_is_proposed_that_does_not_fit():
    huge = dataclasses.replace(WORK, batch=WORK.batch)
    tight = uneven(
        huge, mixed(), Candidates.of({"data": 32}, microbatch=32), memory_fraction=0.01, assumptions=Assumptions()
    )
    assert tight == []

"""Measured tables of collectives and matrix products, and cluster files that hold them."""

import numpy as np
import pytest

from planners.machines.cluster_file import load_cluster
from planners.machines.device_table import Product, product_rate
from planners.machines.link_table import Timing, collective_seconds, moved
from planners.plan import MESH_AXES, PlanError
from planners.prices.assumptions import Assumptions
from planners.prices.comm import group
from planners.prices.compute import matmul_seconds

ALPHA, BANDWIDTH = 50e-6, 1e9


def affine(*sizes: int, ranks: int = 4) -> list[Timing]:
    return [Timing(ranks=ranks, bytes=size, seconds=ALPHA + size / BANDWIDTH) for size in sizes]


def test_a_latency_plus_bytes_over_bandwidth_is_read_exactly_at_any_size_within_and_above_the_rows():
    sizes = np.array([2_000.0, 50_000.0, 3e6, 1e9])
    got = collective_seconds(affine(1_000_000, 1_000, 30_000), "all_reduce", 4, sizes)
    np.testing.assert_allclose(got, ALPHA + sizes / BANDWIDTH)


def test_below_the_smallest_row_a_call_takes_as_long_as_that_row():
    assert collective_seconds(affine(1_000, 10_000), "permute", 4, 1) == pytest.approx(ALPHA + 1e-6)


def test_between_two_rank_counts_time_is_linear_in_their_logarithm():
    rows = [Timing(ranks=2, bytes=100, seconds=1.0), Timing(ranks=8, bytes=100, seconds=3.0)]
    assert collective_seconds(rows, "all_gather", 4, 100) == pytest.approx(2.0)


@pytest.mark.parametrize(("collective", "factor"), [("all_gather", 7 / 8 / (3 / 4)), ("permute", 1.0)])
def test_beyond_the_measured_ranks_time_grows_as_the_bytes_of_a_ring(collective, factor):
    rows = affine(1_000, 2_000)
    assert collective_seconds(rows, collective, 8, 1_500) == pytest.approx(
        collective_seconds(rows, collective, 4, 1_500) * factor
    )
    assert moved("all_reduce", 8) == 2 * moved("reduce_scatter", 8)


def test_no_row_is_an_error_that_names_the_collective():
    with pytest.raises(ValueError, match="all_to_all"):
        collective_seconds([], "all_to_all", 4, 1)


def test_a_products_rate_is_that_of_its_row_and_stays_beyond_the_last():
    rows = [Product(flops=1e6, seconds=1e-4), Product(flops=1e9, seconds=1e-2)]
    np.testing.assert_allclose(product_rate(rows, np.array([1.0, 1e6, 1e9, 1e12])), [1e10, 1e10, 1e11, 1e11])
    assert 1e10 < product_rate(rows, 3e7) < 1e11


FILE = """\
device: {kind: cpu, memory: 1000000, peak: {float32: 1.0e+11}, products: {float32: [{flops: 1.0e+6, seconds: 1.0e-4}]}}
count: 4
tiers:
  - {name: shared memory, devices: 4, bandwidth: 1.0e+9, measured: {%s: [{ranks: 4, bytes: 1000, seconds: 1.0e-3}]}}
"""


def test_a_cluster_file_holds_measured_tables(tmp_path):
    path = tmp_path / "probe.yaml"
    path.write_text(FILE % "all_reduce")
    cluster = load_cluster(path)
    assert cluster.tiers[0].measured["all_reduce"] == (Timing(ranks=4, bytes=1000, seconds=1e-3),)
    assert cluster.device.products["float32"][0].seconds == 1e-4


def test_an_unknown_collective_in_a_cluster_file_is_named_with_a_suggestion(tmp_path):
    path = tmp_path / "probe.yaml"
    path.write_text(FILE % "allreduce")
    with pytest.raises(PlanError, match="did you mean 'all_reduce'"):
        load_cluster(path)


def test_the_cost_model_reads_measured_tables_where_a_cluster_has_them(tmp_path):
    path = tmp_path / "probe.yaml"
    path.write_text(FILE % "all_reduce")
    cluster = load_cluster(path)
    ring = group(cluster, dict.fromkeys(MESH_AXES, 1) | {"data": 4}, "data")
    np.testing.assert_allclose(ring.all_reduce(2_000.0), [2e-3])
    np.testing.assert_allclose(ring.all_gather(2_000.0), [1.5e-6])
    np.testing.assert_allclose(matmul_seconds(1e9, 1e6, cluster.device, "float32", Assumptions()), 0.1)

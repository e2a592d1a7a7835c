"""Drift between two probes, and the fit of a latency and a bandwidth to a table."""

import dataclasses

import numpy as np
import pytest

from planners.machines.comparison import changes
from planners.machines.device_table import Copy, Product
from planners.machines.link_table import Timing, fitted, moved
from planners.machines.topology import Cluster, Device, Link


def probed(*, slower: float = 1.0, noise: float = 0.02) -> Cluster:
    """Four devices; only the all-reduce of 1 MB takes `slower` times as long."""
    device = Device(
        kind="cpu",
        memory=2**30,
        products={"float32": (Product(flops=1e9, seconds=0.1, noise=noise),)},
        copies=(Copy(bytes=1000, seconds=1e-6, noise=noise),),
    )
    taken = {10**3: 1e-6, 10**6: 1e-3 * slower}
    rows = [Timing(ranks=4, bytes=b, seconds=s, noise=noise) for b, s in taken.items()]
    link = Link(name="bus", devices=4, bandwidth=1e9, measured={"all_reduce": tuple(rows)})
    return Cluster(name="probed", device=device, count=4, tiers=(link,))


def test_a_figure_that_moved_by_more_than_its_noise_is_named_with_its_factor():
    found, shared = changes(probed(), probed(slower=2.0))
    assert shared == 4
    assert [(change.factor, change.what) for change in found] == [(2.0, "all_reduce over 4 of bus, 1,000,000 B")]
    assert "2.00x slower" in found[0].line()


def test_a_change_within_the_noise_is_not_reported():
    assert changes(probed(noise=0.2), probed(slower=1.5, noise=0.2))[0] == []
    assert changes(probed(noise=0.0), probed(slower=1.05, noise=0.0))[0] == []


def test_figures_of_only_one_file_are_not_compared():
    bare = dataclasses.replace(probed(), tiers=(Link(name="bus", devices=4, bandwidth=1e9),))
    assert changes(bare, probed()) == ([], 2)


def test_the_fit_finds_latency_growth_and_bandwidth_of_an_exact_table():
    rows = [
        Timing(ranks=n, bytes=b, seconds=20e-6 + 10e-6 * np.log2(n) + moved("all_reduce", n) * b / 5e9)
        for n in (2, 4, 8)
        for b in (10**3, 10**5, 10**7)
    ]
    np.testing.assert_allclose(fitted(rows, "all_reduce"), (20e-6, 10e-6, 5e9), rtol=1e-6)


def test_the_fit_has_no_negative_term_and_a_bandwidth_even_of_one_row():
    falling = [Timing(ranks=2, bytes=b, seconds=s) for b, s in ((10**3, 3e-3), (10**6, 2e-3))]
    latency, doubling, bandwidth = fitted(falling, "all_reduce")
    assert latency > 0
    assert doubling == 0
    assert bandwidth > 0
    with pytest.raises(ValueError, match="all_gather"):
        fitted([], "all_gather")

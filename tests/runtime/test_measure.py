"""The probe's clockwork, and a real probe of eight forced devices that ends in a cluster file."""

import io

import jax
import pytest
import yaml

from jaxlm.probe import Extent, far_apart, measure, summary
from jaxlm.runtime.measure import Level, Meter, Prepared, Program, bytes_of, levels
from planners.machines.cluster_file import load_cluster
from planners.machines.link_table import COLLECTIVES
from planners.plan import MESH_AXES, PlanError
from planners.prices.comm import group


class FakeMachine:
    """Programs that take known seconds: a start, and `each` per call; every third run of all is ten times slower."""

    def __init__(self, start: float):
        self.now, self.start, self.runs = 0.0, start, 0

    def program(self, each: float) -> Program:
        def run(calls: int) -> None:
            self.runs += 1
            self.now += (self.start + calls * each) * (10 if self.runs % 7 == 0 else 1)

        return Program(f"{each}", run)

    def meter(self, budget: float) -> Meter:
        return Meter(budget, clock=lambda: self.now)


def test_the_start_of_a_program_and_slow_moments_do_not_count():
    machine = FakeMachine(start=5e-4)
    meter = machine.meter(10.0)
    prepared = [meter.prepare(machine.program(each)) for each in (1e-4, 1e-3, 0.5)]
    spreads = meter.spreads(prepared, lambda turn, turns: None)
    assert [s.seconds for s in spreads] == pytest.approx([1e-4, 1e-3, 0.5], rel=1e-6)
    assert [p.calls for p in prepared] == [64, 4, 1]


def test_turns_are_fewer_when_the_budget_is_small_and_never_below_five():
    machine = FakeMachine(start=0.0)
    turns: list[int] = []
    machine.meter(0.0).spreads([Prepared(machine.program(1.0), 1, 1.0)], lambda turn, of: turns.append(of))
    assert turns == [5] * 5


def test_sizes_are_whole_numbers_on_every_rank():
    assert bytes_of(3, 1000) == 996
    assert bytes_of(8, 1) == 32


def test_sizes_far_apart_come_first_so_that_a_short_probe_spans_them():
    assert far_apart([1, 2, 3, 4, 5, 6, 7, 8]) == [1, 4, 7, 2, 3, 5, 6, 8]


@pytest.fixture(scope="module")
def probed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Level, "rank_counts", lambda level: [2, 8])
        return measure(Extent(seconds=6.0, side=128, message=2**17, step=7), io.StringIO())


def test_a_probe_measures_every_dtype_memory_and_every_collective_by_ranks(probed):
    device, (tier,) = probed.cluster.device, probed.cluster.tiers
    assert set(device.products) == {"float32", "bfloat16", "float16", "int8"}
    assert all(rate > 0 for rate in device.peak.values())
    assert device.copies
    assert set(tier.measured) == set(COLLECTIVES)
    for rows in tier.measured.values():
        assert {row.ranks for row in rows} == {2, 8}
        assert {row.bytes for row in rows} == {2**10, 2**17}
    assert "8 x cpu" in summary(probed.cluster)
    assert "measured by jaxlm probe" in device.source


def test_what_a_probe_writes_is_a_cluster_that_plans_read(probed, tmp_path):
    path = tmp_path / "here.yaml"
    path.write_text(probed.text())
    assert load_cluster(path) == probed.cluster
    assert yaml.safe_load(path.read_text())["count"] == 8
    ring = group(load_cluster(path), dict.fromkeys(MESH_AXES, 1) | {"data": 8}, "data")
    (row,) = [r for r in probed.cluster.tiers[0].measured["all_reduce"] if r.ranks == 8 and r.bytes == 2**17]
    assert ring.all_reduce(2.0**17)[0] == pytest.approx(row.seconds)


def test_the_devices_of_one_process_are_one_level():
    (level,) = levels()
    assert level.devices == jax.device_count() == 8
    assert level.rank_counts() == [2, 4, 8]
    assert level.groups(4).shape == (2, 4)


def test_the_probe_names_what_a_backend_cannot_do(monkeypatch):
    def refuse(size: int, dtype: str) -> Program:
        raise NotImplementedError(f"no {dtype} here")

    monkeypatch.setattr("jaxlm.probe.product", refuse)
    with pytest.raises(PlanError, match=r"no matrix product runs here.*no int8 here"):
        measure(Extent(seconds=1.0, side=64, message=2**10), io.StringIO())

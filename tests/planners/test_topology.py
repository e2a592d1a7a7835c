"""Clusters are described by facts, an unknown device is said to be unknown, and typing errors are named."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planners.machines.cluster_file import load_cluster, save_cluster
from planners.machines.link_table import COLLECTIVES, Timing
from planners.machines.presets import local_cluster, nodes
from planners.machines.topology import Cluster, Device, Edge, Link, Pool, join
from planners.plan import PlanError


@pytest.mark.parametrize(
    ("kind", "bfloat16"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5e12),
        ("NVIDIA H200", 989.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Tesla V100-SXM2-32GB", 15.7e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Some New Device", None),
        ("cpu", None),
    ],
)
def test_peak_is_known_or_said_to_be_unknown(kind: str, bfloat16: float | None) -> None:
    cluster = local_cluster(kind, 8, 70 * 2**30, 1, 16)
    assert cluster.device.peak.get("bfloat16") == bfloat16
    assert cluster.device.memory == 70 * 2**30
    assert cluster.device.source


def test_unknown_device_needs_its_memory() -> None:
    with pytest.raises(PlanError, match="memory of device 'Some New Device' is unknown"):
        local_cluster("Some New Device", 1, None, 1, 1)
    assert local_cluster("NVIDIA H200", 1, None, 1, 1).device.memory == nodes("H200", 1).device.memory
    assert local_cluster("cpu", 2, None, 1, 2).device.memory > 0


def test_nodes_have_two_tiers_and_processes_are_nodes() -> None:
    assert [tier.devices for tier in nodes("H100", 64).tiers] == [8, 64]
    assert local_cluster("NVIDIA H200", 16, None, 2, 8).node == 8
    assert local_cluster("NVIDIA H200", 16, None, 16, 8).node == 8, "one process per device"
    assert local_cluster("cpu", 8, 2**30, 2, 2).node == 4
    with pytest.raises(PlanError, match="12 devices do not fill nodes of 8"):
        nodes("H100", 12)


def test_forced_devices_share_the_cores() -> None:
    one, eight = (local_cluster("cpu", count, 2**30, 1, 2).device for count in (1, 8))
    assert one.nominal == pytest.approx(8 * eight.nominal)


@pytest.mark.parametrize("name", ["h100x8", "A100-80x512", "v100x16", "cpux2"])
def test_presets_load(name: str) -> None:
    assert load_cluster(name).count == int(name.rsplit("x", 1)[1])


def test_unknown_preset_suggests() -> None:
    with pytest.raises(PlanError, match="unknown cluster 'h1000x8' \\(did you mean 'h100x8'\\?\\)"):
        load_cluster("h1000x8")


def test_file_with_a_known_device(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("device: H100\ncount: 16\n")
    assert (load_cluster(file).name, load_cluster(file).nodes) == ("mine", 2)
    assert load_cluster(file).tiers == nodes("H100", 16).tiers


def test_file_with_its_own_device(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "device: {kind: X, memory: 1000, peak: {bfloat16: 1.0e12}}\ncount: 2\n"
        "tiers: [{name: wire, devices: 2, bandwidth: 3.4e11}]\n"
    )
    cluster = load_cluster(file)
    assert cluster.device.peak == {"bfloat16": 1e12}
    assert cluster.tiers[0].bandwidth == 3.4e11


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("device: H100\ncout: 8\n", "unknown key 'cout' (did you mean 'count'?)"),
        ("device: H10\ncount: 8\n", "unknown device 'H10' (did you mean 'H100'?)"),
        ("device: {kind: X, memry: 3}\ncount: 1\n", "device: unknown key 'memry' (did you mean 'memory'?)"),
        ("device: H100\n", "count missing"),
        ("device: H100\ncount: many\n", "count='many' must be a positive whole number"),
        ("device: {kind: X, memory: 9}\ncount: 2\n", "2 devices need at least one tier"),
        ("[1]", "must hold a mapping"),
        ("{", "cannot be read"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(PlanError) as caught:
        load_cluster(file)
    assert words in str(caught.value)
    assert "mine" in str(caught.value)


def test_missing_file() -> None:
    with pytest.raises(PlanError, match=r"nowhere\.yaml does not exist"):
        load_cluster("nowhere.yaml")


CLUSTERS = sorted((Path(__file__).parents[2] / "configs" / "clusters").glob("*.yaml"))


@pytest.mark.parametrize("name", ["A100-40", "A100-80", "H100", "H200", "V100"])
@pytest.mark.parametrize("count", [8, 64, 512, 4096])
def test_presets_go_to_4096_devices(name: str, count: int) -> None:
    cluster = load_cluster(f"{name.lower()}x{count}")
    assert (cluster.count, cluster.nodes, cluster.unequal) == (count, count // 8, False)
    with pytest.raises(PlanError, match="8192 devices; presets end at 4096"):
        load_cluster(f"{name.lower()}x8192")


def test_a_mixture_is_as_good_as_its_weakest_device() -> None:
    mixed = load_cluster("v100x16+a100-80x32")
    old, new = nodes("V100", 16), nodes("A100-80", 32)
    assert mixed.unequal
    assert [(pool.device.kind, pool.count) for pool in mixed.parts] == [("V100", 16), ("A100-80", 32)]
    assert mixed.device.memory == old.device.memory
    assert mixed.device.peak["float16"] == old.device.peak["float16"]
    assert mixed.device.peak["bfloat16"] == mixed.device.peak["float32"] == 15.7e12, "V100 computes bfloat16 in float32"
    assert mixed.device.emulated == {"bfloat16": "float32"}
    assert mixed.peak("bfloat16") == 16 * 15.7e12 + 32 * new.device.peak["bfloat16"]
    assert mixed.peak("float64") is None
    assert mixed.peak("float16") == 16 * old.device.peak["float16"] + 32 * new.device.peak["float16"]
    assert [tier.devices for tier in mixed.tiers] == [8, 16, 48]
    assert [tier.bandwidth for tier in mixed.tiers[:2]] == [tier.bandwidth for tier in old.tiers]
    assert mixed.tiers[2].bandwidth == old.tiers[1].bandwidth
    assert "16 x V100" in mixed.describe()
    assert "32 x A100-80" in mixed.describe()


def test_zones_of_equal_devices_add_a_tier() -> None:
    cluster = load_cluster(next(path for path in CLUSTERS if path.stem == "two-zones-h100"))
    assert not cluster.unequal
    assert cluster.device == nodes("H100", 8).device
    assert cluster.tiers[:2] == nodes("H100", 128).tiers
    assert cluster.tiers[2].devices == cluster.count == 256


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_shipped_clusters_load(path: Path) -> None:
    assert load_cluster(path).count >= 8


samples = st.builds(Timing, ranks=st.integers(2, 64), bytes=st.integers(1000, 10**9), seconds=st.floats(1e-6, 1.0))
inner = st.builds(
    Link,
    name=st.just("wire"),
    devices=st.just(4),
    bandwidth=st.floats(1e9, 1e12),
    latency=st.floats(0, 1e-3),
    measured=st.dictionaries(st.sampled_from(COLLECTIVES), st.lists(samples, min_size=1, max_size=3).map(tuple)),
)
pools = st.builds(
    Pool,
    name=st.sampled_from(["a", "b"]),
    device=st.builds(
        Device,
        kind=st.sampled_from(["X", "Y"]),
        memory=st.integers(2**33, 2**40),
        peak=st.dictionaries(st.sampled_from(["float32", "bfloat16"]), st.floats(1e12, 1e15)),
    ),
    count=st.sampled_from([4, 8]),
    tiers=st.tuples(inner, st.just(Link(name="net", devices=8, bandwidth=1e9))),
)


@settings(deadline=None, max_examples=12)
@given(parts=st.lists(pools, min_size=1, max_size=3), slow=st.floats(1e6, 1e9))
def test_clusters_survive_yaml(tmp_path_factory: pytest.TempPathFactory, parts: list[Pool], slow: float) -> None:
    mixed = join(
        "mix", parts, [Link(name="far", devices=64, bandwidth=1e8)], [Edge(tier="far", between=(0,), bandwidth=slow)]
    )
    equal = Cluster(name="one", device=parts[0].device, count=parts[0].count, tiers=parts[0].tiers)
    file = tmp_path_factory.mktemp("clusters") / "cluster.yaml"
    for cluster in (mixed, equal, dataclasses.replace(equal, shared=True)):
        save_cluster(cluster, file)
        assert load_cluster(file) == cluster


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pools: [{name: a, device: H100, cont: 8}]\n", "pools[0]: unknown key 'cont' (did you mean 'count'?)"),
        ("pools: [{name: a, device: H100, count: 8}, {name: b, device: V100, count: 8}]\n", "2 pools need a tier"),
        ("pools: {}\n", "pools must be a list"),
        ("pools: []\n", "at least one pool"),
        ("device: H100\ncount: 12\n", "12 devices do not fill nodes of 8"),
        ("device: H100\ncount: 64\nedges: [{tier: rack, between: [0, 1], bandwidth: 1}]\n", "edge names tier 'rack'"),
        (
            "device: H100\ncount: 16\nedges: [{tier: NVLink 4, between: [0, 16], bandwidth: 1}]\n",
            "joins 16 members, numbered 0 to 15",
        ),
        ("device: H100\ncount: 16\nedges: [{tier: NVLink 4, betwen: [0, 1]}]\n", "'betwen' (did you mean 'between'?)"),
        (
            "device: H100\ncount: 2\ntiers: [{name: w, devices: 2, bandwidth: 1, measured: {all_redcue: []}}]\n",
            "unknown collective 'all_redcue' (did you mean 'all_reduce'?)",
        ),
        (
            "device: H100\ncount: 2\ntiers: [{name: w, devices: 2, bandwidth: 1, measured: {permute: [{rnks: 2}]}}]\n",
            "measured.permute[0]: unknown key 'rnks' (did you mean 'ranks'?)",
        ),
    ],
)
def test_wrong_graphs_are_named(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(PlanError) as caught:
        load_cluster(file)
    assert words in str(caught.value)
    assert "mine" in str(caught.value)


def test_a_misspelt_part_of_a_mixture_is_named() -> None:
    with pytest.raises(PlanError, match="unknown cluster 'v100x8\\+a10x8'"):
        load_cluster("v100x8+a10x8")

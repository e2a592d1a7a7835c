"""Clusters are described by facts, an unknown device is said to be unknown, and typing errors are named."""

from pathlib import Path

import pytest

from planners.plan import PlanError
from planners.topology import load_cluster, local_cluster, nodes


@pytest.mark.parametrize(
    ("kind", "bfloat16"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5e12),
        ("NVIDIA H200", 989.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Tesla V100-SXM2-32GB", None),
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

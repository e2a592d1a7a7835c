"""Two real processes are probed together, and a second probe is compared with the first."""

import json

import pytest
import yaml

from experiments.processes import free_port
from tests.cli.programs import finish, start


def probe(home, *more: str) -> str:
    """What process 0 of two, with two devices each, prints."""
    job = ["--coordinator", f"localhost:{free_port()}", "--processes", "2", "--quick", "--seconds", "2"]
    running = [start(["probe", *more, *job, "--process", str(i)], home=home, devices=2) for i in range(2)]
    first, _ = [finish(process, seconds=400) for process in running]
    return first


@pytest.mark.slow
def test_processes_of_one_host_are_a_tier_of_their_own_and_drift_is_reported(tmp_path):
    before, after = tmp_path / "before.yaml", tmp_path / "after.yaml"
    assert "saved" in probe(tmp_path, "--out", str(before))
    raw = yaml.safe_load(before.read_text())
    assert raw["count"] == 4
    assert [tier["devices"] for tier in raw["tiers"]] == [2, 4]
    for row in raw["tiers"][1]["measured"]["all_gather"]:
        row["seconds"] /= 50.0
    before.write_text(yaml.dump(raw))
    output = probe(tmp_path, "--out", str(after), "--compare", str(before), "--json")
    assert "figures changed by more than their noise" in output
    facts = json.loads(output.strip().splitlines()[-1])
    slower = [c["what"] for c in facts["drift"]["changed"] if c["factor"] > 10]
    assert slower
    assert all(what.startswith("all_gather over 2 of processes of one host") for what in slower)

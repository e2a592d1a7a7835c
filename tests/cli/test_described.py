"""`jaxlm train --cluster`: a run is planned with a cluster file where it is named, and only for its own devices."""

import pytest

from tests.cli.programs import finish, start, write_config

FILE = """\
device: {kind: cpu, memory: 4000000000, peak: {float32: 1.0e+10}, source: measured by a test}
count: %d
shared: true
tiers: [{name: bus, devices: %d, bandwidth: 1.0e+9}]
"""


@pytest.mark.slow
def test_a_run_is_planned_with_the_cluster_file_it_is_given_and_refuses_another_machines(tmp_path):
    config, file = write_config(tmp_path), tmp_path / "here.yaml"
    file.write_text(FILE % (2, 2))
    common = ["train", config, "--cluster", file, "--train.steps", "1"]
    finish(start([*common, "--run-dir", tmp_path / "run"], home=tmp_path, devices=2))
    assert "measured by a test" in (tmp_path / "run" / "plan.txt").read_text()
    output = finish(start([*common, "--run-dir", tmp_path / "other"], home=tmp_path, devices=1), code=2)
    assert "describes 2 x cpu" in output
    assert "jaxlm probe --out" in output

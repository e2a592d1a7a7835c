"""Two real processes over gloo train as one device does, stop together, and hand their checkpoint to any mesh."""

import signal

import numpy as np
import pytest

from experiments.processes import free_port
from tests.cli.programs import finish, losses, signal_at, start, write_config

EXACT = ["--optim.lr", "1e-3", "--model.dropout", "0.0", "--train.steps", "40", "--checkpoint.every_steps", "1000"]


def launch(config, run, home, mesh: str, *more: str):
    """Two processes of four devices each; `more` comes after what is fixed here."""
    job = ["--coordinator", f"localhost:{free_port()}", "--processes", "2"]
    axes = [part for pair in mesh.split() for part in (f"--plan.mesh.{pair.split('=')[0]}", pair.split("=")[1])]
    command = ["train", config, "--run-dir", run, *EXACT, *axes, *job, *more]
    return [start([*command, "--process", str(i)], home=home, devices=4) for i in range(2)]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    home = tmp_path_factory.mktemp("hosts")
    config = write_config(home)
    finish(start(["train", config, "--run-dir", home / "one", *EXACT], home=home))
    return home, config, losses(home / "one")


def test_two_processes_stop_together_resume_and_equal_one_device(one_device):
    home, config, want = one_device
    run = home / "two"
    first, second = launch(config, run, home, "data=2 fsdp=2 tensor=2")
    signal_at(second, run / "metrics.jsonl", 6, signal.SIGTERM)
    output = finish(first, 143)
    finish(second, 143)
    assert "stopped by signal 15; state after step" in output
    stopped = losses(run)[-1][0]
    assert 6 <= stopped < 40
    output, _ = [finish(process) for process in launch(config, run, home, "fsdp=8")]
    assert f"after step {stopped}" in output
    got = losses(run)
    assert [step for step, *_ in got] == [step for step, *_ in want] == list(range(1, 41))
    np.testing.assert_allclose([r[1] for r in got], [r[1] for r in want], rtol=1e-5)
    np.testing.assert_allclose(got[0][1:], want[0][1:], rtol=1e-6)


def test_what_two_processes_saved_goes_on_in_one_with_eight_devices(one_device):
    home, config, _ = one_device
    more = ["--train.steps", "42", "--plan.mesh.tensor", "4", "--plan.mesh.data", "2"]
    output = finish(start(["train", config, "--run-dir", home / "two", *EXACT, *more], home=home, devices=8))
    assert "after step 40" in output
    assert [step for step, *_ in losses(home / "two")][-2:] == [41, 42]

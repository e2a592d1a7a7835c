"""A run goes on elsewhere: on other devices, on another number of processes, and after one of several has died."""

import signal

import numpy as np
import pytest

from tests.cli.programs import finish, losses, signal_at, start, write_config
from tests.multihost.test_two_processes import launch

pytestmark = pytest.mark.slow

LONG = ["--train.steps", "100", "--checkpoint.every_steps", "50", "--model.dropout", "0.0", "--optim.lr", "1e-3"]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-3)])
def test_half_a_run_on_one_process_and_half_on_two_with_another_mesh_gives_the_losses_of_an_undisturbed_run(
    tmp_path, dtype, tolerance
):
    config, kind = write_config(tmp_path), [*LONG, "--model.dtype", dtype]
    one = ["train", config, *kind, "--plan.mesh.fsdp", "8"]
    finish(start([*one, "--run-dir", tmp_path / "undisturbed"], home=tmp_path, devices=8))
    run = tmp_path / "moved"
    process = start([*one, "--run-dir", run], home=tmp_path, devices=8)
    signal_at(process, run / "metrics.jsonl", 60, signal.SIGKILL)
    finish(process, -signal.SIGKILL)
    output, _ = [finish(each) for each in launch(config, run, tmp_path, "data=2 tensor=4", *kind)]
    assert "after step 50" in output
    want, got = losses(tmp_path / "undisturbed"), losses(run)
    assert [step for step, *_ in got] == [step for step, *_ in want] == list(range(1, 101))
    assert got[:50] == want[:50]
    np.testing.assert_allclose([r[1] for r in got], [r[1] for r in want], rtol=tolerance)


def test_when_one_of_two_processes_is_killed_the_other_ends_with_one_message_and_both_resume(tmp_path):
    config, run = write_config(tmp_path), tmp_path / "run"
    often = ["--checkpoint.every_steps", "5"]
    finish(start(["train", config, "--run-dir", tmp_path / "undisturbed", *LONG], home=tmp_path))
    first, second = launch(config, run, tmp_path, "data=8", *LONG, *often, "--dead-after", "10")
    signal_at(second, run / "metrics.jsonl", 12, signal.SIGKILL)
    output = finish(first, 1, seconds=60)
    finish(second, -signal.SIGKILL)
    said = [line for line in output.splitlines() if line.startswith("jaxlm: error: ")]
    assert len(said) == 1, output
    assert said[0].startswith("jaxlm: error: process 1 of 2 died: it gave no sign of life for 10 s")
    assert "Traceback" not in output
    output, _ = [finish(process) for process in launch(config, run, tmp_path, "data=8", *LONG, *often)]
    assert "resuming" in output
    want, got = losses(tmp_path / "undisturbed"), losses(run)
    assert [step for step, *_ in got] == list(range(1, 101))
    np.testing.assert_allclose([r[1] for r in got], [r[1] for r in want], rtol=1e-5)

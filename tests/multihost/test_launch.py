"""`jaxlm launch local`: a run on many hosts survives the death of one, goes on with fewer and comes back to more."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.cli.programs import finish, losses, records, start, write_config

EXACT = ["--model.dropout", "0.0", "--optim.lr", "1e-3", "--checkpoint.every_steps", "5"]


def wait_for_step(run: Path, step: int, process) -> None:
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or not any(r["step"] >= step for r in records(run / "metrics.jsonl")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"step {step} was never reached"
        time.sleep(0.02)


def children(process) -> list[int]:
    """The hosts of a launcher, in order."""
    return sorted(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))


def assert_same_run(run: Path, undisturbed: Path, steps: int) -> None:
    """The same batches, and losses equal to 1e-5, each step once."""
    got, want = (records(folder / "metrics.jsonl") for folder in (run, undisturbed))
    assert [r["step"] for r in got] == [r["step"] for r in want] == list(range(1, steps + 1))
    assert [r["batches"] for r in got] == [r["batches"] for r in want]
    np.testing.assert_allclose([r["loss"] for r in got], [r["loss"] for r in want], rtol=1e-5)


@pytest.mark.slow
def test_a_killed_host_is_named_all_end_and_the_run_goes_on_to_the_losses_of_an_undisturbed_one(tmp_path):
    config, run = write_config(tmp_path), tmp_path / "run"
    more = [*EXACT, "--train.steps", "12"]
    finish(start(["train", config, "--run-dir", tmp_path / "undisturbed", *more], home=tmp_path))
    launcher = start(["launch", "local", config, "--hosts", "2", "--run-dir", run, "--json", *more], home=tmp_path)
    wait_for_step(run, 7, launcher)
    os.kill(children(launcher)[1], signal.SIGKILL)
    output = finish(launcher)
    facts = json.loads(output.splitlines()[-1])
    assert (facts["code"], facts["attempts"]) == (0, 2)
    (failure,) = facts["failures"]
    assert failure["host"] == 1
    assert failure["why"].startswith("killed by SIGKILL")
    assert failure["seconds_to_end"] < 5
    assert "jaxlm: error: host 1 of 2 failed first: killed by SIGKILL" in output
    assert "resuming" in output
    assert "resume    jaxlm launch local --hosts 2 --devices 1 " in output
    assert (run / "hosts" / "1.log").read_text().count("--- attempt") == 2
    assert_same_run(run, tmp_path / "undisturbed", 12)
    assert [step for step, *_ in losses(run)] == list(range(1, 13))


@pytest.mark.slow
def test_four_hosts_go_on_as_two_and_come_back_as_four_with_the_tokens_and_losses_of_one(tmp_path):
    config, run = write_config(tmp_path), tmp_path / "run"
    more = [*EXACT, "--train.steps", "60"]
    finish(start(["train", config, "--run-dir", tmp_path / "undisturbed", *more], home=tmp_path))
    launcher = start(["launch", "local", config, "--hosts", "4", "--run-dir", run, "--json", *more], home=tmp_path)
    wait_for_step(run, 6, launcher)
    (run / "hosts" / "2.down").touch()  # 3 hosts do not divide 8 sequences, so 2 go on
    wait_for_step(run, 20, launcher)
    plan = json.loads((run / "plan.json").read_text())
    assert np.prod(list(plan["mesh"].values())) == 2
    (run / "hosts" / "2.down").unlink()
    output = finish(launcher)
    assert "the hosts have changed; 2 of 4 hosts (0, 1) go on" in output
    assert "the hosts have changed; 4 of 4 hosts (0, 1, 2, 3) go on" in output
    facts = json.loads(output.splitlines()[-1])
    assert (facts["code"], facts["attempts"], facts["failures"]) == (0, 3, [])
    assert_same_run(run, tmp_path / "undisturbed", 60)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_that_dies_twice_in_a_row_is_left_out(tmp_path, victim):
    config, run = write_config(tmp_path), tmp_path / "run"
    command = ["launch", "local", config, "--hosts", "2", "--run-dir", run, "--json", *EXACT, "--train.steps", "40"]
    launcher = start(command, home=tmp_path)
    for step in (6, 16):
        wait_for_step(run, step, launcher)
        os.kill(children(launcher)[victim], signal.SIGKILL)
        time.sleep(3)
    output = finish(launcher)
    facts = json.loads(output.splitlines()[-1])
    assert facts["code"] == 0
    assert [failure["host"] for failure in facts["failures"]] == [victim, victim]
    assert f"host {victim} failed 2 times in a row and is left out" in output
    assert "attempt 3 on 1 of 2 hosts" in output
    assert json.loads((run / "hosts" / f"{victim}.down").read_text())["why"].startswith("killed by SIGKILL")
    assert [step for step, *_ in losses(run)] == list(range(1, 41))


@pytest.mark.slow
def test_a_signal_to_the_launcher_saves_stops_and_the_same_command_goes_on(tmp_path):
    config, run = write_config(tmp_path), tmp_path / "run"
    command = ["launch", "local", config, "--hosts", "2", "--run-dir", run, *EXACT, "--train.steps", "30"]
    launcher = start(command, home=tmp_path)
    wait_for_step(run, 6, launcher)
    launcher.send_signal(signal.SIGTERM)
    output = finish(launcher, 143)
    assert "stopped by signal 15; state after step" in output
    assert "resuming" in finish(start(command, home=tmp_path))
    assert [step for step, *_ in losses(run)] == list(range(1, 31))


@pytest.mark.slow
def test_the_processes_find_each_other_by_the_variables_of_slurm(tmp_path):
    config, run = write_config(tmp_path), tmp_path / "run"
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    command = ["train", config, "--run-dir", run, *EXACT, "--train.steps", "3", "--coordinator", "auto"]
    started = []
    for number in range(2):
        variables = slurm | {"SLURM_PROCID": str(number), "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "2"}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            started.append(start(command, home=tmp_path))
    output, _ = [finish(process) for process in started]
    assert "data=2" in output
    assert len(losses(run)) == 3
    alone = finish(start(command, home=tmp_path), 2)
    assert "--coordinator auto: JAX finds no job of SLURM, MPI or Kubernetes" in alone


@pytest.mark.slow
def test_a_host_that_is_stopped_is_named_killed_and_the_run_goes_on(tmp_path):
    config, run = write_config(tmp_path), tmp_path / "run"
    more = [*EXACT, "--train.steps", "30"]
    finish(start(["train", config, "--run-dir", tmp_path / "undisturbed", *more], home=tmp_path))
    command = ["launch", "local", config, "--hosts", "2", "--run-dir", run, "--silent-after", "8", "--json", *more]
    launcher = start(command, home=tmp_path)
    wait_for_step(run, 7, launcher)
    victim = children(launcher)[1]
    os.kill(victim, signal.SIGSTOP)
    output = finish(launcher)
    (failure,) = json.loads(output.splitlines()[-1])["failures"]
    assert failure["host"] == 1
    assert "it has given no sign of life for" in failure["why"]
    assert not Path(f"/proc/{victim}").exists()
    assert_same_run(run, tmp_path / "undisturbed", 30)

"""SIGTERM and SIGINT outside of the steps: acted on at once, with what was saved intact."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from experiments.processes import free_port
from tests.cli.programs import finish, losses, signal_at, start, write_config, write_texts


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    write_config(folder)
    return folder


def signal_after(
    process: subprocess.Popen[str],
    words: str,
    number: signal.Signals,
    *,
    wait: float,
    to: subprocess.Popen[str] | None = None,
) -> str:
    """Sends the signal once a line of the output holds these words; returns what was printed until then."""
    assert process.stdout is not None
    printed = ""
    while words not in printed:
        line = process.stdout.readline()
        assert line, f"{words!r} was never printed:\n{printed}"
        printed += line
    time.sleep(wait)
    (to or process).send_signal(number)
    return printed


def test_a_signal_while_text_is_prepared_or_the_step_compiled_ends_the_run_at_once(home):
    texts = write_texts(home / "large", files=60, words=20_000)
    run, config = home / "early", home / "tiny.yaml"
    process = start(["train", config, "--run-dir", run, "--data.path", texts], home=home)
    signal_after(process, "learning 360 tokens", signal.SIGTERM, wait=0.2)
    output = finish(process, 143, seconds=60)
    assert "stopped by signal 15; no step was taken since the last checkpoint, so nothing is lost" in output
    process = start(["train", config, "--run-dir", run], home=home)
    signal_after(process, "valid: ", signal.SIGINT, wait=0.5)
    output = finish(process, 130, seconds=60)
    assert "stopped by signal 2; no step was taken since the last checkpoint" in output
    assert not (run / "metrics.jsonl").exists()


def test_a_signal_during_an_evaluation_gives_it_up_and_saves_the_state(home):
    run = home / "evaluating"
    arguments = ["--train.eval_every", "5", "--train.eval_batch", "1", "--checkpoint.every_steps", "100"]
    process = start(["train", home / "tiny.yaml", "--run-dir", run, *arguments], home=home)
    signal_at(process, run / "metrics.jsonl", 5, signal.SIGTERM)
    output = finish(process, 143)
    assert "the evaluation at step 5 is given up" in output
    assert "stopped by signal 15; state after step 5 saved. Resume: " in output
    assert [step for step, *_ in losses(run)] == [1, 2, 3, 4, 5]
    assert (run / "checkpoints" / "5" / "manifest.json").exists()
    assert not (run / "evaluations.jsonl").exists()


def launch(home: Path, run: Path) -> list[subprocess.Popen[str]]:
    """Two processes of one device each that evaluate at step 5 for a while."""
    job = ["--coordinator", f"localhost:{free_port()}", "--processes", "2"]
    often = ["--train.eval_every", "5", "--train.eval_batch", "2", "--checkpoint.every_steps", "100"]
    command = ["train", home / "tiny.yaml", "--run-dir", run, *job, *often]
    return [start([*command, "--process", str(i)], home=home) for i in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("one", [0, 1])
def test_two_processes_end_at_once_when_one_of_them_gets_a_signal_before_the_steps(home, one):
    pair = launch(home, home / f"compiling_{one}")
    printed = signal_after(pair[0], "valid: ", signal.SIGTERM, to=pair[one], wait=0.5)
    outputs = [finish(process, 143, seconds=90) for process in pair]
    outputs[0] = printed + outputs[0]
    assert "stopped by signal 15; no step was taken since the last checkpoint" in outputs[one]
    assert f"process {one} of 2 left: stopped by signal 15" in outputs[1 - one]


@pytest.mark.slow
def test_two_processes_give_up_an_evaluation_together(home):
    run = home / "two_evaluating"
    pair = launch(home, run)
    signal_at(pair[1], run / "metrics.jsonl", 5, signal.SIGTERM)
    outputs = [finish(process, 143) for process in pair]
    assert "the evaluation at step 5 is given up" in outputs[0]
    assert "stopped by signal 15; state after step 5 saved" in outputs[0]
    assert (run / "checkpoints" / "5" / "manifest.json").exists()

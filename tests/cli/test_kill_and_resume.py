"""Whatever ends a run, it goes on as if nothing had happened: bit for bit."""

import json
import signal
from pathlib import Path

import pytest

from tests.cli.programs import finish, losses, records, signal_at, start, write_config


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A configuration and a finished run of it."""
    home = tmp_path_factory.mktemp("kill")
    config = write_config(home)
    output = finish(start(["train", config, "--run-dir", home / "undisturbed"], home=home))
    return config, home, output


def train(config: Path, home: Path, name: str):
    return start(["train", config, "--run-dir", home / name], home=home)


def test_a_run_prints_its_plan_its_kernel_and_the_next_commands(undisturbed):
    _, home, output = undisturbed
    run = home / "undisturbed"
    for part in (
        "attention: xla kernel, float32 compute on cpu",
        "plan (searched for the devices found): one device",
        "bits per byte; gzip -9 of the same text",
        f"jaxlm train {run}/config.yaml --run-dir {run} --train.steps 240",
        f"jaxlm generate {run} --prompt",
        f"jaxlm eval {run}",
    ):
        assert part in output, output
    assert len(losses(run)) == 120
    summary = json.loads((run / "summary.json").read_text())
    assert summary["step"] == 120
    assert 0 < summary["bits_per_byte"] < records(run / "metrics.jsonl")[0]["bits_per_byte"]
    made = {p.name for p in run.iterdir()}
    assert made >= {"config.yaml", "plan.json", "plan.txt", "checkpoints", "tokenizer.model", "loss.png", "tensorboard"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_ended_by_a_signal_resumes_bit_identically(undisturbed, number, code):
    config, home, _ = undisturbed
    name = number.name.lower()
    process = train(config, home, name)
    signal_at(process, home / name / "metrics.jsonl", 47, number)
    output = finish(process, code)
    if number != signal.SIGKILL:
        assert f"stopped by signal {int(number)}; state after step" in output
        stopped = losses(home / name)[-1][0]
        assert 47 <= stopped < 120
        assert (home / name / "checkpoints" / str(stopped)).is_dir()
    output = finish(train(config, home, name))
    assert "resuming" in output
    assert losses(home / name) == losses(home / "undisturbed")


def test_a_truncated_checkpoint_is_skipped_and_named(undisturbed):
    config, home, _ = undisturbed
    process = train(config, home, "truncated")
    signal_at(process, home / "truncated" / "metrics.jsonl", 70, signal.SIGTERM)
    finish(process, 143)
    newest = max((home / "truncated" / "checkpoints").iterdir(), key=lambda p: int(p.name))
    victim = max((f for f in (newest / "state").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-7])
    output = finish(train(config, home, "truncated"))
    assert f"skipped: checkpoints/{newest.name}" in output
    assert "resuming" in output
    assert losses(home / "truncated") == losses(home / "undisturbed")


def test_a_finished_run_says_so_and_trains_on_when_asked_for_more_steps(undisturbed):
    config, home, _ = undisturbed
    before = losses(home / "undisturbed")
    assert "is complete: 120 steps are done" in finish(train(config, home, "undisturbed"))
    assert losses(home / "undisturbed") == before
    arguments = ["train", config, "--run-dir", home / "undisturbed", "--train.steps", "123"]
    assert "after step 120" in finish(start(arguments, home=home))
    assert [step for step, *_ in losses(home / "undisturbed")] == list(range(1, 124))


def test_eval_and_generate_read_a_run(undisturbed):
    _, home, _ = undisturbed
    run = home / "undisturbed"
    evaluated = finish(start(["eval", run, "--json"], home=home))
    facts = json.loads(evaluated.strip().splitlines()[-1])
    assert facts["bits_per_byte"] == pytest.approx(json.loads((run / "summary.json").read_text())["bits_per_byte"])
    other = finish(start(["eval", run, "--data", home / "texts" / "00.txt", "--json"], home=home))
    size = (home / "texts" / "00.txt").stat().st_size
    assert json.loads(other.strip().splitlines()[-1])["bytes"] == size
    arguments = ["generate", run, "--prompt", "the ", "--tokens", "12", "--seed", "7", "--json"]
    texts = [json.loads(finish(start(arguments, home=home)).strip().splitlines()[-1])["text"] for _ in range(2)]
    assert texts[0] == texts[1]
    stopped = finish(start([*arguments, "--stop", texts[0][3:5]], home=home))
    cut = json.loads(stopped.strip().splitlines()[-1])["text"]
    assert cut == texts[0][: texts[0].index(texts[0][3:5])]

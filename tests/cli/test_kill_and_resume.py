"""Whatever ends a run, it goes on as if nothing had happened: bit for bit."""

import json
import signal
from pathlib import Path

import pytest

from tests.cli.programs import finish, losses, records, signal_at, start, write_config
from tests.cli.small_disk import small_disk


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A configuration and a finished run of it."""
    home = tmp_path_factory.mktemp("kill")
    config = write_config(home)
    sample = ["--sample.prompt", "the ", "--sample.tokens", "8"]
    output = finish(start(["train", config, "--run-dir", home / "undisturbed", *sample], home=home))
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
        "sample (8 tokens",
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


SLOW_INTERRUPT = pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)
SLOW_TERMINATION = pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)  # two processes end so by default


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), SLOW_TERMINATION, SLOW_INTERRUPT])
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


IN_THE_MIDDLE = """
import resource, signal
from jaxlm.checkpoints.arrays import Writer
from jaxlm.cli import main
write = Writer.start

def start(self, path, state):
    if path.parent.name.startswith("60"):
        # From here the kernel kills this process in the write call that takes a file beyond 64 KiB.
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
    write(self, path, state)

Writer.start = start
main()
"""


def test_a_run_killed_in_the_middle_of_writing_a_checkpoint_resumes_bit_identically_from_the_one_before(undisturbed):
    config, home, _ = undisturbed
    run = home / "middle"
    process = start(["train", config, "--run-dir", run], home=home, program=["-c", IN_THE_MIDDLE])
    finish(process, -signal.SIGXFSZ)
    half = run / "checkpoints" / "60.writing"
    cut = [f for f in half.rglob("*") if f.is_file() and f.stat().st_size == 2**16]
    assert cut, "no file was cut off in the middle"
    assert not (half / "manifest.json").exists()
    output = finish(train(config, home, "middle"))
    assert "skipped: checkpoints/60.writing: no manifest.json" in output
    assert "after step 40" in output
    assert losses(run) == losses(home / "undisturbed")
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["100", "120"]


def test_a_disk_that_fills_up_stops_the_run_with_exit_3_and_with_room_it_goes_on_bit_identically(undisturbed, tmp_path):
    config, home, _ = undisturbed
    size = sum(f.stat().st_size for f in (home / "undisturbed" / "checkpoints" / "120").rglob("*"))
    with small_disk(tmp_path / "disk", f"{2 * size + size // 2}") as disk:
        # Only checkpoints lie there: with the run's other files beside them, whichever grows first would meet the end.
        run, place = tmp_path / "run", disk.path / "checkpoints"
        command = ["train", config, "--run-dir", run, "--checkpoint.path", place]
        output = finish(start(command, home=home), 3)
        said = [line for line in output.splitlines() if line.startswith("stopped: ")]
        assert len(said) == 1, output
        assert f"checkpoint 60 was not written to {place}: the disk is full (the state is " in said[0]
        assert "untouched: 40, 20. Checkpoints saved before are intact. Remove the cause, then resume: " in said[0]
        assert "Traceback" not in output
        disk.grow("64m")
        output = finish(start(command, home=home))
        assert "after step 40" in output
        assert losses(run) == losses(home / "undisturbed")


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
    assert f"going back from step {newest.name}, which the log knows" in output
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
    summary = json.loads((run / "summary.json").read_text())
    for key in ("bits_per_byte", "loss", "perplexity", "top1", "macro_f1", "macro_f1_classes", "tokens", "bytes"):
        assert facts[key] == pytest.approx(summary[key]), key
    assert 0 < facts["latency_p50_ms"] <= facts["latency_p95_ms"]
    assert facts["latency_tokens"] == 512
    table = ["bits per byte", "loss", "perplexity", "next token, top 1", "macro F1", "latency"]
    assert all(f"\n  {name} " in evaluated for name in table), evaluated
    other = finish(start(["eval", run, "--data", home / "texts" / "00.txt", "--no-latency", "--json"], home=home))
    size = (home / "texts" / "00.txt").stat().st_size
    facts = json.loads(other.strip().splitlines()[-1])
    assert facts["bytes"] == size
    assert not any(key.startswith("latency") for key in facts)
    arguments = ["generate", run, "--prompt", "the ", "--tokens", "12", "--seed", "7", "--json"]
    texts = [json.loads(finish(start(arguments, home=home)).strip().splitlines()[-1])["text"] for _ in range(2)]
    assert texts[0] == texts[1]
    stopped = finish(start([*arguments, "--stop", texts[0][3:5]], home=home))
    cut = json.loads(stopped.strip().splitlines()[-1])["text"]
    assert cut == texts[0][: texts[0].index(texts[0][3:5])]

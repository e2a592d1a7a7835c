"""A slow one of two real processes gets less work, the loss stays the same, and the shares survive in a checkpoint."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from experiments.balance import Config, judge, of_ideal
from experiments.processes import free_port
from experiments.workers.balance import launch
from tests.cli.programs import finish, losses, records, write_config

KEYS = (
    "--plan.mesh.data 2 --plan.microbatch 2 --plan.balance always --train.batch 16 --model.dropout 0.0 --optim.lr 1e-3 "
    "--optim.schedule constant --optim.warmup 2"
)
"""The learning rate must not depend on the number of steps: one run is asked for 10, and then for 14."""


def train(home: Path, run: str, *, processes: int, slow: int, steps: int) -> None:
    task = {
        "config": str(home / "tiny.yaml"),
        "overrides": [*KEYS.split(), "--train.steps", str(steps)],
        "run": str(home / run),
        "processes": processes,
        "coordinator": f"localhost:{free_port()}",
        "seconds": 0.04,
        "factor": 2.5,
        "slow": slow,
        "first": 1,
        "last": 100,
    }
    started: list[subprocess.Popen[str]] = launch(task, home / f"{run}-{processes}", devices=2 // processes)
    for process in started:
        finish(process, seconds=400)


@pytest.mark.slow
def test_a_slow_process_gets_less_work_which_survives_in_a_checkpoint_and_changes_no_loss(tmp_path: Path):
    write_config(tmp_path)
    train(tmp_path, "even", processes=1, slow=-1, steps=14)
    train(tmp_path, "uneven", processes=2, slow=1, steps=10)
    before = records(tmp_path / "uneven" / "metrics.jsonl")
    assert before[0]["shares"] == [8, 8]
    assert abs(before[-1]["shares"][1] - 16 / 3.5) <= 1.0, before[-1]
    train(tmp_path, "uneven", processes=1, slow=1, steps=14)
    after = records(tmp_path / "uneven" / "metrics.jsonl")
    assert after[10]["shares"] == before[-1]["shares"], "the process that goes on knows who was slow"
    want, got = losses(tmp_path / "even"), losses(tmp_path / "uneven")
    assert [step for step, *_ in got] == [step for step, *_ in want] == list(range(1, 15))
    np.testing.assert_allclose([r[1] for r in got], [r[1] for r in want], rtol=1e-6)
    hashes = [[r["batches"] for r in records(tmp_path / run / "metrics.jsonl")] for run in ("even", "uneven")]
    assert hashes[0] == hashes[1]


def record(step: int, shares: list[int], pace: list[float], loss: float = 2.0) -> dict:
    seconds = [count * each for count, each in zip(shares, pace, strict=True)]
    return {"step": step, "loss": loss, "shares": shares, "alpha": [0.25] * 4, "replica_seconds": seconds,
            "step_seconds": max(seconds) + 0.02, "batches": ["0"]}  # fmt: skip


def test_the_experiment_says_what_was_met_and_what_was_missed():
    config = Config(first=5, last=20, steps=25)
    pace = lambda step: [0.04, 0.04, 0.04, 0.08 if 5 <= step <= 20 else 0.04]
    shares = lambda step: [19, 18, 18, 9] if 10 <= step <= 23 else [16] * 4
    good = [record(step, shares(step), pace(step)) for step in range(1, 26)]
    even = [record(step, [16] * 4, pace(step)) for step in range(1, 26)]
    report = judge(config, even, good, even, 8.0)
    assert [r.note for r in report.rows if "target" in r.note] == [
        "target <= 10: met", "target >= 0.9: met", "target <= 1e-06: met", "target <= 0: met", "target >= 5: met",
    ]  # fmt: skip
    assert report.rows[0].measured == 5
    wrong = [{**each, "loss": 2.1} if each["step"] == 12 else each for each in even]
    notes = [r.note for r in judge(config, even, wrong, even, 3.0).rows if "target" in r.note]
    assert [note.rsplit(" ", 1)[1] for note in notes] == ["MISSED", "MISSED", "MISSED", "met", "MISSED"]
    assert of_ideal(even, range(5, 21)) == pytest.approx(64 / (16 * 0.08 + 0.02) / (3.5 / 0.04))


def test_the_configuration_of_the_experiment_is_whole():
    from experiments.entry import CONFIGS
    from jaxlm.decode import decode, read

    config = decode(read(CONFIGS / "balance.yaml"), Config)
    assert json.dumps(config.run)

"""The token stream of a run does not change when its processes do: 4, then 2, then 4, as one alone."""

import json
from pathlib import Path

import pytest

from experiments.processes import free_port
from tests.cli.programs import finish, records, start, write_texts

CONFIG = """\
name: mixed
data:
  mixture:
    words: {{path: {words}, weight: 0.7}}
    code: {{path: {code}, weight: 0.3}}
  cache: {cache}
  sequence: 16
  validation_fraction: 0.2
  minimum_characters: 16
  tokenizer: {{vocab: 360}}
model: {{layers: 1, embed: 16, heads: 2, mlp: 32}}
train: {{steps: 12, batch: 8, log_every: 1, tensorboard: false}}
checkpoint: {{every_steps: 4}}
sample: {{prompt: null}}
"""


def write_config(home: Path) -> Path:
    """Two parts, one so small that it is seen several times."""
    (home / "code").mkdir()
    for number in range(5):
        (home / "code" / f"{number}.py").write_text(f"def f{number}(x):\n    return x + {number}\n" * 3)
    path = home / "mixed.yaml"
    words = write_texts(home / "words", files=6, words=300)
    path.write_text(CONFIG.format(words=words, code=home / "code", cache=home / "cache"))
    return path


def train(config: Path, run: Path, home: Path, *, processes: int, steps: int, more: tuple[str, ...] = ()) -> None:
    command = ["train", config, "--run-dir", run, "--train.steps", str(steps), *more]
    job = ["--coordinator", f"localhost:{free_port()}", "--processes", str(processes)] if processes > 1 else []
    started = [
        start([*command, *job, *(["--process", str(number)] if job else [])], home=home) for number in range(processes)
    ]
    for process in started:
        finish(process)


def hashes(run: Path) -> list[str]:
    found = records(run / "metrics.jsonl")
    assert [(record["step"], len(record["batches"])) for record in found] == [(step, 1) for step in range(1, 13)]
    return [text for record in found for text in record["batches"]]


@pytest.mark.slow
def test_four_two_and_four_processes_train_on_the_batches_of_one(tmp_path: Path):
    config = write_config(tmp_path)
    train(config, tmp_path / "one", tmp_path, processes=1, steps=12)
    train(config, tmp_path / "many", tmp_path, processes=4, steps=4)
    train(config, tmp_path / "many", tmp_path, processes=2, steps=8, more=("--plan.mesh.fsdp", "2"))
    train(config, tmp_path / "many", tmp_path, processes=4, steps=12, more=("--plan.mesh.data", "4"))
    assert hashes(tmp_path / "many") == hashes(tmp_path / "one")
    assert len(set(hashes(tmp_path / "one"))) == 12
    facts = json.loads(finish(start(["data", "prepare", config, "--json"], home=tmp_path)).splitlines()[-1])
    assert facts["mixture"]["code"]["epochs"] > 1

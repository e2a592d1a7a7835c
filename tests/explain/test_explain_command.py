"""`jaxlm explain` on a run trained here, from the command line to the page."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from jaxlm.cli import main
from jaxlm.data.labelled.hatexplain import CLASSES
from tests.explain.tiny import QUIET, TROUBLE

pytestmark = pytest.mark.slow  # trains a run


def rows(count: int, split: str, seed: int) -> list[dict[str, Any]]:
    """Invented posts in HateXplain's format: a word of trouble makes a post offensive."""
    random, found = np.random.default_rng(seed), []
    for number in range(count):
        tokens = [str(w) for w in random.choice(QUIET, 6)]
        label, spans = number % 2, []
        if label:
            place = int(random.integers(6))
            tokens[place], spans = str(random.choice(TROUBLE)), [[place, place + 1]]
        found.append({"id": f"{split}{number}", "split": split, "label": CLASSES[label], "tokens": tokens,
                      "rationale_spans": spans})  # fmt: skip
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    data = rows(192, "train", 0) + rows(96, "val", 1) + rows(32, "test", 2)
    (folder / "hatexplain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    config = {
        "name": "posts",
        "data": {"path": str(folder), "sequence": 16, "mode": "truncate", "tokenizer": {"vocab": 320}},
        "model": {"layers": 1, "embed": 16, "heads": 2, "mlp": 16, "causal": False, "tied": False},
        "classify": {"dataset": "hatexplain", "pooling": "mean", "vectors": False, "word_dropout": 0.1},
        "optim": {"lr": 2e-2, "warmup": 5},
        "train": {"steps": 40, "batch": 32, "log_every": 20, "eval_every": 0},
        "governance": {"enabled": False},
    }
    (folder / "posts.yaml").write_text(yaml.safe_dump(config))
    assert called("train", str(folder / "posts.yaml"), "--run-dir", str(folder / "run")) == 0
    return folder / "run"


def called(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def test_a_run_explains_texts_with_rules_and_a_page(run, tmp_path, capsys):
    capsys.readouterr()
    out, forms = tmp_path / "out.html", tmp_path / "study"
    data = str(run.parent / "hatexplain.jsonl")
    assert called("explain", str(run), "--data", data, "--limit", "24", "--html", str(out), "--study", str(forms),
                  "--json") == 0  # fmt: skip
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {rule["words"][0] for rule in facts["rules"] if rule["label"] == "offensive"} == set(TROUBLE)
    assert all(0.6 <= rule["at_least"] < rule["precision"] <= 1 for rule in facts["rules"])
    assert len(facts["texts"]) == 24
    text = out.read_text()
    assert "http" not in text
    assert "integrated gradients" in text
    assert {path.name for path in forms.iterdir()} == {
        "form_A.html", "form_B.html", "form_C.html", "answers.csv", "key.json",
    }  # fmt: skip


def test_one_text_in_the_terminal(run, capsys):
    assert called("explain", str(run), "--text", "the Smoke near a garden", "--methods", "ours") == 0
    said = capsys.readouterr().out
    assert said.startswith("offensive (")
    assert 'IF the text says "smoke" THEN the model says offensive' in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--text TEXT or --data FILE"),
        (["--text", "  "], "--text holds no word"),
        (["--text", "a", "--methods", "rolout"], "did you mean 'rollout'"),
        (["--text", "a", "--template", "poetic"], "there are general, legal, medical"),
        (["--data", "nowhere.txt"], "--data nowhere.txt cannot be read"),
    ],
)
def test_bad_input_is_one_message(run, capsys, arguments, said):
    capsys.readouterr()
    assert called("explain", str(run), *arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1

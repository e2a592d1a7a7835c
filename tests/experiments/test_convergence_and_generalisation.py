"""Figure 8 and table 8 at nano scale, in this process: runs of three steps on a few words."""

import json
import sys
from pathlib import Path

import pytest

from experiments import entry, figure8_convergence, table8_generalisation
from experiments.figure8_convergence import PAPER
from tests.cli.programs import WORDS, write_texts

BASE = """\
run:
  data:
    path: {texts}
    cache: {cache}
    sequence: 32
    validation_fraction: 0.2
    tokenizer: {{vocab: 360}}
  model: {{layers: 1, embed: 16, heads: 2, mlp: 32}}
  train: {{steps: 3, batch: 8, log_every: 1, tensorboard: false, compilation_cache: false}}
  sample: {{prompt: null}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("experiments")
    write_texts(folder / "texts", files=6, words=200)
    base = BASE.format(texts=folder / "texts", cache=folder / "cache")
    variants = "variants:\n  plain: {}\n  recompute: {plan: {remat: full}}\n"
    (folder / "figure8.yaml").write_text(base + variants + "apart: false\n")
    (folder / "table8.yaml").write_text(base + "corpora: {novels: null, news: null}\nlatency: false\n")
    return folder


@pytest.fixture
def begin(home, monkeypatch, capsys):
    """Starts an experiment as a person would; what it saved, or what it said if it refused."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))

    def begin(module, *arguments: object, out: str = "out", code: int = 0):
        name = module.__name__.removeprefix("experiments.")
        monkeypatch.setattr(sys, "argv", ["x", *map(str, arguments), "--out", str(home / out)])
        with pytest.raises(SystemExit) as ended:
            entry.main(name, module.__doc__, module.Config, module.measure)
        said = capsys.readouterr()
        assert ended.value.code == code, said
        return json.loads((home / out / f"{name}.json").read_text()) if code == 0 else said.err

    return begin


def values(rows: list[dict], quantity: str, column: str = "measured") -> dict[str, float]:
    return {row["what"]: row[column] for row in rows if row["quantity"].startswith(quantity)}


def test_figure_8_compares_variants_and_a_plan_changes_no_loss(home, begin):
    rows = begin(figure8_convergence, home / "figure8.yaml")["rows"]
    tokens = 3 * 8 * 32
    losses = values(rows, f"training bits per byte at {tokens:,} tokens")
    assert set(losses) == {"plain", "recompute"}
    assert values(rows, "largest difference")["plain, recompute"] < 1e-5
    held_out = json.loads((home / "out" / "runs" / "plain" / "summary.json").read_text())
    assert values(rows, "held-out")["plain"] == held_out["bits_per_byte"]
    assert {"top1", "macro_f1"} <= held_out.keys()
    for quantity in ("seconds to", "steps per second", "memory"):
        for column in ("measured", "predicted"):
            found = values(rows, quantity, column)
            assert found["plain"] > 0 < found["recompute"], (quantity, column)
    assert values(rows, "hours to converge", "paper") == {name: hours for name, (_, hours) in PAPER.items()}
    note = next(row["note"] for row in rows if row["what"] == "Megatron-LM")
    assert "5.87 passes" in note
    assert "38.2% less" in note
    assert (home / "out" / "by_tokens.png").read_bytes().startswith(b"\x89PNG")
    assert (home / "out" / "by_seconds.png").exists()


def test_figure_8_reads_runs_that_exist_and_trains_nothing_twice(home, begin, capsys):
    runs = [home / "out" / "runs" / name for name in ("plain", "recompute")]
    before = [(run / "metrics.jsonl").stat().st_mtime_ns for run in runs]
    (runs[1] / "summary.json").rename(runs[1] / "aside")
    rows = begin(figure8_convergence, "--runs", f"{runs[0]},{runs[1]}", out="again")["rows"]
    (runs[1] / "aside").rename(runs[1] / "summary.json")
    assert values(rows, "held-out")["recompute"] is None, "a run still under way has no final evaluation"
    assert begin(figure8_convergence, home / "figure8.yaml")["rows"]
    assert [(run / "metrics.jsonl").stat().st_mtime_ns for run in runs] == before


def test_figure_8_names_what_is_wrong(home, begin):
    config = home / "figure8.yaml"
    said = begin(figure8_convergence, "--runs", home / "none", code=2)
    assert f"{home}/none is no run directory" in said
    said = begin(figure8_convergence, config, "--variants.plain.modle.layers", 2, out="new", code=2)
    assert "variants.plain: unknown key 'modle', did you mean 'model'?" in said
    said = begin(figure8_convergence, config, "--variants.plain.optim.lr", "1e-5", code=2)
    assert "optim.lr was" in said
    assert "choose another --out" in said
    assert "smooth=1.0 must be" in begin(figure8_convergence, config, "--smooth", "1.0", code=2)


def test_table_8_judges_every_model_on_every_text(home, begin):
    """The words of one text are spelled backwards in the other: each model must do better on its own."""
    other = home / "other"
    other.mkdir()
    for path in (home / "texts").iterdir():
        words = [word[::-1].upper() if word in WORDS else word for word in path.read_text().split()]
        (other / path.name).write_text(" ".join(words))
    run = home / "out" / "runs" / "plain"
    saved = begin(table8_generalisation, home / "table8.yaml", "--corpora.novels", other, "--runs.words", run,
                  "--held_out_bytes", 400, "--run.train.steps", 12, "--run.optim.lr", "3e-2")  # fmt: skip
    rows, found = saved["rows"], saved["details"]["evaluations"]
    assert {(model, text) for model in found for text in found[model]} == {
        ("novels", "novels"), ("novels", "words"), ("words", "novels"), ("words", "words"),
    }  # fmt: skip
    assert found["novels"]["novels"]["bits_per_byte"] < found["novels"]["words"]["bits_per_byte"]
    for text in ("novels", "words"):
        sizes = {found[model][text]["bytes"] for model in found}
        assert sizes == {400}, "every model is judged on the same bytes"
    accuracy, paper = values(rows, "accuracy"), values(rows, "accuracy", "paper")
    assert accuracy["novels model on novels"] == 100 * found["novels"]["novels"]["top1"]
    assert paper["novels model on novels"] == 80.2
    assert paper["novels model on words"] is None
    assert (paper["news model on news"], accuracy["news model on news"]) == (79.8, None)
    assert "--corpora.news PATH" in next(row["note"] for row in rows if row["what"] == "news model on news")
    assert "| novels" in saved["remarks"][0]


def test_table_8_says_how_to_give_a_text(home, begin):
    said = begin(table8_generalisation, home / "table8.yaml", code=2)
    assert "add --corpora.novels PATH --corpora.news PATH" in said
    assert f"{home}/gone" in begin(table8_generalisation, home / "table8.yaml", "--corpora.news", home / "gone", code=2)
    assert "run=3 must be a YAML file" in begin(
        table8_generalisation, home / "table8.yaml", "--corpora.news", home, "--run", 3, code=2
    )

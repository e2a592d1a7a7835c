"""Table 4 and figures 3 and 11 on an invented language: with equal seeds no policy changes a translation."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments import entry, figure3_memory_quality, figure11_tradeoff, table4_remat
from experiments.remat_quality import PAPER, Found, measure_quality, quality_rows
from experiments.translation import Sentences, score, to_translate, translate
from jaxlm.data.config import DataConfig, DataError, Parallel
from jaxlm.decode import decode, read
from planners.plan import Segment
from tests.experiments.invented_pairs import spelled, write_pairs

CONFIG = """\
parallel: {pairs}
seeds: 0
run:
  data: {{cache: {cache}, sequence: 64, tokenizer: {{vocab: 330}}}}
  model: {{layers: 4, embed: 16, heads: 2, mlp: 32, dtype: float32}}
  optim: {{lr: 1e-2, warmup: 2}}
  train: {{steps: 6, batch: 8, log_every: 1, tensorboard: false, compilation_cache: false}}
"""
POLICIES = "policies: {none: {remat: none}, dynamic: {remat: dp, memory: 0.5}, all: {remat: dp, memory: 1.0}}\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("quality")
    write_pairs(folder / "pairs", train=300, test=24)
    config = CONFIG.format(pairs=folder / "pairs", cache=folder / "cache")
    (folder / "policies.yaml").write_text(config + POLICIES)
    (folder / "figure3.yaml").write_text(config + "strategies: [dp]\nbudgets: [0.5, 1.0]\n")
    return folder


@pytest.fixture(scope="module")
def measured(home) -> Found:
    """Trained, translated and scored once for all tests."""
    config = decode(read(home / "policies.yaml"), table4_remat.Config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        found = measure_quality(config, config.policies, home / "out")
    assert found is not None
    return found


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


def test_an_invented_number_by_eye():
    assert spelled(3175, "en") == "ter mil un cen hep dek pen"
    assert spelled(3175, "de") == "funi sibutig ainhund dritaus"
    assert [spelled(n, "de") for n in (0, 20, 4001)] == ["nul", "nul twatig", "ain firtaus"]


@pytest.mark.slow
def test_a_policy_changes_no_translation(measured, home):
    none, dynamic = measured.policies["none"], measured.policies["dynamic"]
    assert none.remat == (Segment(layers=4),)
    assert any(segment.save is not None for segment in dynamic.remat), "something is computed again"
    assert sum(segment.layers for segment in dynamic.remat) == 4
    assert dynamic.predicted_bytes < none.predicted_bytes
    assert dynamic.translated.translations == none.translated.translations
    assert dynamic.translated.scores == none.translated.scores
    assert none.translated.scores.chrf > 0
    assert dynamic.loss[0] == none.loss[0], "the first loss is the same to the last bit"
    assert len(none.loss) == 6
    assert 0 <= measured.apart(dynamic) < 1e-4
    assert measured.policies["all"].same_as == "none", "what fits without it is not rematerialised, nor trained again"
    assert not (home / "out" / "runs" / "all").exists()
    lines = (home / "out" / "translations" / "dynamic.txt").read_text().split("\n")
    assert tuple(lines[:-1]) == dynamic.translated.translations
    assert len(set(lines)) > 2, "sources are told apart"


@pytest.mark.slow
def test_a_policy_that_changed_something_would_show(measured):
    none, dynamic = measured.policies["none"], measured.policies["dynamic"]
    worse = replace(dynamic.translated, translations=("x", *dynamic.translated.translations[1:]), weights="other")
    policies = {"none": none, "dynamic": replace(dynamic, translated=worse, loss=dynamic.loss + np.eye(6)[4] / 2)}
    rows = {row.quantity: row for row in quality_rows(replace(measured, policies=policies), {}) if row.what != "none"}
    assert rows["translations other than none"].measured == 1
    assert rows["training loss other than none, at most"].measured == pytest.approx(0.5, abs=1e-3)
    assert rows["final weights"].measured == "rounded otherwise"


@pytest.mark.slow
def test_what_is_trained_is_read_by_the_table_and_both_figures(measured, home, begin):
    runs = home / "out" / "runs"
    before = {path.name: (path / "metrics.jsonl").stat().st_mtime_ns for path in runs.iterdir() if path.is_dir()}
    saved = begin(table4_remat, home / "policies.yaml")
    bleu = {row["what"]: row["paper"] for row in saved["rows"] if row["quantity"] == "BLEU"}
    assert bleu == {"none": 29.2, "dynamic": 29.3, "all": None}
    assert saved["details"]["policies"]["dynamic"]["translations_moved"] == 0
    assert "24 sentences" in saved["remarks"][1]
    assert "|version:" in saved["remarks"][1]
    rows = begin(figure11_tradeoff, home / "policies.yaml")["rows"]
    memory = {row["what"]: row["predicted"] for row in rows if row["quantity"].startswith("memory")}
    assert memory["dynamic"] < memory["none"] == memory["all"]
    (runs / "dynamic").rename(runs / "dp-0.5")
    rows = begin(figure3_memory_quality, home / "figure3.yaml")["rows"]
    (runs / "dp-0.5").rename(runs / "dynamic")
    assert {row["what"] for row in rows} == {"none", "dp-0.5", "dp-1"}
    assert before == {name: (runs / name / "metrics.jsonl").stat().st_mtime_ns for name in before}
    for name in ("figure3_memory_quality", "figure11_tradeoff"):
        assert (home / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_run_under_another_plan_is_not_taken_for_this_one(measured, home, begin):
    said = begin(table4_remat, home / "policies.yaml", "--policies.dynamic.memory", 0, code=2)
    assert "dynamic was trained with remat" in said
    assert "choose another --out" in said


@pytest.mark.parametrize("module", [table4_remat, figure3_memory_quality, figure11_tradeoff])
def test_without_pairs_the_papers_figures_stand_alone(module, begin):
    rows = [row for row in begin(module)["rows"] if row["quantity"] == "BLEU"]
    assert {row["what"]: row["paper"] for row in rows if row["what"] in PAPER} == {
        "none": 29.2, "static": 29.1, "dynamic": 29.3,
    }  # fmt: skip
    assert {row["measured"] for row in rows} == {None}
    assert all(row["note"] == "not measured: give --parallel DIR --source en --target de" for row in rows)


def test_what_is_wrong_is_named(home, begin):
    policies = home / "policies.yaml"
    said = begin(table4_remat, policies, "--policies.none.memory", 0.5, code=2)
    assert "policies.none: remat=none takes what it needs; leave memory out" in said
    said = begin(table4_remat, policies, "--policies.half.remat", "dp", code=2)
    assert "remat=dp needs memory between 0 (as full) and 1 (as none), not None" in said
    assert "must be one of dp, greedy" in begin(table4_remat, policies, "--policies.half.remat", "pd", code=2)
    assert "strategies: best must be of dp" in begin(figure3_memory_quality, "--strategies", "[best]", code=2)
    said = begin(table4_remat, policies, "--test", "test_2016", code=2)
    assert "has no such test set; it has test_numbers" in said
    assert "no test_numbers.fr" in begin(table4_remat, policies, "--source", "fr", code=2)


def test_the_test_set_is_chosen_by_name_and_sentences_that_do_not_fit_are_refused(home, tmp_path):
    data = DataConfig(path=str(write_pairs(tmp_path / "p")), parallel=Parallel(source="en", target="de"),
                      mode="truncate")  # fmt: skip
    for language in ("en", "de"):
        (tmp_path / "p" / f"test_a.{language}").write_text("ok\n\nbi\n")
    first = to_translate(data, None)
    assert (first.name, first.sources, first.unusable) == ("test_a", ("ok", "bi"), 1)
    assert len(to_translate(data, "test_numbers").sources) == 40
    assert to_translate(data, "test_numbers").first(2).references == to_translate(data, "test_numbers").references[:2]
    for path in (tmp_path / "p").glob("test*"):
        path.unlink()
    assert to_translate(data, None).name == "val"
    for path in (tmp_path / "p").glob("val*"):
        path.unlink()
    assert 0 < len(to_translate(data, "train").sources) < 200, "the held-out part of the only file"


def test_scores_are_sacrebleus_and_perfect_for_the_reference():
    references = ["funi sibutig ainhund dritaus", "ain firtaus und mehr"]
    perfect, wrong = score(references, references), score(["nul", "nul"], references)
    assert (round(perfect.bleu, 6), round(perfect.chrf, 6)) == (100, 100)
    assert wrong.bleu < 5
    # https://aclanthology.org/P02-1040: precisions 7/8, 4/6, 1/4, and 1/4 smoothed (exp) of none of 2; brevity 1.
    half = score(["funi sibutig ainhund dritaus", "ain firtaus mehr und"], references)
    assert 0 < half.bleu < 100


@pytest.mark.slow
def test_a_source_longer_than_a_row_is_refused(measured, home):
    long = Sentences("long", ("un", "un mil " * 60), ("a", "b"))
    with pytest.raises(DataError, match=r"sentence 2 of long has \d+ tokens.*data\.sequence=64; raise that"):
        translate(home / "out" / "runs" / "none", long, home / "long")


@pytest.mark.slow
def test_models_that_have_learned_the_language_are_equally_good_and_another_seed_is_another_model(home, begin):
    """Trained until they are nearly always right, also where everything is computed again."""
    saved = begin(table4_remat, home / "policies.yaml", "--policies.all.remat", "full", "--policies.all.memory", "null",
                  "--run.model.embed", 64, "--run.model.mlp", 128, "--run.model.heads", 4, "--run.train.batch", 32,
                  "--steps", 250, "--seeds", 1, out="long")  # fmt: skip
    found = saved["details"]["policies"]
    assert found["none"]["bleu"] > 90
    for name in ("dynamic", "all"):
        assert found[name]["bleu"] == pytest.approx(found["none"]["bleu"], abs=2.0)
        assert found[name]["loss_apart"] < 0.1
    (seed,) = [row for row in saved["rows"] if row["what"] == "none-seed-1"]
    assert seed["measured"] > 90
    weights = [(home / "long" / "runs" / name / "metrics.jsonl").read_text().split("\n")[200]
               for name in ("none", "none-seed-1")]  # fmt: skip
    assert json.loads(weights[0])["loss"] != json.loads(weights[1])["loss"]


def test_a_step_of_any_model_on_any_cluster_is_priced_at_further_budgets(home, begin):
    said = ["--model", "llama-7b", "--cluster", "h100x8", "--sequence", 4096, "--sequences", 2, "--loss_chunks", 1]
    saved = begin(table4_remat, *said, "--budgets", "[0.2, 0.8]", out="priced")
    facts = saved["details"]["cluster"]
    order = ["full", "dynamic 0.2", "dynamic", "dynamic 0.8", "none"]
    bytes_of, seconds = ([facts[name][what] for name in order] for what in ("predicted_bytes", "extra_seconds"))
    assert bytes_of == sorted(bytes_of)
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] == 0
    assert facts["dynamic"]["extra_flops"] < facts["full"]["extra_flops"] == pytest.approx(0.29, abs=0.04)
    paper = {row["what"].rpartition(", ")[2]: row["paper"] for row in saved["rows"] if "peak" in row["quantity"]}
    assert paper == {
        "none": 31.6,
        "static": 21.5,
        "dynamic": 18.3,
        "full": None,
        "dynamic 0.2": None,
        "dynamic 0.8": None,
    }
    assert all(each["compiled_bytes"] is None for each in facts.values())
    assert "budgets: 1.5 must be from 0" in begin(table4_remat, "--budgets", "[1.5]", code=2)
    assert "llama-9x" in begin(table4_remat, "--model", "llama-9x", code=2)

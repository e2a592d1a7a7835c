"""The comparison of table 5 on tiny rows, and its gaps on rows whose answer is known."""

from pathlib import Path

import numpy as np
import pytest

from experiments.table5_fairness import Config, execute, verdict
from experiments.text_gaps import corrected, gaps_of
from jaxlm.decode import decode
from tests.labelled import tiny


def test_an_unbiased_scorer_has_no_gap_but_that_of_chance():
    random = np.random.default_rng(0)
    labels = random.random(6000) < 0.5
    scores = labels + random.standard_normal(6000)
    members = {name: random.random(6000) < share for name, share in (("a", 0.05), ("b", 0.05), ("c", 0.2))}
    found = corrected(labels, scores, members, 60, 60, 0)
    assert 0.0 < found.floor < 0.05
    assert found.corrected < 0.02
    biased = np.where(members["a"], random.standard_normal(6000), scores)
    worse = corrected(labels, biased, members, 60, 60, 0)
    assert worse.corrected > 0.15
    assert worse.low <= worse.corrected <= worse.high


def test_small_groups_are_left_out():
    texts = [("women",)] * 5 + [("men",)] * 2
    assert list(gaps_of(texts, {"women": ("women",), "men": ("men",)}, 3)) == ["women"]


def test_what_is_missed_is_said():
    said = verdict("x", {"gender": 0.09}, {"gender": 0.1, "auc": 0.8}, 0.78, 0.7, 0.6)
    assert "gender gap reduced by 10% (MISSED" in said
    assert "AUC -0.0200 (MISSED" in said
    assert "worst 0.600 (met" in said


@pytest.mark.slow
def test_every_method_scores_every_row(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("experiments.table5_fairness.LEAST", 30)
    run = {
        "data": {"sequence": 8, "mode": "truncate", "tokenizer": {"vocab": 320}},
        "model": {"layers": 1, "embed": 16, "heads": 2, "mlp": 16, "causal": False, "tied": False},
        "classify": {},
        "fairness": {"attribute": {"religion": "equalized_odds"}},
        "train": {"batch": 16},
    }
    methods = {
        "no debiasing": {},
        "LEACE": {"erase": True},
        "opposed": {"weight": 0.5, "reweight": True},
        "dro": {"dro": 1.0},
        "hidden": {"mask": 1.0},
    }
    raw = {"data": str(tiny.hatexplain(tmp_path)), "folds": 2, "resamples": 20, "permutations": 10, "run": run}
    config = decode(raw | {"methods": methods}, Config)
    report = execute(config, tmp_path / "out")
    measured = {(row.what, row.quantity): row.measured for row in report.rows}
    for name in methods:
        auc = measured[name, "AUC, all rows, harmful or not"]
        assert isinstance(auc, float)
        assert 0.4 < auc <= 1.0
    assert len(report.remarks) == 2 + 5
    again = execute(decode(raw | {"methods": methods, "scores": [str(tmp_path / "out")]}, Config), tmp_path / "again")
    assert [row.measured for row in again.rows] == [row.measured for row in report.rows]

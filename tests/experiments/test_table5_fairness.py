"""The comparison of table 5 on tiny rows, and its gaps on rows whose answer is known."""

from pathlib import Path

import numpy as np
import pytest

from experiments.table5_fairness import Config, execute, verdict
from experiments.text_gaps import by_group, corrected, gaps_of
from jaxlm.decode import ConfigError, decode
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
        "opposed": {"weight": 0.5, "reweight": True, "tune": {"weight": [0.3, 0.6]}},
        "dro": {"dro": 1.0},
        "hidden": {"mask": 1.0},
    }
    raw = {"data": str(tiny.hatexplain(tmp_path)), "folds": 2, "seeds": 2, "resamples": 20, "permutations": 10}
    raw |= {"run": run, "methods": methods}
    none = decode(raw | {"train": False}, Config)
    with pytest.raises(ConfigError, match="no method has all its models"):
        execute(none, tmp_path / "out")
    report = execute(decode(raw, Config), tmp_path / "out")
    measured = {(row.what, row.quantity): row.measured for row in report.rows}
    for name in methods:
        auc = measured[name, "AUC, all rows, harmful or not"]
        assert isinstance(auc, float)
        assert 0.4 < auc <= 1.0
        assert (name, "religion CWG") in measured
    assert report.remarks[2].startswith("Chosen on the validation rows: opposed: weight 0.")
    assert len(report.remarks) == 3 + 5
    files = sorted((tmp_path / "out" / "scores").iterdir())
    assert len(files) == 5 * 2 * 2 + 3
    # What is there is not made again, and what is missing is said.
    files[0].unlink()
    again = execute(none, tmp_path / "out")
    assert len({row.what for row in again.rows}) >= 3
    assert not files[0].exists()


def test_figures_of_groups_by_hand():
    labels = np.array([True, True, False, False, True, True, False, False])
    scores = np.array([0.9, 0.9, 0.1, 0.1, 0.9, 0.1, 0.9, 0.1])
    first = np.arange(8) < 4
    found = by_group(labels, scores, {"a": first, "b": ~first})
    assert found.opportunity == 0.5
    assert found.accuracy == 0.5
    assert found.worst == "b, harmful"
    assert np.isclose(found.calibration, 0.5)

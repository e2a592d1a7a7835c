"""The fairness benchmark: areas and verdicts by hand, and one small run from file to report."""

import csv
import json

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is in the extra fairness")

from experiments.benchmarks.fairness.compare import front, hypervolume, verdict
from experiments.benchmarks.fairness.folds import fold
from experiments.benchmarks.fairness_frontier import METHODS, Config, execute
from jaxlm.fairness.tables import ADULT_CATEGORIES, ADULT_NUMBERS, adult


def point(accuracy: float, gap: float, strength: float = 0.0) -> dict:
    side = {"accuracy": accuracy, "gap": gap}
    return {"strength": strength, "validation": side, "test": side}


def test_the_hypervolume_is_the_area_of_the_union_of_rectangles():
    points = [point(0.7, 0.3), point(0.6, 0.1), point(0.55, 0.4)]
    assert front(points) == [0, 1]
    assert hypervolume(points, 0.5) == pytest.approx(0.1 * 0.2 + 0.2 * 0.2)
    assert hypervolume([point(0.6, 0.7), point(0.4, 0.1)], 0.5) == 0.0


def test_validation_keeps_points_and_test_judges_them():
    kept = point(0.7, 0.2)
    lucky = {"strength": 1.0, "validation": {"accuracy": 0.6, "gap": 0.3}, "test": {"accuracy": 0.9, "gap": 0.0}}
    assert hypervolume([kept, lucky], 0.5) == hypervolume([kept], 0.5)


def test_verdicts_need_both_better_or_one_better_and_none_worse():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.001, (6, 2))
    theirs = [[point(0.66 + a, 0.2 + g)] for a, g in noise]
    grid = lambda accuracy, gap: [[point(accuracy, gap, 3.0), point(0.5, 0.5, 9.0)] for _ in range(6)]
    both = verdict(grid(0.68, 0.15), theirs, 0)
    assert (both.strength, both.dominates, both.dominated) == (3.0, True, False)
    assert both.accuracy.mean == pytest.approx(0.02, abs=2e-3)
    assert verdict(grid(0.64, 0.25), theirs, 0).dominated
    assert verdict(grid(0.68, 0.25), theirs, 0).word == "neither dominates"


@pytest.fixture
def file(tmp_path):
    rng = np.random.default_rng(2)
    path = tmp_path / "adult.csv"
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, [*ADULT_NUMBERS, *ADULT_CATEGORIES, "income-per-year"])
        writer.writeheader()
        for _ in range(900):
            sex = rng.choice(["Male", "Female"])
            skill = rng.normal() + (sex == "Male")
            row = dict.fromkeys(ADULT_CATEGORIES, "x") | dict.fromkeys(ADULT_NUMBERS, 0)
            row |= {"age": round(10 * skill, 3), "sex": sex, "race": rng.choice(["a", "b", "c"])}
            writer.writerow(row | {"income-per-year": ">50K" if skill + rng.normal() > 1 else "<=50K"})
    return path


def test_a_small_run_reports_skips_and_goes_on_where_it_stopped(file, tmp_path, capsys):
    config = Config(
        data=str(file), test=str(file), seeds=3, grid=2, probe_seeds=0, methods="LR,penalised LR,penalised LR with A"
    )
    report = execute(config, tmp_path / "out")
    table = report.table()
    assert "no COMPAS file given" in table
    assert "adult_sex: penalised LR 100" in table
    assert "A read: yes" in table
    curve = report.details["adult_sex"]["points"]["penalised LR"]
    assert curve[1]["gap"] < 0.5 * curve[0]["gap"]
    assert (tmp_path / "out" / "adult_sex.png").stat().st_size > 10_000
    capsys.readouterr()
    again = execute(config, tmp_path / "out")
    assert capsys.readouterr().out == "", "nothing is measured twice"
    assert json.dumps(again.details) == json.dumps(report.details)


def test_folds_are_stratified_disjoint_and_blind(file):
    table = adult(file).blind("sex")
    split = fold(table, "sex", "demographic_parity", 0)
    parts = (split.train, split.validation, split.test)
    assert sum(len(p.y) for p in parts) == len(table)
    assert len(split.test.y) == pytest.approx(0.3 * len(table), abs=2)
    rates = [p.y[p.a == 1].mean() for p in parts]
    assert rates == pytest.approx([rates[0]] * 3, abs=0.02)
    assert split.train.x.mean(0) == pytest.approx(np.zeros(split.train.x.shape[1]), abs=1e-9)


def test_all_methods_are_chosen_by_default():
    assert Config().chosen() == list(METHODS)


@pytest.mark.parametrize(
    ("values", "message"),
    [(dict(tasks=("german",)), "tasks german unknown"), (dict(methods="magic"), "methods magic unknown")],
)
def test_unknown_names_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Config(**values)

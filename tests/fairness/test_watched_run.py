"""A run that debiases is watched: it ends when it is done, goes back when its task is lost, and says what is left."""

import json
from pathlib import Path

import pytest

from jaxlm.trainer.metrics import read_jsonl
from tests.labelled import tiny
from tests.labelled.test_classify_run import call

FAIR = "fairness: {attribute: {gender: demographic_parity}, weight: 0.5, hidden: [8], check_every: 5, probe: true"


@pytest.mark.slow
def test_a_discriminator_at_rest_near_chance_ends_the_run(tmp_path: Path):
    config = tiny.config(tiny.hatexplain(tmp_path), FAIR + ", stop: {early: true, change: 1.0, near: 0.5}}")
    folder = tmp_path / "run"
    call("train", str(config), "--run-dir", str(folder))
    # The first check has nothing to compare with, three more are at rest.
    assert [check["step"] for check in read_jsonl(folder / "checks.jsonl")] == [5, 10, 15, 20]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["step"] == 20
    assert 0.0 <= summary["probe_linear"] <= 1.0
    assert 0.5 <= summary["discriminator_auc"] <= 1.0
    call("train", str(config), "--run-dir", str(folder))
    assert json.loads((folder / "summary.json").read_text())["step"] == 20


@pytest.mark.slow
def test_a_task_that_is_lost_is_given_back(tmp_path: Path):
    # The adversary pulls its AUC from .66 down to .58 before step 20.
    strong = FAIR.replace("weight: 0.5", "weight: 60.0").replace("check_every: 5", "check_every: 1")
    path = tiny.config(tiny.hatexplain(tmp_path), strong + ", stop: {floor: 0.62}}")
    folder = tmp_path / "run"
    call("train", str(path), "--run-dir", str(folder), code=4)
    checks = read_jsonl(folder / "checks.jsonl")
    assert checks[-1]["task_auc"] < 0.62 <= max(check["task_auc"] for check in checks)

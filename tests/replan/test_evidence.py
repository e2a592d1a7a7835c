"""What earlier runs took, as the ledger keeps it, moves what the agent of a new run believes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from jaxlm.config import Run
from jaxlm.folder import Folder
from jaxlm.ledger import ledger_path, machine_of
from jaxlm.planned import calibrated_plan
from jaxlm.replan import Replanner
from jaxlm.session import Numerics
from jaxlm.setup import Options, Setup
from planners.learning.ledger import Entry, Measured, append, bare
from planners.machines.cluster_file import load_cluster
from planners.wishes import Search
from tests.planners.workloads import llama

WORK = llama(
    "tiny", layers=2, embed=64, heads=4, mlp=192, vocab=256, batch=16, sequence=64, dtype="float32", kernel="xla"
)
CLUSTER = load_cluster("cpux4")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def replanner(folder: Path, search: Search = Search(), saved: dict | None = None) -> Replanner:
    """As a run begins it, or goes on with it."""
    run = dataclasses.replace(Run(), plan=search)
    folder.mkdir(exist_ok=True)
    plan = calibrated_plan(run, WORK, CLUSTER)
    setup = Setup(run, Folder(folder), Numerics("cpu", "float32", "xla"), CLUSTER, plan, WORK, Options())
    made = Replanner(setup, 0, saved, lambda text: None)
    made.close()
    return made


def believed(made: Replanner) -> np.ndarray:
    return made.conductor.agent.belief.log_seconds()[0]


def took(arm: int, slower: float, made: Replanner, name: str = "another") -> None:
    """Another run took so much longer under one of these plans than is predicted of it."""
    plan = made.plans[arm]
    assert plan.predicted is not None
    seconds = slower * plan.predicted.step_seconds
    append(
        ledger_path(),
        Entry(
            date="2026-01-02T03:04:05+00:00",
            machine=machine_of(CLUSTER),
            workload=dataclasses.replace(WORK, name=name),
            cluster=CLUSTER,
            plan=bare(plan),
            predicted=plan.predicted,
            compiled={},
            measured=Measured(step_seconds=seconds, spread=0.01 * seconds, steps=20),
        ),
    )


def test_a_plan_that_was_slow_in_an_earlier_run_is_expected_to_be_slow_again(home: Path) -> None:
    before = replanner(home / "first")
    took(0, 1.0, before)
    took(1, 1.5, before)
    moved = believed(replanner(home / "second")) - believed(before)
    assert 0.1 < moved[1] - moved[0] < np.log(1.5)


def test_the_very_job_counts_for_more_than_another(home: Path) -> None:
    before = replanner(home / "first")
    rise = {}
    for name in ("another", WORK.name):
        took(1, 1.5, before, name)
        rise[name] = (believed(replanner(home / name)) - believed(before))[1]
        ledger_path().unlink()
    assert rise[WORK.name] > rise["another"]


def test_a_run_that_is_not_calibrated_learns_nothing_from_others(home: Path) -> None:
    search = Search(calibrate=False)
    before = replanner(home / "first", search)
    took(1, 1.5, before)
    np.testing.assert_array_equal(believed(replanner(home / "second", search)), believed(before))


def test_a_run_that_goes_on_keeps_what_it_believed_whatever_the_ledger_says_by_then(home: Path) -> None:
    before = replanner(home / "run")
    before.conductor.agent.observe(1, [0.02] * 5)
    saved = before.facts()["replan"]
    took(1, 1.5, before)
    np.testing.assert_allclose(believed(replanner(home / "run", saved=saved)), believed(before))

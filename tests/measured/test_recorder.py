"""What a run leaves behind of its predictions: in its directory, in the ledger, and in the next plan."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from jaxlm import measured as module
from jaxlm.config import Run
from jaxlm.folder import Folder
from jaxlm.ledger import calibration_for, calibration_path, constants, ledger_path, machine_of, memory_path
from jaxlm.measured import Recorder, sentence
from jaxlm.planned import calibrated_plan
from jaxlm.session import Numerics
from jaxlm.setup import Options, Setup
from jaxlm.trainer.loop import Finished
from planners.learning.ledger import read
from planners.machines.cluster_file import load_cluster
from planners.prices.memory_calibration import MemoryCalibration
from planners.prices.memory_phases import Habits
from planners.wishes import Search
from tests.planners.workloads import llama

WORK = llama(
    "tiny", layers=2, embed=64, heads=4, mlp=192, vocab=256, batch=4, sequence=64, dtype="float32", kernel="xla"
)
CLUSTER = load_cluster("cpux1")
RUN = Run()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def recorder(folder: Path, seconds: float, steps: int = 12) -> Recorder:
    """As after `steps` steps of that many seconds each."""
    folder.mkdir(exist_ok=True)
    plan = calibrated_plan(RUN, WORK, CLUSTER)
    setup = Setup(RUN, Folder(folder), Numerics("cpu", "float32", "xla"), CLUSTER, plan, WORK, Options())
    made = Recorder(setup, compiled={"arguments": 3.0 * 2**20, "temporaries": 2.0**20})
    for step in range(steps):
        made(Finished(step + 1, {}, seconds))
    return made


def test_a_run_leaves_the_pair_and_the_next_plan_is_closer(home: Path) -> None:
    expected = calibrated_plan(RUN, WORK, CLUSTER).predicted
    assert expected is not None
    taken = 3.0 * expected.step_seconds
    facts, said = recorder(home / "first", taken).finish()
    assert facts["step_seconds"]["measured"] == pytest.approx(taken)
    assert facts["memory_bytes"]["compiled"] == 4 * 2**20
    assert f"{taken:.3g} s measured" in said
    assert "calibration: 1 measured steps" in said
    kept = json.loads((home / "first" / "predicted_vs_measured.json").read_text())
    assert kept["step_seconds"] == facts["step_seconds"]
    (line,) = read(ledger_path())
    assert line.machine == machine_of(CLUSTER)
    assert json.loads(json.dumps(line.to_json())) == kept["entry"]

    again, _ = recorder(home / "second", taken).finish()
    first, second = (abs(each["step_seconds"]["error"]) for each in (facts, again))
    assert second < 0.5 * first
    assert "1 measured steps" in read(ledger_path())[-1].calibration
    untaught = dataclasses.replace(RUN, plan=Search(calibrate=False))
    plan = calibrated_plan(untaught, WORK, CLUSTER)
    assert plan.predicted is not None
    assert plan.predicted.step_seconds == pytest.approx(facts["step_seconds"]["predicted"])
    assert "no measured step" in plan.assumptions["calibration"]


def test_a_run_that_was_told_to_stop_leaves_its_line_and_learns_nothing(home: Path) -> None:
    recorder(home / "stopped", 2.5).finish(learning=False)
    assert len(read(ledger_path())) == 1
    assert not calibration_path(machine_of(CLUSTER)).exists()


def test_too_few_steps_say_nothing(home: Path) -> None:
    assert recorder(home / "short", 2.5, steps=6).finish() == ({}, "")
    assert not ledger_path().exists()


def test_a_ledger_that_cannot_be_written_stops_no_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "append", refuse)
    facts, said = recorder(home / "run", 2.5).finish()
    assert facts["step_seconds"]["measured"] == 2.5
    assert "not added to the ledger" in said
    assert "Permission denied" in said


def test_machines_are_told_apart_by_their_devices() -> None:
    assert machine_of(load_cluster("h100x8")) == machine_of(load_cluster("h100x64")) == "H100"
    assert machine_of(load_cluster("configs/clusters/mixed-v100-a100.yaml")) == "V100 + A100-40"
    assert "cores of" in machine_of(CLUSTER)
    assert machine_of(load_cluster("cpux8")) == machine_of(CLUSTER)


def test_memory_learnt_from_compiled_steps_is_used_for_that_model_and_compiler_only() -> None:
    cluster = load_cluster("h100x8")
    path = memory_path(WORK, "H100")
    path.parent.mkdir(parents=True)
    habits = {"full": Habits(block=1.2)}
    MemoryCalibration(jaxlib="0.0.1", habits=habits, compiled=2).save(path)
    assert constants(cluster, WORK, Search())[0].memory_habits == {}
    MemoryCalibration(jaxlib=module.importlib.metadata.version("jaxlib"), habits=habits, compiled=2).save(path)
    known, said = constants(cluster, WORK, Search())
    assert known.memory_habits == habits
    assert "memory learnt from 2 compiled steps" in said
    other = dataclasses.replace(WORK, sequence=128)
    assert constants(cluster, other, Search())[0].memory_habits == {}
    assert constants(cluster, WORK, Search(calibrate=False))[0].memory_habits == {}


def test_without_a_run_the_prior_holds() -> None:
    assert calibration_for(CLUSTER, Search()).runs == 0


def test_the_sentence_names_what_is_known() -> None:
    facts = {
        "step_seconds": {"predicted": None, "measured": 0.5, "error": None},
        "memory_bytes": {"predicted": None, "compiled": None, "measured": None},
    }
    assert sentence(facts) == "step 0.5 s measured"

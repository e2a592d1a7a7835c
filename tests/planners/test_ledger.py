"""Predicted, compiled and measured of past runs: kept apart, kept safe, and learnt from."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from planners.learning.ledger import Entry, Measured, append, bare, candidate, learn, predict, read
from planners.machines.cluster_file import load_cluster
from planners.plan import Plan, PlanError, Segment, Workload
from planners.prices.assumptions import Assumptions
from planners.search import plan as search_plan
from planners.wishes import Search
from tests.planners.workloads import llama

CLUSTER = load_cluster("cpux2")


def work(embed: int = 128, batch: int = 8) -> Workload:
    return llama(
        f"width {embed}",
        layers=2,
        embed=embed,
        heads=4,
        mlp=3 * embed,
        vocab=512,
        batch=batch,
        sequence=128,
        dtype="float32",
        kernel="xla",
    )


def entry(workload: Workload, seconds: float, plan: Plan | None = None) -> Entry:
    plan = plan or search_plan(workload, CLUSTER, Search())
    measured = Measured(step_seconds=seconds, spread=0.01 * seconds, steps=20)
    return Entry(
        date="2026-01-02T03:04:05+00:00",
        machine="2 cores",
        workload=workload,
        cluster=CLUSTER,
        plan=bare(plan),
        predicted=plan.predicted,
        compiled={"arguments": 100.0, "temporaries": 50.0},
        measured=measured,
    )


def test_a_run_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "runs.jsonl"
    first, second = entry(work(), 0.5), dataclasses.replace(entry(work(256), 1.5), machine="another")
    append(path, first)
    append(path, second)
    assert read(path) == [first, second]
    assert read(path, "2 cores") == [first]
    assert read(tmp_path / "none.jsonl") == []


def test_a_line_cut_off_by_a_crash_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    append(path, entry(work(), 0.5))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:100])
    assert len(read(path)) == 1
    path.write_bytes(b"nonsense\n" + whole)
    with pytest.raises(PlanError, match=r"runs\.jsonl, line 1: not JSON"):
        read(path)
    path.write_bytes(whole.replace(b'"format":1}\n', b'"format":99}\n'))
    assert read(path) == []


def test_the_step_time_is_the_median_of_steady_steps() -> None:
    measured = Measured.of([9.0, 5.0, 1.0, 1.1, 0.9, 1.0, 30.0], memory=7)
    assert measured is not None
    assert (measured.step_seconds, measured.steps, measured.memory) == (1.0, 5, 7)
    assert Measured.of([9.0, 5.0, 1.0, 1.1]) is None


def test_predicted_compiled_and_measured_stand_side_by_side() -> None:
    one = entry(work(), 0.5)
    assert one.predicted is not None
    facts = one.compared()
    assert facts["step_seconds"]["predicted"] == one.predicted.step_seconds
    assert facts["step_seconds"]["error"] == pytest.approx(one.predicted.step_seconds / 0.5 - 1)
    assert facts["memory_bytes"]["compiled"] == 150.0
    assert facts["memory_bytes"]["measured"] is None
    assert facts["memory_bytes"]["error_of_compiled_to_measured"] is None


def test_runs_of_a_slower_machine_teach_its_speed() -> None:
    """Three runs that took four times as long as predicted; a fourth, of another width, is then predicted closely."""
    factor = 4.0
    seen = [work(), work(256), work(128, batch=16)]
    truth = lambda w: factor * float(predict([entry(w, 1.0)], Assumptions())[0])
    runs = [entry(w, truth(w)) for w in seen]
    new = work(192, batch=8)
    calibration = learn(runs)
    assert calibration is not None
    plan = search_plan(new, CLUSTER, Search(), calibration.assumptions)
    assert plan.predicted is not None
    before, after = (abs(np.log(p / truth(new))) for p in (truth(new) / factor, plan.predicted.step_seconds))
    assert before > 1.3
    assert after < 0.25 * before
    assert calibration.runs == 3
    assert "2 cores" in calibration.describe()


def test_runs_priced_together_cost_what_each_costs_alone() -> None:
    half = dataclasses.replace(work(), compute_dtype="bfloat16")
    runs = [entry(w, 1.0) for w in (work(), work(256), half, work(128, batch=16))]
    alone = [float(predict([run], Assumptions())[0]) for run in runs]
    assert predict(runs, Assumptions()).tolist() == pytest.approx(alone)
    assert alone == pytest.approx([run.predicted.step_seconds for run in runs if run.predicted])


def test_a_repeated_run_counts_once_its_latest() -> None:
    once, again = entry(work(), 9.0), entry(work(), 0.5)
    learnt, alone = learn([once, again, again]), learn([again])
    assert learnt is not None
    assert alone is not None
    assert learnt.runs == 1
    assert learnt.assumptions == alone.assumptions


def test_a_plan_without_a_price_teaches_nothing() -> None:
    plan = search_plan(work(), CLUSTER, Search())
    mixed = dataclasses.replace(plan, remat=(Segment(layers=1), Segment(layers=1, save=())))
    assert candidate(mixed) is None
    assert candidate(dataclasses.replace(plan, remat=(Segment(layers=2, save=("q",)),))) is None
    assert learn([entry(work(), 0.5, mixed)]) is None

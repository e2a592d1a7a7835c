"""The out-of-memory benchmark: splits are disjoint, measures count what they say, coefficients move with evidence."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks.published import alephalpha, alephalpha_memory, alephalpha_time
from experiments.benchmarks.published.judge import Verdict
from experiments.benchmarks.published.posterior import Prior, classify, regress
from experiments.benchmarks.published.tables import Source, Table

SHARED = os.environ.get("JAXLM_SHARED")


def row(**changes: str) -> dict[str, str]:
    """A row in the form of the file; the values are invented."""
    base = {
        "trial": "1",
        "model": "m",
        "hidden": "4096",
        "layers": "32",
        "heads": "32",
        "ffn": "11008",
        "vocab": "32000",
        "seq_len": "2048",
        "global_batch": "512",
        "gpus": "32",
        "tp": "1",
        "pp": "1",
        "dp": "32",
        "micro_batch": "1",
        "recompute": "disabled",
        "kernel": "flash_attention2 + RMS kernel",
        "sequence_parallel": "",
        "status": "ok",
        "step_time_s": "10.0",
        "source": "sheet a",
    }
    return base | changes


def test_measures_count_what_they_say():
    size, exceeds = np.array([0.5, 0.9, 1.1, 0.8]), np.array([False, False, False, True])
    assert alephalpha.placements(size, exceeds).mean() == pytest.approx(1 / 3)
    assert list(alephalpha.false_fits(size, exceeds)) == [0, 0, 100]
    assert list(alephalpha.false_refusals(size, exceeds)) == [0, 0, 100]


def test_rows_are_split_by_model_and_by_sheet_only_where_there_is_one_model():
    rows = Table("t", (row(model="a"), row(model="b", trial="2"), row(model="a", source="sheet b", trial="3")))
    for mine, rest in alephalpha_memory.folds(rows, rows):
        assert not set(rows.take(mine).text("model")) & set(rows.take(rest).text("model"))
    single = rows.take(rows.text("model") == "a")
    for mine, rest in alephalpha_memory.folds(single, single):
        assert not set(single.take(mine).text("source")) & set(single.take(rest).text("source"))


def test_a_fold_that_judges_a_fitted_row_is_refused():
    with pytest.raises(ValueError, match="of a fold were fitted"):
        Verdict(
            what="x",
            league="y",
            quantity="z",
            ours=np.zeros(1),
            folds=((frozenset({"a"}), frozenset({"b"})), (frozenset({"b"}), frozenset({"b", "c"}))),
        )


def test_a_coefficient_moves_to_what_separates_rows_that_fit_from_rows_that_do_not():
    tokens = np.linspace(1.0, 10.0, 40)
    exceeds = 3.0 * tokens > 15.0
    priors = {"each": Prior(value=2.0, deviation=1.0, source="invented")}
    found = classify(lambda c: c["each"] * tokens, exceeds, priors, limit=15.0, spread=0.02)
    assert found["each"] == pytest.approx(3.0, rel=0.05)


def test_one_odd_row_does_not_decide_a_regression():
    size = np.linspace(1.0, 10.0, 20)
    measured = 2.0 * size
    measured[3] *= 5
    priors = {"each": Prior(value=1.5, deviation=1.0, source="invented")}
    found = regress(lambda c: c["each"] * size, measured, priors, spread=0.05)
    assert found["each"] == pytest.approx(2.0, rel=0.03)


def test_a_larger_microbatch_and_an_unfused_norm_need_more():
    rows = Table("t", (row(), row(micro_batch="2", trial="2"), row(kernel="flash_attention2", trial="3")))
    one, two, unfused = alephalpha_memory.Layouts.of(rows).peak(alephalpha_memory.counted())
    assert one < two
    assert one < unfused


def test_a_choice_that_ran_out_is_charged_and_a_rule_may_be_told():
    rows = Table(
        "t",
        (
            row(step_time_s="", status="OOM Error", micro_batch="4"),
            row(step_time_s="10.0", trial="2"),
            row(step_time_s="12.0", trial="3", pp="2", dp="16"),
        ),
    )
    wrong = alephalpha.Predicted(
        sizes=np.array([0.5, 0.6, 0.7]), seconds=np.array([9.0, 10.0, 12.0]), folds=(), league="x", constants=""
    )
    regret, ran_out, _ = alephalpha.choices(rows, wrong)
    assert regret.ours.tolist() == [alephalpha.FAILED]
    assert ran_out.ours.tolist() == [100.0]
    refused = dataclasses.replace(wrong, sizes=np.array([1.5, 0.6, 0.7]))
    assert alephalpha.choices(rows, refused)[0].ours.tolist() == [0.0]


def test_step_times_follow_the_planners_own_functions():
    rows = Table("t", (row(), row(recompute="every_layer", trial="2"), row(kernel="torch", trial="3")))
    plain, again, torch = alephalpha_time.predict(rows)
    assert again > plain
    assert torch > plain
    assert sum(alephalpha_time.parts(rows)[1].values()) == pytest.approx(again)


def test_a_missing_file_is_skipped_and_named(tmp_path: Path):
    source = Source(tmp_path, tmp_path)
    assert alephalpha.verdicts(source, 0) == []
    assert "alephalpha_layouts.csv" in next(iter(source.missing))


@pytest.mark.skipif(not SHARED, reason="JAXLM_SHARED names no folder of published measurements")
def test_folds_of_the_published_rows_never_meet():
    folder = Path(SHARED or "") / "groundtruth"
    rows = Source(folder, folder).judged("alephalpha_layouts")
    assert rows is not None
    digests = np.array(rows.digests)
    judged: list[str] = []
    for mine, rest in alephalpha_memory.folds(rows, rows):
        assert not set(digests[mine]) & set(digests[rest])
        judged += list(digests[mine])
    assert sorted(judged) == sorted(digests)

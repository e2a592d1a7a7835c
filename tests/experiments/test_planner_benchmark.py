"""The benchmark of the planner: fitted and judged rows never meet, misses are called so, missing files are named."""

import os
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks.planner import Config, execute, report_of
from experiments.benchmarks.published import megatron, vtrain
from experiments.benchmarks.published.judge import Verdict, groups, interval, regret
from experiments.benchmarks.published.megatron_style import MEGATRON
from experiments.benchmarks.published.tables import Source, Table
from planners.learning import calibration

SHARED = os.environ.get("JAXLM_SHARED")
NEEDS = pytest.mark.skipif(not SHARED, reason="JAXLM_SHARED names no folder of published measurements")


def row(**changes: object) -> dict[str, str]:
    values = {"params_b": "", "gpus": 8, "hidden": 1024, "heads": 16, "layers": 24, "seq_len": 1024}
    values |= {"tp": 2, "dp": 4, "pp": 1, "global_batch": 32, "micro_batch": 2, "iter_time_ms": 400.0}
    return {name: str(value) for name, value in (values | changes).items()}


def test_a_verdict_refuses_rows_that_were_fitted_and_are_judged() -> None:
    with pytest.raises(ValueError, match="1 rows were fitted and are judged"):
        Verdict(
            what="x",
            league="y",
            quantity="z",
            ours=np.ones(2),
            fitted=frozenset({"a", "b"}),
            judged=frozenset({"b", "c"}),
        )


def test_a_row_is_known_by_its_facts_and_not_by_remarks_about_it() -> None:
    plain, remarked, other = Table("t", (row(), row(source="a book"), row(tp=4))).digests
    assert plain == remarked
    assert plain != other


def test_regret_is_what_the_chosen_plan_loses() -> None:
    measured, score = np.array([2.0, 1.0, 4.0, 3.0]), np.array([1.0, 2.0, 1.0, 2.0])
    members = groups([("a",), ("a",), ("b",), ("b",)])
    np.testing.assert_allclose(regret(score, measured, members), [100.0, 100.0 / 3.0])
    np.testing.assert_allclose(regret(score, measured, members, probes=2), 0.0)


def test_misses_are_called_misses(tmp_path: Path) -> None:
    verdict = Verdict(what="x", league="y", quantity="error, %", ours=np.array([1.0, 9.0]), targets={"mean": 4.0})
    report = report_of([verdict], Source(tmp_path, tmp_path), samples=50, seed=0)
    assert any("target <= 4: MISSED" in line.note for line in report.rows)
    assert any(remark.startswith("Missed targets: x, y") for remark in report.remarks)
    low, high = interval("mean", verdict.ours, samples=200, seed=0)
    assert low <= 5.0 <= high


def test_missing_files_are_skipped_and_named(tmp_path: Path) -> None:
    report = execute(Config(groundtruth=str(tmp_path), sections="vtrain,megatron"), tmp_path)
    assert list(report.rows) == []
    assert any("vtrain_multi.csv" in remark for remark in report.remarks)


def test_published_rows_are_priced_by_the_functions_of_a_plan() -> None:
    made, measured = vtrain.priced(Table("t", (row(), row(micro_batch=4), row(tp=1, dp=8))))
    seconds = made.seconds(MEGATRON)
    assert seconds.shape == measured.shape == (3,)
    assert np.all((seconds > 0.1) & (seconds < 1.0)), "of the order of the published 0.2 to 0.5 s"


@NEEDS
def test_fitted_and_judged_rows_are_disjoint_in_every_league(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(SHARED or "") / "groundtruth"
    source = Source(folder, folder)
    table = source.judged("vtrain_single")
    assert table is not None
    few = table.take(np.arange(0, len(table), 30))
    small = _Few(source, few)
    monkeypatch.setattr(calibration, "ROUNDS", 1)  # how well it fits is not asked here
    monkeypatch.setattr(vtrain, "SEEDS", 1)
    verdicts = [*vtrain.verdicts(small, 0), *megatron.verdicts(small, 0)]
    assert {verdict.league for verdict in verdicts} >= {"zero-shot", "held-out model", "16 runs, draw 0"}
    for verdict in verdicts:
        assert verdict.judged or verdict.folds
        assert not verdict.fitted & verdict.judged
        for fitted, judged in verdict.folds:
            assert judged
            assert not fitted & judged


class _Few(Source):
    """The published rows, with a few of the largest file's."""

    def __init__(self, source: Source, few: Table):
        super().__init__(source.groundtruth, source.calibrate_on)
        self.few = few

    def _table(self, folder: Path, name: str) -> Table | None:
        return self.few if name == self.few.name else super()._table(folder, name)

"""Unequal devices: rows are read as pipelines, the slowest part decides, and no fold sees what it judges."""

import os
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks.published import sailor
from experiments.benchmarks.published.sailor import Run
from experiments.benchmarks.published.tables import Source

SHARED = os.environ.get("JAXLM_SHARED")
COUNTED = {"compute": 1.0, "link": 1.0}


def run(kinds: tuple[tuple[str, ...], ...], items: tuple[int, ...], batch: int = 64) -> Run:
    return Run(model="OPT-350M", kinds=kinds, items=items, microbatch=2, tensor=8, batch=batch, seconds=1.0)


def test_a_row_is_read_as_stages_of_replicas():
    row = {
        "model": "OPT-350M",
        "devices_per_stage": "RTX-3090x8+RTX-2080x8 | Titan-RTXx8+RTX-2080x8",
        "layers_per_stage": "12/14",
        "micro_batch": "2",
        "tp": "8",
        "global_batch": "256",
        "iter_time_s": "66.0",
    }
    found = Run.of(row)
    assert found.kinds == (("RTX-3090", "RTX-2080"), ("Titan-RTX", "RTX-2080"))
    assert found.items == (12, 14)
    assert found.replicas == 2


def test_one_slow_replica_sets_the_pace_of_all():
    fast = run((("Titan-RTX", "Titan-RTX"),), (26,)).predict(COUNTED)
    mixed = run((("Titan-RTX", "RTX-3090"),), (26,)).predict(COUNTED)
    alone = run((("RTX-3090",),), (26,), batch=32).predict(COUNTED)
    assert fast < alone < mixed


def test_layers_on_the_faster_stage_make_the_pipeline_faster():
    even = run((("RTX-3090",), ("Titan-RTX",)), (13, 13)).predict(COUNTED)
    shifted = run((("RTX-3090",), ("Titan-RTX",)), (8, 18)).predict(COUNTED)
    assert shifted < even


def test_the_slower_link_of_a_pair_counts():
    assert sailor.bandwidth("RTX-3090", "Titan-RTX") == sailor.bandwidth("Titan-RTX", "RTX-3090") == 115e6
    assert sailor.bandwidth("RTX-2080", "Titan-RTX") > 1e9


def test_a_missing_file_is_skipped_and_named(tmp_path: Path):
    source = Source(tmp_path, tmp_path)
    assert sailor.verdicts(source, 0) == []
    assert "sailor_measured.csv" in next(iter(source.missing))


@pytest.mark.skipif(not SHARED, reason="JAXLM_SHARED names no folder of published measurements")
def test_published_rows_are_judged_by_fits_that_did_not_see_them():
    folder = Path(SHARED or "") / "groundtruth"
    rows = Source(folder, folder).judged("sailor_measured")
    assert rows is not None
    mixed = rows.take(sailor.unequal(rows))
    predicted, folds = sailor.held_out(mixed, mixed, "iter_time_s")
    assert np.all(predicted > 0)
    judged = [digest for _, mine in folds for digest in mine]
    assert sorted(judged) == sorted(mixed.digests)
    assert all(not fitted & mine for fitted, mine in folds)

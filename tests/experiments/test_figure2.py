"""Figure 2 is drawn from the record that a run leaves."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import figure2_toggles
from experiments.figure2_toggles import Config, details, draw, measure, read_epochs
from planners.plan import Segment

NONE, SOME, FULL = (Segment(layers=2, save=save) for save in (None, ("q", "k"), ()))
COSTS = [{"policy": name, "predicted_kept_bytes": size} for name, size in (("none", 90), ("q+k", 50), ("full", 10))]


def record(epoch: int, event: str, *segments: Segment, **more) -> dict:
    ran = [dataclasses.asdict(each) for each in segments]
    costs = {"costs": COSTS, "next": ran} if event != "end" else {}
    return {"step": 3 * epoch, "epoch": epoch, "event": f"remat.{event}", "segments": ran, "measured_seconds": 0.5,
            "peak_bytes": 800.0, "budget_bytes": 1000.0} | costs | more  # fmt: skip


@pytest.fixture
def path(tmp_path):
    lines = [
        record(1, "try", FULL, NONE),
        {"step": 3, "event": "remat.refuse", "segments": [], "peak_bytes": 1100.0, "budget_bytes": 1000.0},
        record(2, "keep", FULL, NONE, measured_seconds=0.4),
        record(3, "try", SOME, NONE, peak_bytes=900.0),
        record(4, "end", Segment(layers=4, save=("q", "k")), peak_bytes=None),
    ]
    file = tmp_path / "remat.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_the_heatmap_is_the_record(path, tmp_path):
    found = read_epochs(path)
    np.testing.assert_allclose(found.kept, [[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5], [1, 1, 1, 0.5], [1, 1, 1, 0.5]])
    assert found.toggles.tolist() == [0, 0, 2, 2]
    assert found.kinds == ["try", "keep", "try"]
    assert found.refused == 1
    assert found.seconds.tolist() == [0.5, 0.4, 0.5, 0.5]
    assert draw(found, tmp_path / "out").read_bytes().startswith(b"\x89PNG")
    rows = {row.quantity: row for row in figure2_toggles._rows(found)}
    assert rows["toggles, layers x epochs"].measured == 4
    assert rows["epochs that began with other policies"].measured == 2
    assert rows["mixes refused after compiling"].measured == 1
    assert rows["highest peak over the budget"].compiled == pytest.approx(0.9)
    assert "no layer toggles after epoch 4" in figure2_toggles._settled(found)
    assert json.loads(json.dumps(details(found)))["kept_share"][0] == [0, 0, 0.5, 0.5]


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match=r"memory=1.0 must be from 0 \(as full\) to below 1"):
        Config(memory=1.0)
    with pytest.raises(ValueError, match="epochs=1 must be at least 2"):
        Config(epochs=1)


@pytest.mark.slow
def test_a_real_run_leaves_a_real_heatmap(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = {
        "data": {"path": "stdlib", "limit_bytes": 200000, "sequence": 64, "tokenizer": {"vocab": 420}},
        "model": {"layers": 6, "embed": 32, "heads": 2, "mlp": 64, "dtype": "float32"},
        "optim": {"lr": 1e-3, "warmup": 2},
        "train": {"batch": 8, "log_every": 4, "tensorboard": False, "compilation_cache": False},
    }
    report = measure(Config(run=run, epochs=4, steps_per_epoch=4, memory=0.4), tmp_path)
    rows = {row.quantity: row for row in report.rows}
    assert rows["epochs"].measured == 4
    assert np.array(report.details["kept_share"]).shape == (6, 4)
    apart = rows["training loss other than without recomputation, at most"].measured
    assert isinstance(apart, float)
    assert apart < 1e-3
    assert min(min(row) for row in report.details["kept_share"]) < 1, "something is computed again"

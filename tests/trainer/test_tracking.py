"""Weights & Biases gets the same records, by a module that stands in for it and, where installed, by itself."""

import sys
import types

import pytest

from jaxlm.decode import ConfigError
from jaxlm.trainer.tracking import WeightsAndBiases, require_tracking


@pytest.fixture
def wandb(monkeypatch):
    """A module that writes down what it is told."""
    module = types.ModuleType("wandb")
    told: list[tuple] = []

    class Run:
        def __init__(self, identity):
            self.id = identity or "abc123"

        def log(self, values, step):
            told.append((step, values))

        def finish(self):
            told.append(("finish",))

    def init(**options):
        told.append(("init", options))
        return Run(options["id"])

    module.Error = type("Error", (Exception,), {})  # pyright: ignore[reportAttributeAccessIssue]
    module.Settings = lambda **options: options  # pyright: ignore[reportAttributeAccessIssue]
    module.init = init  # pyright: ignore[reportAttributeAccessIssue]
    module.told = told  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


RECORD = {"step": 7, "loss": 2.5, "tokens": 10, "batches": ["c0ffee"], "mfu": None}


def test_records_go_out_as_numbers_by_step_and_a_resumed_run_goes_on_in_the_same_one(wandb, tmp_path):
    first = WeightsAndBiases("papers", "tiny", tmp_path, {"seed": 1})
    first(RECORD)
    first.evaluated({"step": 7, "bits_per_byte": 1.5})
    first.close()
    (_, options), *logged = wandb.told
    assert (options["project"], options["name"], options["id"]) == ("papers", "tiny", None)
    assert (options["dir"], options["config"]) == (str(tmp_path), {"seed": 1})
    assert logged == [(7, {"train/loss": 2.5, "train/tokens": 10}), (7, {"valid/bits_per_byte": 1.5}), ("finish",)]
    WeightsAndBiases("papers", "tiny", tmp_path, {})
    resumed = wandb.told[-1][1]
    assert (resumed["id"], resumed["resume"]) == ("abc123", "allow")


def test_what_wandb_refuses_is_said_with_the_remedy(wandb, tmp_path):
    def refuse(**options):
        raise wandb.Error("api_key not configured")

    wandb.init = refuse
    with pytest.raises(ConfigError, match=r"train\.wandb=papers: api_key not configured\. `wandb login` once, or set"):
        WeightsAndBiases("papers", "tiny", tmp_path, {})


def test_a_missing_package_is_named_with_the_command_that_brings_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    require_tracking(None)
    with pytest.raises(ConfigError, match="uv sync --extra tracking"):
        require_tracking("papers")


@pytest.mark.slow
def test_the_real_package_writes_offline_and_resumes(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for _ in range(2):
        tracking = WeightsAndBiases("papers", "tiny", tmp_path, {"seed": 1})
        tracking(RECORD)
        tracking.close()
    (identity,) = (tmp_path / "wandb_id.txt").read_text().split()
    written = [path.name for path in (tmp_path / "wandb").glob("offline-run-*") if path.is_dir()]
    assert written
    assert all(name.endswith(identity) for name in written)

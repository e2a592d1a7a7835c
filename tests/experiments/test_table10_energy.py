"""Energy of an epoch: predicted from the parts of a step, measured only where the machine tells."""

import json
import math

import pytest

from experiments.table10_energy import COMPUTING, Config, _predicted, watt_hours
from jaxlm.config import Run
from jaxlm.model.config import ModelConfig


def test_watt_hours_add_up():
    parts = {"compute": 3.0, "gradient_sync": 1.0}
    likely, most = watt_hours(parts, batch=10, samples=3600, gpus=2, busy=400.0, waiting=100.0)
    assert math.isclose(likely, 360 * 2 * (3 * 400 + 100) / 3600)
    assert math.isclose(most, 360 * 2 * 4 * 400 / 3600)


def test_every_row_is_predicted_or_the_papers_and_waiting_costs_less_than_computing():
    run = Run(model=ModelConfig(layers=2, embed=256, heads=4, mlp=512, vocab=1000))
    rows, details = _predicted(Config(run=run, gpus=8, small=None))
    assert {row.measured for row in rows} == {row.compiled for row in rows} == {None}
    by_name = {(row.what, row.quantity): row for row in rows}
    ours = by_name[("ours", "Wh per epoch, GPUs")]
    assert ours.paper == 711_000.0
    assert (
        0 < float(str(ours.predicted)) <= float(str(by_name[("ours", "Wh per epoch at full power, at most")].predicted))
    )
    assert set(details["ours"]["seconds"]) & set(COMPUTING)
    json.dumps(details)


def test_watts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="waiting_watts=500"):
        Config(waiting_watts=500.0)

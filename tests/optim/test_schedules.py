"""Learning rates, value by value."""

import math

import pytest

from jaxlm.optim import Adafactor, AdamW, Lion, Muon


@pytest.mark.parametrize("kind", [AdamW, Lion, Adafactor, Muon])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_every_schedule_warms_up_from_lr_over_warmup_to_lr(kind, schedule):
    rate = kind(lr=1.0, warmup=10, schedule=schedule).rate(110)
    assert [float(rate(step)) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert float(rate(10)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        ("constant", {60: 1.0, 109: 1.0}),
        ("linear", {35: 0.775, 60: 0.55, 85: 0.325, 109: 0.109, 110: 0.1}),
        ("cosine", {35: 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2, 60: 0.55, 110: 0.1}),
        ("wsd", {50: 1.0, 88: 1.0, 99: 0.55, 109: 0.1 + 0.9 / 22, 110: 0.1}),
    ],
)
def test_schedules_have_these_values(schedule, want):
    rate = AdamW(lr=1.0, warmup=10, schedule=schedule, final=0.1, decay=0.2).rate(110)
    assert {step: float(rate(step)) for step in want} == pytest.approx(want, rel=1e-5)


def test_wsd_may_fall_by_one_minus_the_square_root():
    rate = AdamW(lr=2.0, warmup=0, schedule="wsd", final=0.0, decay=0.25, decay_shape="sqrt").rate(400)
    assert [float(rate(step)) for step in (299, 300, 325, 336, 400)] == pytest.approx([2.0, 2.0, 1.0, 0.8, 0.0])


def test_wsd_that_decays_for_longer_than_what_warmup_leaves_decays_from_the_end_of_warmup():
    rate = AdamW(lr=1.0, warmup=50, schedule="wsd", final=0.0, decay=0.9).rate(100)
    assert [float(rate(step)) for step in (49, 50, 75, 99)] == pytest.approx([1.0, 1.0, 0.5, 0.02])


def test_a_schedule_of_one_step_has_a_positive_rate():
    for schedule in ("cosine", "linear", "wsd", "constant"):
        assert float(AdamW(lr=1.0, warmup=10, schedule=schedule, final=0.0).rate(1)(0)) == 1.0

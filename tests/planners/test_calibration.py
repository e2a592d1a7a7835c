"""What measured steps teach: coefficients come back, error bars shrink, residuals carry over to similar steps only."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from planners.learning.calibration import Calibration
from planners.plan import PlanError
from planners.prices.assumptions import Assumptions, spreads

TRUTH = Assumptions(matmul_efficiency=0.68, memory_efficiency=0.9, link_efficiency=0.9)
FLOPS, BYTES, SENT = np.random.default_rng(1).uniform(0.2, 2.0, (3, 32))


def predict(assumptions: Assumptions) -> np.ndarray:
    """Seconds of thirty-two steps made of products, memory traffic and collectives."""
    a = assumptions
    return FLOPS / a.matmul_efficiency + BYTES / a.memory_efficiency + SENT / a.link_efficiency + 1e3 * a.dispatch


def error(assumptions: Assumptions) -> float:
    return float(np.mean(np.abs(predict(assumptions) / predict(TRUTH) - 1.0)))


def test_sixteen_runs_bring_the_constants_close_to_the_truth() -> None:
    picks = np.random.default_rng(0).permutation(32)[:16]
    before = Calibration.prior(noise=0.05)
    after = before.update(lambda a: predict(a)[picks], predict(TRUTH)[picks], source="a test")
    assert error(after.assumptions) < 0.25 * error(before.assumptions)
    assert after.assumptions.matmul_efficiency == pytest.approx(TRUTH.matmul_efficiency, rel=0.03)
    assert after.error < before.error
    assert "16 measured steps (a test)" in after.describe()


def test_an_outlier_hardly_moves_the_constants() -> None:
    measured = predict(TRUTH)
    measured[3] *= 3.0
    after = Calibration.prior(noise=0.05).update(predict, measured)
    assert error(after.assumptions) < 0.02


def test_one_run_moves_less_than_many_and_uncertainty_only_shrinks() -> None:
    before = Calibration.prior(noise=0.05)
    one = before.update(lambda a: predict(a)[:1], predict(TRUTH)[:1])
    many = before.update(predict, predict(TRUTH))
    assert np.all(np.diag(many.covariance) <= np.diag(one.covariance) * (1 + 1e-6))
    assert np.all(np.diag(one.covariance) <= np.diag(before.covariance) * (1 + 1e-6))


def test_only_constants_with_a_spread_are_moved() -> None:
    plain, after = Assumptions(), Calibration.prior(noise=0.05).update(predict, predict(TRUTH)).assumptions
    names = [field.name for field in dataclasses.fields(Assumptions)]
    moved = {name for name in names if getattr(after, name) != getattr(plain, name)}
    assert moved
    assert moved <= set(spreads())


def test_residuals_carry_over_to_similar_steps_and_to_no_others() -> None:
    features = np.column_stack([np.arange(32) % 8.0 * 3.0, np.arange(32) // 8.0 * 3.0])
    odd = predict(Assumptions()) * np.where(np.arange(32) == 5, 1.1, 1.0)
    known = Calibration.prior(noise=0.05).update(predict, odd, features=features)
    plain = predict(known.assumptions)
    corrected = known.correct(plain, features)
    assert corrected[5] / plain[5] == pytest.approx(1.1, abs=0.03)
    np.testing.assert_allclose(known.correct(plain, features + 100.0), plain)


def test_a_calibration_survives_its_file(tmp_path: Path) -> None:
    made = Calibration.prior(noise=0.05).update(predict, predict(TRUTH), features=np.zeros((32, 1)), source="a test")
    path = tmp_path / "calibration.json"
    made.save(path)
    read = Calibration.load(path)
    assert read.assumptions == made.assumptions
    assert read.describe() == made.describe()
    np.testing.assert_allclose(read.correct(np.ones(1), np.zeros((1, 1))), made.correct(np.ones(1), np.zeros((1, 1))))


def test_a_file_that_is_no_calibration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    with pytest.raises(PlanError, match="does not exist"):
        Calibration.load(path)
    path.write_text("{}")
    with pytest.raises(PlanError, match="a calibration has the keys"):
        Calibration.load(path)


def test_times_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive seconds"):
        Calibration.prior().update(predict, np.zeros(32))

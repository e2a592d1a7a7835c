"""The replay of the agent: what it learns on other models counts, and no job is judged by rows that it learnt from."""

import numpy as np
import pytest

from experiments.benchmarks.published.agent import verdicts
from experiments.benchmarks.published.replay import Job, by_agent, in_order, losses
from experiments.benchmarks.published.tables import Source
from experiments.link_drift import Weather, simulate
from planners.learning.agent import Arm
from planners.learning.belief import Evidence

SIZES = [(float(t), float(m)) for t in (1, 2, 4, 8) for m in (1, 2, 4)]


def job(evidence: bool) -> Job:
    """Twelve plans predicted within 1% of each other; on every model those of tensor degree 1 take a fifth longer."""
    slower = {1.0: 1.2}
    predicted = [1.0 + 0.001 * i for i in range(len(SIZES))]
    seen = [
        Evidence(job=str(model), parts={"compute": p}, sizes=sizes, seconds=p * slower.get(sizes[0], 1.0))
        for model in range(3)
        for p, sizes in zip(predicted, SIZES, strict=True)
    ]
    arms = tuple(
        Arm(key=str(i), summary="", parts={"compute": p}, sizes=sizes, memory=0.0)
        for i, (p, sizes) in enumerate(zip(predicted, SIZES, strict=True))
    )
    seconds = np.array([p * slower.get(sizes[0], 1.0) for p, sizes in zip(predicted, SIZES, strict=True)])
    return Job(arms=arms, seconds=seconds, links=(), evidence=tuple(seen) if evidence else ())


def test_the_agent_avoids_what_was_slow_on_every_other_model_and_predicted_order_does_not():
    ours, order = (losses(job(True), policy, (1, 3), [0])[0] for policy in (by_agent, in_order))
    assert ours[0] < 1.0
    assert order[1] > 15.0


def test_one_probe_teaches_about_plans_like_it_without_any_evidence():
    assert losses(job(False), by_agent, (4,), [0])[0, 0] < losses(job(False), in_order, (3,), [0])[0, 0]


def test_a_link_at_half_its_bandwidth_is_planned_for_and_a_calm_machine_is_left_alone():
    calm = simulate(0, Weather(), steps=600, change=None)
    assert (calm.false, calm.flaps, calm.changes_before) == (0, 0, 0)
    changed = [simulate(seed, Weather(), steps=1500, change=200) for seed in range(3)]
    assert all(outcome.delay is not None and outcome.delay <= 20 for outcome in changed)
    assert not any(outcome.flaps for outcome in changed)
    assert np.mean([outcome.regret for outcome in changed]) < np.mean([outcome.stayed for outcome in changed])


def test_published_jobs_are_judged_by_rows_that_the_agent_never_saw(shared):
    source = Source(shared / "groundtruth", shared / "groundtruth")
    multi = [v for v in verdicts(source, 0, ("vtrain_multi",)) if v.quantity.startswith("regret after 3")]
    assert multi
    for verdict in multi:
        assert all(fitted and judged and not fitted & judged for fitted, judged in verdict.folds)
        assert np.mean(verdict.ours) <= np.mean(verdict.baselines["random"])
        with pytest.raises(ValueError, match="fitted or judged"):
            verdict.replace(folds=tuple((judged, judged) for _, judged in verdict.folds))

"""Published pipelines, read and simulated."""

import pytest

from experiments.pipeline_orders import korthikanti, sc21, scaled, vtrain


def test_published_interleaved_steps_are_met_within_a_tenth_by_the_cost_model_alone(shared):
    jobs = [job for job in korthikanti(shared / "groundtruth") if job.stages == 8]
    assert [job.virtual for job in jobs] == [3, 3]
    for job in jobs:
        assert job.simulate(*job.own) == pytest.approx(job.published, rel=0.1)
        assert job.simulate("1f1b", 1) > job.simulate("interleaved", 3)


def test_vtrains_runs_with_more_stages_follow_from_the_one_with_fewest(shared):
    jobs = [job for job in vtrain(shared / "groundtruth") if job.name.startswith("39.1") and job.tensor == 8]
    jobs = [job for job in jobs if job.microbatch == 2 and job.stages <= 8]
    found = {job.stages: (seconds, anchor) for job, seconds, anchor in scaled(jobs)}
    assert set(found) == {4, 8}
    assert all(anchor.stages == 2 for _, anchor in found.values())
    for job in jobs:
        if job.stages in found:
            assert found[job.stages][0] == pytest.approx(job.published, rel=0.1)


def test_interleaving_of_sc21_comes_from_the_authors_script(shared):
    assert {job.stages: job.virtual for job in sc21(shared / "groundtruth")} == {2: 1, 4: 3, 8: 2, 16: 2, 35: 3, 64: 1}

"""A run whose layers go over to other policies between epochs trains as one that does not, and leaves a record."""

import json
import signal
from itertools import pairwise

import numpy as np
import pytest

from experiments.processes import free_port
from jaxlm.cli import main
from jaxlm.config import load
from jaxlm.feedback import _plain
from jaxlm.inspect import described
from planners.machines.cluster_file import load_cluster
from planners.plan import Plan, Segment, structure
from planners.search import price
from tests.cli.programs import finish, losses, records, start, write_config

EXACT = ["--optim.lr", "1e-3", "--model.dropout", "0.0", "--model.layers", "6", "--train.steps", "24"]
EXACT += ["--checkpoint.every_steps", "4", "--plan.microbatch", "8", "--sample.prompt", "null"]
FEEDBACK = ["--plan.remat_feedback.every", "4", "--plan.remat_feedback.horizon", "100000"]

RESTLESS = """
import os, signal
import jaxlm.feedback
from planners.learning.remat_feedback import Toggle
from planners.remat import dynamic
from jaxlm.cli import main

def decide(costs, budget, now, seen, *, epoch, left, trial, price, banned):
    if epoch == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    lower = [budget, budget - 0.3 * SPAN, budget - 0.45 * SPAN][epoch % 3]
    runs = dynamic.solve(costs.problem(lower, sum(run.layers for run in now))).runs
    return Toggle(runs=runs, kind="try", reason="as the test says", seconds=1.0, gain=1.0, peak=1.0)

jaxlm.feedback.decide = decide
main()
"""
"""Other decisions, one per epoch, each within less memory or more; the process dies at the end of epoch KILLED."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("feedback")


@pytest.fixture(scope="module")
def config(home):
    return write_config(home)


@pytest.fixture(scope="module")
def span(config):
    return ends(config, 1)


def ends(config, devices):
    """Bytes without recomputation and with all of it, as predicted of devices that have a process each."""
    run = load(config, EXACT)
    workload, alone, together = described(run, None)[0], load_cluster("cpux1"), load_cluster(f"cpux{devices}")
    runtime = price(workload, alone, run.plan, {"data": 1}, 8).memory["runtime"]
    found = [price(workload, together, run.plan, {"data": devices}, 8, remat).memory for remat in ("none", "full")]
    return [sum(size for name, size in memory.items() if name != "runtime") + runtime for memory in found]


def within(none, full):
    return ["--plan.memory_budget", f"{full + 0.6 * (none - full):.0f}B"]


@pytest.fixture
def budget(span):
    return within(*span)


@pytest.mark.slow
def test_layers_that_toggle_every_epoch_give_the_losses_of_layers_that_do_not(home, config, budget, span):
    still, run = home / "still", home / "toggled"
    finish(start(["train", config, "--run-dir", still, *EXACT], home=home), seconds=300)
    command = ["train", config, "--run-dir", run, *EXACT, *FEEDBACK, *budget]
    program = RESTLESS.replace("SPAN", f"{span[0] - span[1]:.0f}")
    finish(start(command, home=home, program=["-c", f"KILLED = 3\n{program}"]), -signal.SIGKILL, seconds=300)
    output = finish(start(command, home=home, program=["-c", f"KILLED = 0\n{program}"]), seconds=300)
    assert "resuming" in output
    got, want = losses(run), losses(still)
    assert [step for step, *_ in got] == [step for step, *_ in want]
    np.testing.assert_allclose([r[1] for r in got], [r[1] for r in want], rtol=1e-5)

    logged = records(run / "remat.jsonl")
    refused = [each["segments"] for each in logged if each["event"] == "remat.refuse"]
    epochs = [each for each in logged if each["event"] != "remat.refuse"]
    assert [each["epoch"] for each in epochs] == [1, 2, 3, 4, 5, 6], "each epoch stands once, also after the kill"
    ran = [tuple(structure(part, Segment) for part in each["segments"]) for each in epochs]
    assert len(set(ran)) >= 3
    for before, after in pairwise(epochs):
        wanted = before.get("next", after["segments"])
        assert after["segments"] == (before["segments"] if wanted in refused else wanted)
    for each in epochs:
        assert sum(part["layers"] for part in each["segments"]) == 6
        assert each["measured_seconds"] > 0
        assert 0 < each["peak_bytes"] <= each["budget_bytes"] * 1.001
        assert each["peak_from"] == "compiler", "a CPU does not tell its own"
    assert len({each["peak_bytes"] for each in epochs}) >= 3, "each mix has a peak of its own"
    costs = epochs[-2]["costs"]
    assert costs[0]["policy"] == "none"
    assert costs[0]["seconds"] == 0
    assert any(abs(each["kept_bytes"] / each["predicted_kept_bytes"] - 1) > 1e-6 for each in costs)
    assert Plan.load(run / "plan.json").remat == ran[-1]


@pytest.mark.slow
def test_two_processes_toggle_together_and_train_as_one_does(home, config):
    still, run = home / "still", home / "two"
    finish(start(["train", config, "--run-dir", still, *EXACT], home=home), seconds=300)
    none, full = ends(config, 2)
    job = ["--coordinator", f"localhost:{free_port()}", "--processes", "2", "--plan.mesh.data", "2"]
    command = ["train", config, "--run-dir", run, *EXACT, *FEEDBACK, *within(none, full), *job]
    program = ["-c", f"KILLED = 0\n{RESTLESS.replace('SPAN', f'{none - full:.0f}')}"]
    both = [start([*command, "--process", str(i)], home=home, program=program) for i in range(2)]
    for process in both:
        finish(process, seconds=300)
    np.testing.assert_allclose([r[1] for r in losses(run)], [r[1] for r in losses(still)], rtol=1e-5)
    epochs = [each for each in records(run / "remat.jsonl") if each["event"] != "remat.refuse"]
    assert len({str(each["segments"]) for each in epochs}) >= 3, "learned peaks may give more mixes than budgets"


@pytest.mark.slow
def test_what_is_really_decided_stays_within_the_budget_and_says_why(home, config, budget):
    run = home / "real"
    finish(start(["train", config, "--run-dir", run, *EXACT, *FEEDBACK, *budget], home=home), seconds=600)
    found = records(run / "remat.jsonl")
    decided = [each for each in found if "reason" in each]
    assert len(decided) == 5
    assert all(each["reason"] for each in decided)
    ran = [each for each in found if each["event"] != "remat.refuse"]
    assert all(each["peak_bytes"] <= each["budget_bytes"] for each in ran)
    assert all(np.isfinite([cost["seconds"] for cost in each["costs"]]).all() for each in decided)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--plan.remat_feedback.every", "-1"], "plan.remat_feedback.every=-1 must not be negative"),
        ([*FEEDBACK, "--train.replan.enabled", "true"], "would both change the plan while the run trains"),
    ],
)
def test_what_cannot_be_is_refused(config, changes, said, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["jaxlm", "train", str(config), "--run-dir", str(tmp_path / "run"), *changes])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_segments_in_a_checkpoint_are_equal_to_what_is_read_from_it():
    plain = _plain([Segment(layers=2, save=("q", "k"), offload=("v",)), Segment(layers=1)])
    assert json.loads(json.dumps(plain)) == plain
    assert [structure(each, Segment) for each in plain] == [
        Segment(layers=2, save=("q", "k"), offload=("v",)),
        Segment(layers=1),
    ]

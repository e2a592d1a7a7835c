"""A run that changes its plan on the way trains as one that never does, and goes on after a kill."""

import signal

import numpy as np
import pytest

from experiments.processes import free_port
from tests.cli.programs import finish, losses, records, start, write_config

EXACT = ["--optim.lr", "1e-3", "--model.dropout", "0.0", "--train.steps", "24", "--checkpoint.every_steps", "4"]
REPLAN = ["--replan", "--train.replan.plans", "3", "--train.replan.steps", "2", "--train.replan.warm", "1"]

PROBES = """
import os, signal
from planners.learning.agent import Agent, Decision
from planners.learning.conductor import Conductor
from jaxlm.cli import main

def decide(self, current, left, switch, back, steps):
    self.decisions += 1
    if self.decisions == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    arm = self.decisions % len(self.arms)
    return Decision(arm=arm, kind="probe", reason="as the test says", seconds=1.0, spread=0.1, gain=1.0)

Agent.decide = decide
main()
"""
"""The agent, but it probes one plan after the other and never stays; the process dies at decision KILLED."""
RESTLESS, DYING = f"KILLED = 0\n{PROBES}", f"KILLED = 3\n{PROBES}"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    home = tmp_path_factory.mktemp("replan")
    config = write_config(home)
    finish(start(["train", config, "--run-dir", home / "undisturbed", *EXACT], home=home, devices=1), seconds=600)
    return home, config, losses(home / "undisturbed")


def same(run, want):
    got = losses(run)
    assert [step for step, *_ in got] == [step for step, *_ in want]
    np.testing.assert_allclose([r[1] for r in got], [r[1] for r in want], rtol=1e-5)


def test_a_run_that_changes_its_plan_every_few_steps_and_is_killed_gives_the_losses_of_one_that_does_not(undisturbed):
    home, config, want = undisturbed
    run, command = home / "replanned", ["train", config, "--run-dir", home / "replanned", *EXACT, *REPLAN]
    process = start(command, home=home, devices=8, program=["-c", DYING])
    finish(process, -signal.SIGKILL, seconds=600)
    output = finish(start(command, home=home, devices=8, program=["-c", RESTLESS]), seconds=600)
    assert "resuming" in output
    same(run, want)
    decisions = records(run / "plans.jsonl")
    assert len({entry["plan"] for entry in decisions}) == 3, "three plans were run"
    assert all(entry["event"] == "plan.probe" and entry["measured_seconds_before"] > 0 for entry in decisions)
    steps = [entry["step"] for entry in decisions]
    assert steps == sorted(set(steps)), "each decision stands once, also after the kill"
    assert {f"{entry['plan'][:12]}.json" for entry in decisions} <= {path.name for path in (run / "plans").iterdir()}


@pytest.mark.slow
def test_two_processes_change_their_plan_together_and_train_as_one_does(undisturbed):
    home, config, want = undisturbed
    job = ["--coordinator", f"localhost:{free_port()}", "--processes", "2"]
    command = ["train", config, "--run-dir", home / "two", *EXACT, *REPLAN, *job]
    both = [start([*command, "--process", str(i)], home=home, devices=4, program=["-c", RESTLESS]) for i in range(2)]
    for process in both:
        finish(process, seconds=600)
    same(home / "two", want)
    assert len({entry["plan"] for entry in records(home / "two" / "plans.jsonl")}) == 3


@pytest.mark.slow
def test_the_agent_itself_keeps_the_first_plan_where_no_other_can_win_back_its_price(undisturbed):
    home, config, want = undisturbed
    run = home / "kept"
    finish(start(["train", config, "--run-dir", run, *EXACT, *REPLAN], home=home, devices=8), seconds=600)
    same(run, want)
    (decision,) = records(run / "plans.jsonl")
    assert decision["event"] == "plan.keep"
    assert "win back its price" in decision["reason"]

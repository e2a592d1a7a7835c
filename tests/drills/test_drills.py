"""Drills on real processes: a killed host by default, all faults where there is time."""

import contextlib
import json
import signal

import pytest

from jaxlm.cli import main
from jaxlm.drills import faults
from jaxlm.drills.course import Course, NotSurvived, Setting, same_run
from jaxlm.drills.drill import Outcome, report
from jaxlm.drills.drill import _one as run_one
from jaxlm.drills.faults import FAULTS
from jaxlm.drills.network import Network
from tests.cli.programs import finish, start, write_config


def drill(tmp_path, only: str, *more: str, code: int = 0) -> dict:
    config = write_config(tmp_path)
    command = ["drill", config, "--out", tmp_path / "drills", "--only", only, "--json", "--model.dropout", "0.0", *more]
    output = finish(start(command, home=tmp_path), code, seconds=560)
    return json.loads(output.splitlines()[-1])


def test_a_killed_host_costs_the_steps_since_the_last_checkpoint_and_nothing_else(tmp_path):
    (outcome,) = drill(tmp_path, "kill", "--steps", "20")["drills"]
    assert outcome["survived"] is True
    assert outcome["recovery_seconds"] < 60
    assert 0 <= outcome["steps_lost"] <= 10
    assert "retried from the last checkpoint" in outcome["what"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAULTS if name != "kill"])
def test_every_fault_is_survived(tmp_path, name):
    (outcome,) = drill(tmp_path, name)["drills"]
    if outcome["survived"] is None:
        pytest.skip(outcome["what"])
    assert outcome["survived"], outcome
    assert outcome["recovery_seconds"] < 60


@pytest.mark.slow
def test_a_run_that_cannot_be_retried_does_not_survive_and_that_is_exit_code_1(tmp_path):
    config = write_config(tmp_path)
    # Without checkpoints a killed host costs the whole run, which is then not one that survived.
    command = ["drill", config, "--out", tmp_path / "drills", "--only", "kill", "--json"]
    output = finish(start([*command, "--checkpoint.every_steps", "1000"], home=tmp_path), 1, seconds=560)
    assert "NOT SURVIVED" in output
    assert json.loads(output.splitlines()[-1])["not_survived"] == ["kill"]


@pytest.mark.parametrize("name", ["kill", "kill_first", "stop", "disk", "cut"])
def test_a_fault_before_any_complete_checkpoint_is_not_survived_and_no_crash(tmp_path, monkeypatch, name):
    @contextlib.contextmanager
    def disk(path):
        yield path

    @contextlib.contextmanager
    def networked(setting, name):
        yield Course(setting, name), None

    monkeypatch.setattr(faults, "_small_disk", disk)
    monkeypatch.setattr(faults, "_networked", networked)
    monkeypatch.setattr(Course, "start", lambda course: None)
    monkeypatch.setattr(Course, "reach", lambda course, step: None)
    outcome = run_one(Setting(config=tmp_path / "config.yaml", out=tmp_path), name, [])
    assert outcome.survived is False
    assert outcome.what == "no complete checkpoint before the fault"


def test_a_host_that_never_reported_cannot_be_disturbed_and_that_is_said(tmp_path):
    course = Course(Setting(config=tmp_path / "config.yaml", out=tmp_path), "kill")
    with pytest.raises(NotSurvived, match="host 1 had written no report"):
        course.send(1, signal.SIGKILL)


def records(losses, first: int = 1):
    return [{"step": first + i, "loss": loss, "batches": [f"hash {first + i}"]} for i, loss in enumerate(losses)]


def test_a_run_is_the_same_when_each_step_is_there_once_with_its_tokens_and_loss():
    want = records([2.0, 1.5, 1.0])
    same_run(records([2.0, 1.5 * (1 + 9e-6), 1.0]), want)
    for got, why in (
        (records([2.0, 1.5]), "are not those of steps 1 to 3"),
        ([*records([2.0, 1.5]), *records([1.5, 1.0], 2)], "are not those of steps 1 to 3"),
        (records([2.0, 1.5001, 1.0]), "the loss of step 2 is 1.5001"),
        ([*records([2.0, 1.5]), {"step": 3, "loss": 1.0, "batches": ["other"]}], "step 3 saw other tokens"),
    ):
        with pytest.raises(NotSurvived, match=why):
            same_run(got, want)


def test_what_is_skipped_is_neither_survived_nor_not():
    common = {"fault": "", "recovery_seconds": None, "steps_lost": None, "what": "no root", "seconds": 0.0}
    outcomes = [Outcome(drill=name, survived=how, **common) for name, how in (("a", True), ("b", False), ("c", None))]
    facts = report(outcomes)
    assert (facts["survived"], facts["not_survived"], facts["skipped"]) == (1, ["b"], ["c"])
    assert "skipped" in outcomes[2].line()
    assert "no root" in outcomes[2].line()


def test_hosts_in_networks_are_wrapped_by_their_number():
    net = Network("x-", 2, "10.1.2")
    assert net.wrap.replace("{host}", "1").startswith("ip netns exec x-1 unshare --uts sh -c 'hostname x-1; exec")
    assert net.address(0) == "10.1.2.1"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--only", "kil"], "there is no drill 'kil', did you mean 'kill'?"),
        (["--hosts", "1"], "--hosts must be at least 2 and --steps at least 20"),
        (["--train.stepz", "3"], "unknown key 'stepz'"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["drill", "configs/quickstart.yaml", *arguments])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err

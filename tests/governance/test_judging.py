"""A policy that is followed: what is logged, what a failure is, and what a changed file does. Attack 21 of the
reference, in its parts: a rule that throws, an engine that was killed, hangs, answers nonsense, lies or is not there, a
file that is edited. Each also with the defence off, which is the fail mode `alert`."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxlm.governance import approvals, judging, policy_worker
from jaxlm.governance import engine as engine_of_policies
from jaxlm.governance.approvals import Open
from jaxlm.governance.audit import read_log
from jaxlm.governance.engine import Engine
from jaxlm.governance.errors import GovernanceError
from jaxlm.governance.judging import Judging, action_of
from jaxlm.governance.keys import Keys
from jaxlm.governance.notes import LogKey
from jaxlm.governance.trail import Trail

LOSS = "rules: [{name: loss, when: train.loss > 8.0, action: halt}]\n"
SILENT = "{name: odd, when: eval.loss > 8.0, action: alert}"


class Follows:
    """A policy file, followed by a log in a folder of its own."""

    def __init__(self, folder: Path, text: str):
        self.path, self.said = folder / "policy.yaml", []
        self.path.write_text(text)
        self.keys = Keys(folder / "keys")
        self.trail = Trail(folder / "audit", keys=self.keys)
        self.judging = Judging(self.path, self.trail, self.said.append)

    def step(self, step: int, loss: Any = 1.0) -> list[Open]:
        return self.judging.judge(step, lambda: {"step": step, "train": {"loss": loss}, "eval": {}})

    def log(self) -> list[tuple[str, dict[str, Any]]]:
        known = read_log(self.trail.audit, keys=None, full=True)
        return [(entry.kind, entry.body) for entry in known.entries]


@pytest.fixture(scope="module")
def lent():
    """An engine that tests share, for it takes most of their time to start one."""
    with Engine([], 10.0) as engine:
        engine.ready()
        yield engine


@pytest.fixture
def shared(lent: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are judged by the shared engine: for tests of what is done with its answers, not of what becomes of it."""

    def lend(rules: Any, deadline: float) -> Engine:
        lent.load(rules, deadline)
        return lent

    monkeypatch.setattr(judging, "Engine", lend)
    monkeypatch.setattr(lent, "close", lambda: None)


@pytest.fixture
def follows(tmp_path: Path):
    made: list[Follows] = []

    def make(text: str) -> Follows:
        made.append(Follows(tmp_path, text))
        return made[-1]

    yield make
    for each in made:
        each.judging.close()
        each.trail.close()


Make = Callable[[str], Follows]


@pytest.mark.usefixtures("shared")
def test_a_verdict_is_durable_before_anybody_acts_on_it_and_names_its_policy(follows: Make):
    run = follows(LOSS)
    assert run.judging.begin(0) == []
    assert run.step(1) == []
    (verdict,) = run.step(2, 9.0)
    assert action_of([verdict]) == "halt"
    (load, loaded), (kind, body) = run.log()
    assert (load, kind, body) == ("policy.load", "policy.verdict", verdict.body)
    assert body | {"rule": "loss", "action": "halt", "step": 2, "values": {"train.loss": 9.0}} == body
    assert body["policy"] == loaded["policy"]
    assert body["sandbox"] == loaded["sandbox"] == run.judging.sandbox
    assert approvals.kept(run.trail.audit, body["policy"]).content == LOSS.encode()


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(("fail", "action"), [("", "halt"), ("fail: alert\n", "go")])
def test_21_a_rule_that_throws_halts_unless_the_policy_says_otherwise(follows: Make, fail: str, action: str):
    run = follows(f"{fail}rules: [{SILENT}, {{name: loss, when: train.loss > 8.0, action: alert}}]\n")
    found = run.step(1)
    assert action_of(found) == action
    assert [(v.body["rule"], v.body["failed"], v.body["why"]) for v in found] == [
        ("odd", True, "eval.loss > 8.0: there is no loss")
    ]


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(("fail", "action"), [("", "halt"), ("fail: alert\n", "go")])
def test_21_a_number_that_is_none_is_no_way_past_a_rule(follows: Make, fail: str, action: str):
    run = follows(fail + LOSS)
    assert action_of(run.step(1, float("nan"))) == action
    assert not float("nan") > 8.0, "the comparison alone sees nothing"


@pytest.mark.parametrize(("fail", "action"), [("", "halt"), ("fail: alert\n", "go")])
def test_21_an_engine_that_was_killed_halts_and_is_started_again_only_where_the_run_goes_on(
    follows: Make, fail: str, action: str, monkeypatch: pytest.MonkeyPatch
):
    run = follows(fail + LOSS)
    assert run.step(1) == []
    engine = run.judging._engine
    assert engine is not None
    os.kill(engine.pid, signal.SIGKILL)
    found = run.step(2)
    assert action_of(found) == action
    assert [(v.body["rule"], v.body["failed"]) for v in found] == [("engine", True)]
    assert run.step(3, 9.0) == [], "told once; nobody judges"
    monkeypatch.setattr(judging, "AGAIN_SECONDS", 0.0)
    assert action_of(run.step(4, 9.0)) == "halt"


@pytest.mark.parametrize(("fail", "action"), [("", "halt"), ("fail: alert\n", "go")])
def test_21_an_engine_that_hangs_halts(follows: Make, fail: str, action: str):
    run = follows(f"{fail}deadline_seconds: 2\n{LOSS}")
    assert run.step(1) == []
    engine = run.judging._engine
    assert engine is not None
    engine.deadline = 0.2
    os.kill(engine.pid, signal.SIGSTOP)
    found = run.step(2, 9.0)
    assert action_of(found) == action, "with the defence off a broken rule is passed"
    assert [(v.body["rule"], "no answer in time" in v.body["why"]) for v in found] == [("engine", True)]


NONSENSE = """
import runpy
worker = runpy.run_path({worker!r})
worker["write"]({{"sandbox": []}})
rules = worker["read"]()
worker["write"]({{"id": rules["id"], "loaded": sorted(rules["rules"])}})
while (asked := worker["read"]()) is not None:
    worker["write"]({{"id": asked["id"], "said": {said}}})
"""


@pytest.mark.parametrize("said", ["{}", "'all is well'", "dict.fromkeys(asked['of'], 0)"])
@pytest.mark.parametrize(("fail", "action"), [("", "halt"), ("fail: alert\n", "go")])
def test_21_an_engine_that_answers_nonsense_halts(
    follows: Make, fail: str, action: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "worker.py").write_text(NONSENSE.format(worker=policy_worker.__file__, said=said))
    monkeypatch.setattr(policy_worker, "__file__", str(tmp_path / "worker.py"))
    found = follows(fail + LOSS).step(1, 9.0)
    assert action_of(found) == action, "with the defence off a broken rule is passed"
    assert [(v.body["rule"], "its answer is none" in v.body["why"]) for v in found] == [("engine", True)]


@pytest.mark.parametrize("lies_are_looked_for", [True, False])
def test_21_an_engine_that_finds_nothing_ever_halts(
    follows: Make, lies_are_looked_for: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    worker = NONSENSE.format(worker=policy_worker.__file__, said="dict.fromkeys(asked['of'], False)")
    (tmp_path / "worker.py").write_text(worker)
    monkeypatch.setattr(policy_worker, "__file__", str(tmp_path / "worker.py"))
    monkeypatch.setattr(engine_of_policies.secrets, "randbits", lambda _: int(lies_are_looked_for))
    found = follows(LOSS).step(1, 9.0)
    assert action_of(found) == ("halt" if lies_are_looked_for else "go"), "the rule is broken, and it says no"


@pytest.mark.parametrize(("fail", "action"), [("", "halt"), ("fail: alert\n", "alert")])
def test_21_an_engine_that_is_not_there_halts_before_the_first_step(
    follows: Make, fail: str, action: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(policy_worker, "__file__", str(tmp_path / "gone.py"))
    run = follows(fail + LOSS)
    (verdict,) = run.judging.begin(0)
    assert (verdict.body["rule"], verdict.body["action"], verdict.body["sandbox"]) == ("engine", action, [])


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(("fail", "action"), [("", "halt"), ("fail: alert\n", "alert")])
def test_21_a_fault_of_ours_is_a_failure_too(follows: Make, fail: str, action: str):
    run = follows(fail + LOSS)
    (verdict,) = run.judging.judge(1, lambda: {}["nothing"])
    assert (verdict.body["action"], verdict.body["failed"]) == (action, True)


@pytest.mark.usefixtures("shared")
def test_21_an_edited_policy_is_followed_and_named_and_a_broken_one_is_not_followed(follows: Make):
    run = follows(LOSS)
    run.judging.begin(0)
    first = run.judging.loaded.digest
    run.path.write_text("rules: [{name: loss, when: train.los > 99.0, action: alert}]\n")
    assert action_of(run.step(1, 9.0)) == "halt", (
        "the rules stay as they were; without, the loss would pass the new one"
    )
    run.path.unlink()
    assert run.step(2, 1.0) == []
    run.path.write_text("rules: [{name: loss, when: train.loss > 99.0, action: alert}]\n")
    assert run.step(3, 9.0) == []
    assert action_of(run.step(4, 100.0)) == "go"
    log = run.log()
    told = [(body["before"], body["policy"], "refused" in body) for kind, body in log if kind == "policy.load"]
    second = run.judging.loaded.digest
    assert told == [(None, first, False), (first, None, True), (first, None, True), (first, second, False)]
    assert "did you mean 'loss'?" in log[1][1]["refused"]
    assert [body["policy"] for kind, body in log if kind == "policy.verdict"] == [first, second]
    assert {approvals.kept(run.trail.audit, digest).digest for digest in (first, second)} == {first, second}


@pytest.mark.usefixtures("shared")
def test_a_rule_over_layers_is_judged_when_there_are_new_ones(follows: Make):
    run = follows('rules: [{name: big, when: "layers.exists(n, layers[n].update > 1.0)", action: alert}]\n')
    known: dict[str, Any] = {"step": 1, "train": {"loss": 1.0}}
    layers = lambda update: {"layers": {"w": {"gradient": 0.0, "weight": 1.0, "update": update}}}
    told = [len(run.judging.judge(1, lambda m=more: known | m)) for more in ({}, layers(0.5), {}, layers(2.0), {})]
    assert told == [0, 0, 0, 1, 0]
    assert len(run.judging.judge(1, lambda: known | layers(float("nan")))) == 0, "still broken, and told before"
    assert "big" in run.judging.standing.held


@pytest.mark.usefixtures("shared")
def test_steps_between_are_not_judged(follows: Make):
    run = follows("every: 3\n" + LOSS)
    assert [len(run.step(step, 9.0 if step in (2, 3) else 1.0)) for step in range(1, 7)] == [0, 0, 1, 0, 0, 0]
    run.judging.close()
    run.trail.close()
    kind, body = run.log()[-1]
    assert (kind, body["steps"], body["first"], body["last"]) == ("policy.judged", 2, 3, 6)


def test_nobody_approves_himself(tmp_path: Path):
    own = LogKey("bob", Keys(tmp_path / "keys").log()).verifier
    text = f'approvers: ["{own}"]\nrules: [{{name: r, when: step > 1, action: review}}]\n'
    with pytest.raises(GovernanceError, match="bob has the key of this run's own log"):
        Follows(tmp_path, text)


def test_an_engine_is_closed_with_its_folder(follows: Make):
    run = follows(LOSS)
    run.step(1)
    engine = run.judging._engine
    assert isinstance(engine, Engine)
    assert engine._folder.is_dir()
    run.judging.close()
    assert not engine._folder.exists()

"""A real run under a policy: it pauses, goes on, halts, and is not started past its verdict; requests are denied."""

import shutil
import threading
import time
from pathlib import Path

import pytest

from jaxlm.auditor import verify_run
from jaxlm.governance.audit import read_log
from jaxlm.governance.entries import Entry
from jaxlm.governance.keys import Keys, private_key
from jaxlm.governance.notes import LogKey
from jaxlm.governance.trust import Trust
from tests.cli.programs import losses, write_config
from tests.governance.test_run import jaxlm

RULES = """\
rules:
  - {name: told, when: step == 2, action: alert}
  - {name: look, when: step == 3, action: review}
  - {name: late, when: step == 6, action: halt, message: late enough}
  - {name: digits, when: 'request.prompt.matches("[0-9]{4}")', action: deny, message: four digits}
"""


def train(home: Path, run: Path, *more: object, code: int = 0) -> None:
    arguments = ("--train.steps", "9", "--checkpoint.every_steps", "100", "--governance.policy", home / "policy.yaml")
    jaxlm("train", home / "tiny.yaml", "--run-dir", run, *arguments, *more, code=code)


def approve(home: Path, run: Path, *more: object, code: int = 0) -> None:
    jaxlm("audit", "approve", run, "--key", home / "alice.pem", "--reason", "looked", *more, code=code)


def entries(run: Path, *kinds: str, log: str = "log") -> list[Entry]:
    return [entry for entry in read_log(run / "audit", log, keys=None, full=True).entries if entry.kind in kinds]


def told(run: Path) -> list[tuple[str, str, int]]:
    return [(e.body["rule"], e.body["action"], e.body["step"]) for e in entries(run, "policy.verdict")]


def write_policy(home: Path, rules: str = RULES, more: str = "") -> None:
    alice = LogKey("alice", private_key(home / "alice.pem", make=True)).verifier
    (home / "policy.yaml").write_text(f'approvers: ["{alice}"]\n{more}{rules}')


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was paused after step 3, approved, and halted after step 6."""
    folder = tmp_path_factory.mktemp("policed")
    write_config(folder)
    write_policy(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("JAXLM_KEYS", str(folder / "keys"))
        paused: list[int] = []

        def person() -> None:
            deadline = time.monotonic() + 300
            while time.monotonic() < deadline:
                time.sleep(0.3)
                if (folder / "run/checkpoints/4/manifest.json").exists() and told(folder / "run")[-1][0] == "look":
                    break
            time.sleep(1.0)
            paused.append(losses(folder / "run")[-1][0])
            approve(folder, folder / "run")

        thread = threading.Thread(target=person)
        thread.start()
        train(folder, folder / "run", code=4)
        thread.join()
        assert paused == [4], "it waited"
    return folder


@pytest.fixture
def run(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(home / "run", tmp_path / "run")
    shutil.copytree(home / "keys", tmp_path / "keys")
    monkeypatch.setenv("JAXLM_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return tmp_path / "run"


def test_verdicts_are_logged_before_they_act_and_what_was_saved_is_verified(home: Path, run: Path):
    assert told(run) == [("told", "alert", 2), ("look", "review", 3), ("late", "halt", 6)]
    order = [e.kind for e in entries(run, "policy.load", "policy.verdict", "policy.approval", "ckpt.commit")]
    assert order == [
        *("policy.load", "policy.verdict"),
        *("policy.verdict", "ckpt.commit", "policy.approval"),
        *("policy.verdict", "ckpt.commit"),
    ]
    assert losses(run)[-1][0] == 7, "step 7 was under way when step 6 was judged"
    assert [e.body["step"] for e in entries(run, "ckpt.commit")] == [4, 7]
    report = verify_run(run, Trust(key=LogKey("n", Keys(home / "keys").log()).verifier))
    assert report.faults == []
    assert any("alice signed approve" in line for line in report.lines)
    assert any("late enough" in alert for alert in report.alerts)


def test_a_halted_run_goes_on_once_that_is_approved_and_not_by_starting_it_again(
    home: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train(home, run, code=4)
    assert "rule late, step 6: late enough. It goes on once that is approved" in capsys.readouterr().err
    jaxlm("train", home / "tiny.yaml", "--run-dir", run, "--train.steps", "9", code=4)  # without its policy
    assert "obeyed a policy" in capsys.readouterr().out
    jaxlm("train", home / "tiny.yaml", "--run-dir", run, "--train.steps", "9", "--governance.enabled", "false", code=4)
    assert "Set governance.enabled to true" in capsys.readouterr().err
    assert losses(run)[-1][0] == 7
    approve(home, run)
    shutil.copy(home / "tiny.yaml", tmp_path)
    write_policy(tmp_path, "rules: [{name: odd, when: step > 7 && eval.loss > 9.0, action: alert}]\n")
    train(tmp_path, run, "--train.steps", "20", code=4)
    assert losses(run)[-1][0] == 9, "an exception inside a rule halts"
    assert [e.body.get("failed") for e in entries(run, "policy.verdict")] == [None, None, None, True]
    report = verify_run(run, Trust(key=LogKey("n", Keys(home / "keys").log()).verifier))
    assert report.faults == []
    assert any("obeys no policy from here on" in alert for alert in report.alerts)


def test_only_who_is_listed_may_approve(home: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    private_key(tmp_path / "mallory.pem", make=True)
    jaxlm("audit", "approve", run, "--key", tmp_path / "mallory.pem", "--reason", "me", code=2)
    assert "is none of the approvers" in capsys.readouterr().err


def test_requests_are_judged_by_the_policy_that_the_log_names_and_denials_are_logged(
    home: Path, run: Path, capsys: pytest.CaptureFixture[str]
):
    jaxlm("generate", run, "--prompt", "the pin is 1234", "--tokens", "2", code=4)
    assert "denied by its policy: rule digits: four digits" in capsys.readouterr().err
    (denied,) = entries(run, "policy.verdict", log="readers")
    assert denied.body["action"] == "deny"
    assert "1234" not in str(denied.body), "what was asked is nobody's business"
    copy = next((run / "audit/policies").iterdir())
    copy.write_text(copy.read_text().replace("[0-9]{4}", "[0-9]{9}"))
    jaxlm("generate", run, "--prompt", "the pin", "--tokens", "2", code=4)
    assert "is not the policy that the log names" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("more", "code", "last"), [("", 4, 4), ("fail: alert\n", 0, 6)])
def test_an_exception_inside_a_rule_halts_unless_the_policy_says_otherwise(
    home: Path, run: Path, tmp_path: Path, more: str, code: int, last: int
):
    write_policy(tmp_path, "rules: [{name: odd, when: step > 2 && eval.loss > 9.0, action: alert}]\n", more)
    shutil.copy(home / "tiny.yaml", tmp_path)
    train(tmp_path, tmp_path / "other", "--train.steps", "6", code=code)
    assert losses(tmp_path / "other")[-1][0] == last
    (verdict,) = entries(tmp_path / "other", "policy.verdict")
    assert (verdict.body["failed"], verdict.body["step"]) == (True, 3)


def test_a_review_that_nobody_decides_on_ends_as_the_policy_says(home: Path, run: Path, tmp_path: Path):
    review = "review: {timeout_seconds: 0.6, outcome: halt}\n"
    write_policy(tmp_path, RULES, review)
    shutil.copy(home / "tiny.yaml", tmp_path)
    train(tmp_path, tmp_path / "other", code=4)
    assert told(tmp_path / "other") == [("told", "alert", 2), ("look", "review", 3), ("look", "halt", 4)]
    assert losses(tmp_path / "other")[-1][0] == 4


@pytest.mark.slow
def test_the_last_evaluation_is_judged_when_all_is_done(home: Path, run: Path, tmp_path: Path, capsys):
    write_policy(tmp_path, "rules: [{name: poor, when: has(eval.loss) && eval.loss > 1.0, action: halt}]\n")
    shutil.copy(home / "tiny.yaml", tmp_path)
    train(tmp_path, tmp_path / "other", "--train.steps", "3", code=4)
    assert "does not agree with what came of it (halt by rule poor after step 3" in capsys.readouterr().out
    assert (tmp_path / "other/summary.json").exists()
    assert told(tmp_path / "other") == [("poor", "halt", 3)]
    train(tmp_path, tmp_path / "other", "--train.steps", "3", code=4)
    approve(tmp_path, tmp_path / "other")
    train(tmp_path, tmp_path / "other", "--train.steps", "4")
    capsys.readouterr()
    approve(tmp_path, tmp_path / "other", code=2)
    assert "waits (waiting: none)" in capsys.readouterr().err


def test_a_policy_that_cannot_work_is_refused_before_training(home: Path, run: Path, tmp_path: Path, capsys):
    (tmp_path / "policy.yaml").write_text("rules: [{name: odd, when: train.los > 9.0, action: alert}]\n")
    shutil.copy(home / "tiny.yaml", tmp_path)
    train(tmp_path, tmp_path / "other", code=2)
    said = capsys.readouterr().err
    assert "rule odd, column 1: there is no train.los, did you mean 'loss'?" in said
    assert not (tmp_path / "other").exists()
    train(home, tmp_path / "other", "--governance.enabled", "false", code=2)
    assert "set governance.enabled to true" in capsys.readouterr().err


def test_a_policy_is_tried_on_a_run_and_shown(home: Path, run: Path, capsys: pytest.CaptureFixture[str]):
    jaxlm("audit", "policy", "check", home / "policy.yaml", run)
    said = capsys.readouterr().out
    assert "late    halt    acts after step 6" in said
    assert "digits  deny    not judged: it is over requests" in said
    jaxlm("audit", "policy", "show", run)
    said = capsys.readouterr().out
    assert RULES in said
    assert "waits for a decision: halt by rule late after step 6" in said

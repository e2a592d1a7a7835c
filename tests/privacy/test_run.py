"""A run with a privacy budget: what it leaves behind, where it stops, and what it does not go on from."""

import json
import secrets
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from experiments.processes import free_port
from jaxlm.auditor import verify_run
from jaxlm.cli import main
from jaxlm.config import build
from jaxlm.data.config import DataConfig, TokenizerConfig
from jaxlm.data.corpus import MODEL
from jaxlm.data.prepare import prepare
from jaxlm.data.progress import silent
from jaxlm.governance.audit import read_log
from jaxlm.governance.trust import Trust
from jaxlm.privacy.budget import plus
from jaxlm.privacy.ledger import Ledger
from jaxlm.privacy.mechanisms import Mechanism
from jaxlm.replaying import replay_run
from tests.cli.programs import WORDS, finish, records, signal_at, start, write_texts

pytest.importorskip("jax_privacy", reason="needs the extra: uv sync --extra privacy")

SECRET = bytes(range(100, 132))
CONFIG = """\
name: private
data:
  path: {folder}/letters.jsonl
  cache: {folder}/cache
  sequence: 32
  mode: truncate
  validation_fraction: 0.1
  tokenizer: {{path: {tokenizer}}}
model: {{layers: 1, embed: 32, heads: 4, mlp: 64, dropout: 0.1}}
optim: {{lr: 3e-3, warmup: 2}}
plan: {{mesh: {{data: 8}}}}
train: {{steps: 4, batch: 8, log_every: 1, tensorboard: false}}
checkpoint: {{every_steps: 2}}
governance: {{layers_every: 0}}
privacy: {{enabled: true, epsilon: 4.0, delta: 1e-4, noise_multiplier: 0.74}}
sample: {{prompt: "the ", tokens: 4}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run of four private steps, which leave room for a few more; its secret is known here."""
    folder = tmp_path_factory.mktemp("private")
    made = DataConfig(
        path=str(write_texts(folder / "texts")), cache=str(folder / "cache"), tokenizer=TokenizerConfig(vocab=360)
    )
    tokenizer = prepare(made, silent).folder / MODEL
    letters = [" ".join(WORDS[(7 * n + 3 * k + n * k) % len(WORDS)] for k in range(60)) for n in range(120)]
    (folder / "letters.jsonl").write_text("".join(json.dumps({"text": letter}) + "\n" for letter in letters))
    (folder / "private.yaml").write_text(CONFIG.format(folder=folder, tokenizer=tokenizer))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("JAXLM_KEYS", str(folder / "keys"))
        patch.setattr(secrets, "token_bytes", lambda size=32: SECRET[:size])
        train(folder)
        yield folder


def train(folder: Path, *arguments: object, run: str = "run", code: int = 0) -> None:
    jaxlm("train", folder / "private.yaml", "--run-dir", folder / run, *arguments, code=code)


def jaxlm(*arguments: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == code


@pytest.fixture
def copied(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a copy of the run, to do to it what is not done to the original; with keys that saw no more of it."""
    shutil.copytree(home / "run", home / "copy")
    shutil.copytree(home / "keys", home / "keys-of-copy")
    monkeypatch.setenv("JAXLM_KEYS", str(home / "keys-of-copy"))
    yield "copy"
    shutil.rmtree(home / "copy")
    shutil.rmtree(home / "keys-of-copy")


def test_a_third_party_finds_the_epsilon_of_the_ledger(home, capsys):
    jaxlm("audit", "privacy", home / "run", "--json")
    said = json.loads(capsys.readouterr().out)
    ledger = Ledger(home / "run" / "privacy.ledger")
    spent = ledger.spending()
    assert said["faults"] == []
    assert said["epsilon"]["filter"] == pytest.approx(spent.epsilon, rel=1e-12)
    assert said["ledger_epsilon"] == spent.epsilon
    assert said["epsilon"]["pld"] < said["epsilon"]["rdp"] <= said["epsilon"]["filter"] <= 4.0
    (query,) = said["queries"]
    assert (query["count"], spent.open) == (4, 0)
    jaxlm("audit", "privacy", home / "run")
    assert "epsilon 4 at delta 0.0001 for one document" in capsys.readouterr().out
    verified = verify_run(home / "run", Trust())
    assert verified.faults == []
    assert "privacy: 4 charges (jaxlm audit privacy adds them up)" in verified.lines


def test_every_step_is_charged_before_it_is_taken(home):
    log = read_log(home / "run" / "audit", keys=None, full=True)
    charged = {e.body["step"]: e.index for e in log.entries if e.kind == "dp.charge" and e.body["state"] == "reserved"}
    taken = {e.body["step"]: e.index for e in log.entries if e.kind == "train.step"}
    assert charged.keys() == taken.keys() == {1, 2, 3, 4}
    assert all(charged[step] < taken[step] for step in taken)


def test_the_secret_the_sample_and_the_digest_of_the_text_are_written_nowhere(home):
    forms = [SECRET, SECRET.hex().encode()]
    for path in sorted(home.rglob("*")):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            assert not any(form in content for form in forms), path
    config = (home / "run" / "config.yaml").read_text()
    digest = prepare(build(yaml.safe_load(config), "run").data, silent).digest.encode()
    for path in sorted((home / "run").rglob("*")):
        assert not path.is_file() or digest not in path.read_bytes(), path
    rows = records(home / "run" / "metrics.jsonl")
    assert {hash for row in rows for hash in row["batches"]} == {"0" * 16}
    assert {row["tokens"] for row in rows} == {8 * 32}


def test_a_run_stops_where_its_budget_ends_and_says_so(home, copied, capsys):
    train(home, "--train.steps", "9", run=copied, code=3)
    said = capsys.readouterr().out
    assert "is used up: epsilon" in said
    assert "of 4 (delta 0.0001) is spent" in said
    found = replay_run(home / copied)
    assert found.faults == []
    (query,) = found.log.queries
    steps = query[1]
    assert 4 <= steps < 9
    assert f"state after step {steps} saved" in said
    assert found.log.filter <= 4.0
    assert found.log.budget.epsilon_of(found.log.budget.cost(query[0], steps + 1)) > 4.0


@pytest.mark.slow
def test_steps_taken_again_are_charged_again(home, copied):
    """A run that lost its newest checkpoint takes its steps again from other noise, and pays again."""
    shutil.rmtree(home / copied / "checkpoints" / "4")
    before = replay_run(home / copied).log.filter
    train(home, "--allow-rollback", run=copied)
    found = replay_run(home / copied)
    assert found.faults == []
    log = read_log(home / copied / "audit", keys=None)
    charged = [e.body["step"] for e in log.entries if e.kind == "dp.charge" and e.body["state"] == "reserved"]
    assert charged == [1, 2, 3, 4, 3, 4]
    assert found.log.filter > before


@pytest.mark.parametrize("what", ["gone", "older", "another"])
def test_15_a_run_does_not_go_on_without_its_ledger(home, copied, capsys, what):
    path = home / copied / "privacy.ledger"
    budget = Ledger(path).budget
    path.unlink()
    if what == "older":
        shutil.copy(home / "run" / "privacy.ledger", path)
        with sqlite3.connect(path) as db:
            db.execute("delete from charges")
            spent = json.dumps(["0"] * len(budget.orders))
            db.execute("update about set value = ? where key = 'spent'", (spent,))
        db.close()
        assert Ledger(path).spending().epsilon == 0  # by itself it would let all of it be spent again
    elif what == "another":
        Ledger(path, budget)
    train(home, "--train.steps", "9", run=copied, code=2)
    said = capsys.readouterr().err
    assert {"gone": "is gone", "older": "rolled back or edited", "another": "is not the ledger"}[what] in said
    if what != "gone":
        assert replay_run(home / copied).faults


@pytest.mark.slow
def test_two_runs_share_a_budget(home, capsys):
    """What another query spent is missing to the run, and the replay of its log says that there were others."""
    path = home / "shared.ledger"
    budget = Ledger(home / "run" / "privacy.ledger").budget
    ledger = Ledger(path, budget)
    query = Mechanism("gaussian", 6.0)
    while budget.fits(plus(ledger.spending().spent, budget.cost(query))):
        ledger.settle(ledger.reserve(query))
    assert ledger.spending().epsilon > 3.0
    train(home, "--privacy.ledger", path, "--privacy.noise_multiplier", "null", run="other", code=3)
    assert "is used up" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--data.mode", "pack"), "packed rows hold pieces of several"),
        (("--governance.enabled", "false"), "every charge belongs into the audit log"),
        (("--data.tokenizer.path", "null"), "a vocabulary learned from the protected text"),
        (("--data.limit_bytes", "5000"), "a document would decide which others are read"),
        (("--train.replan.enabled", "true"), "probes would take steps"),
        (("--privacy.delta", "0.5"), "is no promise for"),
        (("--train.batch", "4000"), "is more than the"),
        (("--privacy.epsilon", "-1"), "privacy.epsilon=-1"),
        (("--plan.communication.data.scheme", "topk"), "the noise covers sums of clipped gradients"),
    ],
)
def test_what_cannot_be_private_is_refused_in_one_sentence(home, capsys, arguments, why):
    train(home, *arguments, run="refused", code=2)
    assert why in capsys.readouterr().err
    shutil.rmtree(home / "refused", ignore_errors=True)


def test_protected_documents_are_not_evaluated_or_shown(home, capsys):
    jaxlm("eval", home / "run", "--data", home / "letters.jsonl", code=2)
    assert "is no differentially private mechanism" in capsys.readouterr().err
    jaxlm("data", "show", home / "private.yaml", code=2)
    assert "is a secret that its noise relies on" in capsys.readouterr().err


@pytest.mark.slow
def test_what_was_killed_and_went_on_paid_for_every_step(home):
    """SIGKILL three times in a run of its own processes: every step that the log knows was charged before it, the
    ledger and the log agree, and the steps that were taken twice were paid twice."""
    arguments = ["train", home / "private.yaml", "--run-dir", home / "killed", "--train.steps", "60"]
    arguments += ["--privacy.noise_multiplier", "3.0", "--checkpoint.every_steps", "5"]
    for step in (7, 18, 33):
        process = start(arguments, home=home, devices=8)
        signal_at(process, home / "killed" / "metrics.jsonl", step, signal.SIGKILL)
        process.communicate()
    finish(start(arguments, home=home, devices=8))
    found = replay_run(home / "killed")
    assert found.faults == []
    (query,) = found.log.queries
    assert query[1] > 60
    assert found.ledger == pytest.approx(found.log.filter, rel=1e-12)
    assert found.log.filter <= 4.0


@pytest.mark.slow
def test_two_processes_sample_alike_and_stop_together(home):
    """Two processes of four devices, of which one has the ledger: their weights stay the same bits while each reads its
    own part of a sample that only they know, and the end of the budget stops both after the same step."""
    job = ["--coordinator", f"localhost:{free_port()}", "--processes", "2", "--train.check_replicas", "1"]
    arguments = ["train", home / "private.yaml", "--run-dir", home / "both", "--train.steps", "20", *job]
    running = [start([*arguments, "--process", str(i)], home=home, devices=4) for i in range(2)]
    said, other = [finish(process, 3) for process in running]
    assert "is used up" in said
    assert "is used up" not in other
    found = replay_run(home / "both")
    assert found.faults == []
    assert f"state after step {found.log.queries[0][1]} saved" in said


@pytest.mark.slow
def test_a_policy_reads_what_is_spent(home, tmp_path):
    pytest.importorskip("celpy", reason="needs the extra: uv sync --extra policy")
    policy = tmp_path / "policy.yaml"
    policy.write_text("rules: [{name: spent, when: dp.spent > 0.4 * dp.budget, action: halt}]\n")
    train(home, "--governance.policy", policy, run="policed", code=4)
    log = read_log(home / "policed" / "audit", keys=None)
    (verdict,) = (entry.body for entry in log.entries if entry.kind == "policy.verdict")
    charges = [e.body["epsilon"] for e in log.entries if e.kind == "dp.charge" and e.body["state"] == "reserved"]
    assert verdict["values"]["dp.budget"] == 4.0
    assert verdict["values"]["dp.spent"] in charges
    assert verdict["values"]["dp.spent"] > 1.6

"""A real run leaves a trail that a stranger verifies; what happens to it afterwards is found."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxlm.auditor import verify_run
from jaxlm.cli import main
from jaxlm.governance import notes
from jaxlm.governance.audit import read_log
from jaxlm.governance.keys import Keys
from jaxlm.governance.notary import Commits
from jaxlm.governance.notes import WitnessKey
from jaxlm.governance.trail import Trail
from jaxlm.governance.trust import Trust, load_policy
from jaxlm.governance.witness import Witness, serve
from tests.cli.programs import write_config


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished run, witnessed by three witnesses of which one is down."""
    folder = tmp_path_factory.mktemp("governed")
    config = write_config(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("JAXLM_KEYS", str(folder / "keys"))
        node = Keys().log().public_key().public_bytes_raw()
        running, lines = [], []
        for name in ("w0", "w1"):
            key = WitnessKey(f"{name}.example", Keys(folder / name).witness())
            server = serve(Witness(key, [], folder / name / "seen", nodes=[node]), "127.0.0.1", 0)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            running.append((server, thread))
            lines.append(f"witness {name} {key.verifier} http://127.0.0.1:{server.server_address[1]}")
        down = WitnessKey("w2.example", Keys(folder / "w2").witness())
        lines += [f"witness w2 {down.verifier} http://127.0.0.1:9", "group most 2 w0 w1 w2", "quorum most", ""]
        (folder / "policy").write_text("\n".join(lines))
        try:
            arguments = ("--train.steps", "6", "--checkpoint.every_steps", "2", "--governance.layers_every", "3")
            train(config, folder / "run", *arguments, "--governance.witnesses", folder / "policy")
        finally:
            for server, thread in running:
                server.shutdown()
                thread.join()
                server.server_close()
        (folder / "node.vkey").write_text(_printed(folder))
        yield folder


def _printed(folder: Path) -> str:
    return str(notes.LogKey("node", Keys(folder / "keys").log()).verifier)


def train(config: Path, directory: Path, *arguments: object, code: int = 0) -> None:
    jaxlm("train", config, "--run-dir", directory, *arguments, code=code)


def jaxlm(*arguments: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == code


@pytest.fixture
def run(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run to do harm to, and of the keys with what they have seen."""
    shutil.copytree(home / "run", tmp_path / "run")
    shutil.copytree(home / "keys", tmp_path / "keys")
    monkeypatch.setenv("JAXLM_KEYS", str(tmp_path / "keys"))
    return tmp_path / "run"


def test_everything_that_defines_the_run_is_in_its_log(home: Path):
    log = read_log(home / "run/audit", keys=Keys(home / "keys"), full=True)
    kinds = [entry.kind for entry in log.entries]
    assert kinds[:3] == ["access", "run.start", "plan.adopt"]
    assert (kinds.count("train.step"), kinds.count("train.layer"), kinds.count("ckpt.commit")) == (6, 2, 3)
    assert [kind for kind in kinds if kind != "policy.verdict"][-1] == "eval"
    start = log.entries[1].body
    assert (start["stage"], start["node"]["assurance"]) == ("pretrain", "self-reported")
    layers = next(entry.body for entry in log.entries if entry.kind == "train.layer")
    assert all(len(layers[key]) == len(start["tensors"]) for key in ("gradient", "weight", "update"))
    assert all(0 < value < 1e3 for value in layers["weight"])
    metrics = [json.loads(line) for line in (home / "run/metrics.jsonl").read_text().splitlines()]
    steps = [entry.body for entry in log.entries if entry.kind == "train.step"]
    assert [(s["step"], s["loss"]) for s in steps] == [(m["step"], m["loss"]) for m in metrics]
    norm = sum(value**2 for value in layers["gradient"]) ** 0.5
    assert norm == pytest.approx(metrics[2]["grad_norm"], rel=1e-4)


def test_a_stranger_verifies_it_with_a_key_with_a_policy_and_without(home: Path, capsys: pytest.CaptureFixture[str]):
    jaxlm("audit", "verify", home / "run")
    assert capsys.readouterr().out.endswith("self-consistent, signer unknown: give --key or --policy\n")
    jaxlm("audit", "verify", home / "run", "--key", home / "node.vkey")
    assert capsys.readouterr().out.endswith("everything holds\n")
    jaxlm("audit", "verify", home / "run", "--key", home / "node.vkey", "--policy", home / "policy")
    said = capsys.readouterr().out
    assert "cosigned by w0, w1" in said
    assert said.endswith("everything holds\n")
    other = str(notes.LogKey("node", Keys(home / "others").log()).verifier)
    jaxlm("audit", "verify", home / "run", "--key", other, code=1)
    assert "signed by another key" in capsys.readouterr().out


def test_a_witness_that_is_down_is_in_the_log(home: Path):
    log = read_log(home / "run/audit", keys=None)
    verdicts = [entry.body for entry in log.entries if entry.kind == "policy.verdict"]
    said = [entry["why"] for entry in verdicts]
    assert said
    assert all(why.startswith("w2: ") for why in said)


def test_a_proof_goes_to_whoever_has_the_checkpoint_alone(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    jaxlm("audit", "proof", home / "run", "--step", "4", "--out", tmp_path / "p")
    shutil.copytree(home / "run/checkpoints/4", tmp_path / "model")
    shutil.copy(home / "run/audit/signer.pem", tmp_path)
    arguments = ("--policy", home / "policy", "--key", home / "node.vkey", "--signer", tmp_path / "signer.pem")
    jaxlm("audit", "verify", tmp_path / "p", *arguments, "--checkpoint", tmp_path / "model")
    said = capsys.readouterr().out
    assert "cosigned by w0, w1" in said
    assert "is that checkpoint" in said
    jaxlm("audit", "verify", tmp_path / "p", *arguments, "--checkpoint", home / "run/checkpoints/6", code=1)
    content = (tmp_path / "p").read_bytes()
    for place in range(0, len(content), 97):
        (tmp_path / "p").write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        jaxlm("audit", "verify", tmp_path / "p", *arguments, code=1)


def test_entries_are_shown_with_filters(home: Path, capsys: pytest.CaptureFixture[str]):
    jaxlm("audit", "show", home / "run", "--type", "ckpt.commit", "--last", "2", "--json")
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["body"]["step"] for entry in found] == [4, 6]
    jaxlm("audit", "show", home / "run", "--type", "nonsense", code=2)
    assert "--type nonsense is unknown" in capsys.readouterr().err
    jaxlm("audit", "proof", home / "run", "--step", "5", code=2)
    assert "no checkpoint of step 5 (steps: [2, 4, 6])" in capsys.readouterr().err


def test_a_private_key_in_the_run_is_found(run: Path, home: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copy(home / "keys/log.pem", run / "audit/backup.txt")
    jaxlm("audit", "verify", run, code=1)
    assert "audit/backup.txt is a private key inside the run directory" in capsys.readouterr().out


def test_a_run_goes_back_only_when_somebody_says_so_and_the_log_keeps_it(
    run: Path, home: Path, capsys: pytest.CaptureFixture[str]
):
    config = home / "tiny.yaml"
    arguments = ("--train.steps", "6", "--checkpoint.every_steps", "2")
    shutil.rmtree(run / "checkpoints/6")
    train(config, run, *arguments, code=2)
    assert "knows a checkpoint of step 6, and the newest good one is 4" in capsys.readouterr().err
    jaxlm("audit", "verify", run, code=1)
    assert "checkpoint 6, the newest that the log knows, is gone" in capsys.readouterr().out
    train(config, run, *arguments, "--allow-rollback")
    restores = read_log(run / "audit", keys=None).entries
    entry = next(e for e in restores if e.kind == "ckpt.restore")
    assert (entry.body["step"], entry.body["rollback_from"]) == (4, 6)
    jaxlm("audit", "verify", run)
    assert "rollback_from" in capsys.readouterr().out


def test_a_run_without_its_trail_is_not_gone_on_with(run: Path, home: Path, capsys: pytest.CaptureFixture[str]):
    shutil.rmtree(run / "audit")
    arguments = ("--train.steps", "8", "--checkpoint.every_steps", "2")
    train(home / "tiny.yaml", run, *arguments, code=2)
    said = capsys.readouterr()
    assert "signed for another run" in said.out
    assert "is damaged or cannot be verified" in said.err
    jaxlm("generate", run, "--tokens", "2", "--json", code=2)
    assert "checkpoints/6: signed for another run" in capsys.readouterr().err
    shutil.rmtree(run / "audit")
    jaxlm("generate", run, "--tokens", "2", "--json", code=2)
    assert "cannot be verified" in capsys.readouterr().err
    train(home / "tiny.yaml", run, *arguments, "--allow-unverified")
    assert "WARNING: restoring what cannot be verified" in capsys.readouterr().out
    entry = next(e for e in read_log(run / "audit", keys=None).entries if e.kind == "ckpt.restore")
    assert "signed for another run" in entry.body["unverified"][0]


def test_who_reads_a_run_is_logged_and_what_a_model_said_can_be_erased(run: Path, capsys: pytest.CaptureFixture[str]):
    jaxlm("generate", run, "--tokens", "2", "--json", "--prompt", "Shelley")
    entries = read_log(run / "audit", "readers", keys=None).entries
    assert [(e.kind, e.body["command"], e.body["step"]) for e in entries] == [
        ("access", "generate", 6),
        ("infer.io", "generate", 6),
    ]
    request = entries[1].body["request"]
    capsys.readouterr()
    jaxlm("audit", "reveal", run, "--request", request)
    assert json.loads(capsys.readouterr().out)["prompt"] == "Shelley"
    jaxlm("audit", "erase", run, "--request", request, "--basis", "asked for")
    jaxlm("audit", "reveal", run, "--request", request, code=2)
    assert "is erased" in capsys.readouterr().err
    jaxlm("audit", "verify", run)


def test_without_governance_a_run_trains_and_leaves_no_trail(home: Path, tmp_path: Path):
    train(home / "tiny.yaml", tmp_path / "plain", "--train.steps", "2", "--governance.enabled", "false")
    assert not (tmp_path / "plain/audit").exists()
    assert not (tmp_path / "plain/checkpoints/2/model.sig").exists()
    jaxlm("generate", tmp_path / "plain", "--tokens", "2", "--json")


def test_a_witness_with_the_keys_of_the_log_is_refused(home: Path, capsys: pytest.CaptureFixture[str]):
    jaxlm("audit", "witness", "--port", "0", "--node", home / "node.vkey", code=2)
    assert "this witness would be the log itself" in capsys.readouterr().err
    jaxlm("audit", "witness", "--port", "0", code=2)


def test_governance_that_was_switched_off_is_said_once_and_loudly(
    run: Path, home: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ("--train.steps", "6", "--checkpoint.every_steps", "2", "--governance.enabled", "false")
    train(home / "tiny.yaml", run, *arguments)
    said = f"WARNING: governance.enabled is false, and {run}/audit is there: nothing of this run is verified\n"
    assert capsys.readouterr().out.count(said) == 1
    shutil.rmtree(run / "audit")
    jaxlm("generate", run, "--tokens", "2", "--json")
    assert capsys.readouterr().err.count("model.sig is there: nothing of this run is verified\n") == 1


def test_a_reader_says_what_it_skips_and_takes_nothing_for_one_that_is_gone(
    run: Path, capsys: pytest.CaptureFixture[str]
):
    path = max((p for p in (run / "checkpoints/6/state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    path.write_bytes(b"")
    jaxlm("generate", run, "--tokens", "2", "--json")
    said = capsys.readouterr().err
    assert "skipped: checkpoints/6: " in said
    assert "WARNING: going back from step 6, which the log knows: the newest good one is 4" in said
    shutil.rmtree(run / "checkpoints/6")
    jaxlm("generate", run, "--tokens", "2", "--json", code=2)
    assert "knows a checkpoint of step 6, and the newest good one is 4" in capsys.readouterr().err
    jaxlm("generate", run, "--tokens", "2", "--json", "--step", "4")


def _faults(run: Path, policy: Path | None = None, *, pins: bool = True) -> list[str]:
    return verify_run(run, Trust(policy=None if policy is None else load_policy(policy)), pins=pins).faults


def _announced(run: Path, processes: int) -> None:
    """The newest start says that so many processes write logs."""
    with Trail(run / "audit") as trail:
        trail.commit("run.start", {**trail.find("run.start")[-1].body, "processes": processes})


def test_every_log_that_the_run_announces_must_be_there(run: Path):
    _announced(run, 3)
    with Trail(run / "audit", "log-1"):
        pass
    assert _faults(run) == ["log-2: gone, though the run says that 3 processes wrote logs"]
    with Trail(run / "audit", "log-2"):
        pass
    assert _faults(run) == []


def test_every_log_that_was_seen_here_must_be_there(run: Path):
    with Trail(run / "audit", "readers") as trail:
        trail.commit("access", {"command": "generate", "account": "a"})
    assert _faults(run) == []
    shutil.rmtree(run / "audit/readers")
    (run / "audit/readers.vkey").unlink()
    assert _faults(run) == ["readers: gone, and was seen here before"]
    assert _faults(run, pins=False) == []


def test_the_configuration_is_that_of_the_log(run: Path):
    config = run / "config.yaml"
    assert "layers_every: 3" in config.read_text()
    config.write_text(config.read_text().replace("layers_every: 3", "layers_every: 0"))
    assert _faults(run) == ["config.yaml is not the configuration that the log says the run was started with"]


def test_a_run_from_another_names_its_weights_and_who_reads_that_is_logged(run: Path, home: Path, tmp_path: Path):
    train(home / "tiny.yaml", tmp_path / "tuned", "--from", f"{run}@4", "--train.steps", "1")
    log = read_log(tmp_path / "tuned/audit", keys=Keys(), full=True)
    start = next(entry.body for entry in log.entries if entry.kind == "run.start")
    parent = read_log(run / "audit", keys=Keys())
    commit = next(e.body for e in parent.entries if e.kind == "ckpt.commit" and e.body["step"] == 4)
    assert (start["stage"], start["parent"]["run"], start["parent"]["step"]) == ("finetune", parent.run, 4)
    assert start["parent"]["tensor_root"] == commit["tensor_root"]
    jaxlm("plot", run, "--out", tmp_path / "plot.png")
    opened = [entry.body for entry in read_log(run / "audit", "readers", keys=Keys()).entries]
    assert [(body["command"], body.get("step")) for body in opened] == [("train --from", 4), ("plot", None)]


def test_a_checkpoint_under_the_name_of_another_step_is_found(run: Path):
    shutil.rmtree(run / "checkpoints/6")
    shutil.copytree(run / "checkpoints/4", run / "checkpoints/6")
    assert _faults(run) == ["checkpoint 6: it is that of step 4"]


def test_a_checkpoint_that_the_log_does_not_know_yet_is_an_alert(run: Path):
    """As after a crash between the last rename and the entry in the log."""
    with Trail(run / "audit") as trail:
        commits = Commits.of(trail.history)
    known_then = Commits({step: commits.payloads[step] for step in (4,)}, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Commits, "of", lambda _: known_then)
        report = verify_run(run, Trust())
    assert "checkpoint 6 is signed, and the log does not know it yet" in report.alerts
    assert "checkpoints 4: every byte as signed and logged" in report.lines
    assert report.faults == []


def test_of_a_log_beside_that_of_process_0_only_the_quorum_may_be_missing(run: Path, home: Path, tmp_path: Path):
    with Trail(run / "audit", "readers") as trail:
        trail.commit("access", {"command": "generate", "account": "a"})
    key = str(trail.verifier)
    policy = tmp_path / "policy"
    policy.write_text(f"log {_printed(tmp_path)}\n{(home / 'policy').read_text()}")
    report = verify_run(run, Trust(policy=load_policy(policy)))
    assert report.faults == []
    assert any(alert.startswith("readers: no quorum") for alert in report.alerts)

    head = run / "audit/readers/checkpoint"
    line = (run / "audit/log.cosigned").read_bytes().splitlines(keepends=True)[-1]
    head.write_bytes(head.read_bytes() + line)  # a witness's signature, of another head
    (fault,) = _faults(run, policy)
    assert fault.startswith("readers: ")
    assert "does not hold" in fault

    shutil.rmtree(run / "audit/readers")
    stranger = Keys(tmp_path / "stranger")
    (run / "audit/readers.vkey").unlink()
    with Trail(run / "audit", "readers", keys=stranger) as trail:
        trail.commit("access", {"command": "generate", "account": "a"})
    assert str(trail.verifier) != key
    (fault,) = _faults(run, policy, pins=False)
    assert fault.startswith("readers: the policy does not list the log's key")

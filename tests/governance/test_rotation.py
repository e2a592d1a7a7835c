"""Keys that hand over to new ones: what is accepted, what is not, and what a stolen old key can still do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jaxlm.auditor import verify_run
from jaxlm.checkpoints import manifest
from jaxlm.checkpoints.errors import CheckpointError
from jaxlm.config import Run
from jaxlm.folder import Folder
from jaxlm.governance import model_signature, notes, quorum, rotation
from jaxlm.governance.audit import read_log
from jaxlm.governance.entries import FIRST, Chain
from jaxlm.governance.errors import GovernanceError, Rejected
from jaxlm.governance.keys import Keys
from jaxlm.governance.log import Log, reader
from jaxlm.governance.notary import Commits, Judge, Signers, signers
from jaxlm.governance.notes import LogKey, WitnessKey
from jaxlm.governance.trail import Trail
from jaxlm.governance.trust import Trust
from tests.governance.test_checkpoints import _restore, _state, _store
from tests.governance.test_going_back import START, run  # noqa: F401  (run is a fixture)
from tests.governance.test_run import jaxlm


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keys:
    monkeypatch.setenv("JAXLM_KEYS", str(tmp_path / "keys"))
    return Keys()


@pytest.fixture
def audit(tmp_path: Path, keys: Keys) -> Path:
    """The audit folder of a run with three entries."""
    with Trail(tmp_path / "run/audit", keys=_with_folder(tmp_path, keys)) as trail:
        for step in range(3):
            trail.record("eval", {"step": step})
    return tmp_path / "run/audit"


def _with_folder(tmp_path: Path, keys: Keys) -> Keys:
    (tmp_path / "run").mkdir()
    return keys


def _vkey(audit: Path) -> notes.Verifier:
    return notes.parse_verifier((audit / "log.vkey").read_text())


def test_a_log_goes_on_under_its_new_key_and_both_lead_to_it(audit: Path, keys: Keys):
    old = _vkey(audit)
    keys.rotate()
    with Trail(audit, keys=keys) as trail:
        assert [entry.kind for entry in trail.history].count("key.rotate") == 1
        trail.commit("eval", {"step": 3})
    new = _vkey(audit)
    assert new != old
    keys.rotate()
    Trail(audit, keys=keys).close()
    log = read_log(audit, keys=keys, full=True)
    assert log.head.size == 6
    assert [index for index, _ in log.keys.log] == [3, 5]
    assert log.keys.former == [old, new]
    assert log.keys.signers(3) == [old]
    assert log.keys.signers(4) == [new, old], "its last word"
    assert log.keys.signers(5) == [new]
    assert log.keys.signers(6) == [log.key, new]
    assert log.keys.signers(7) == [log.key]
    for key in (old, new, log.key):
        Trust(key=key).judge(log.key, [log.note], former=log.keys.former)
    stranger = LogKey("x", Ed25519PrivateKey.generate()).verifier
    with pytest.raises(Rejected, match="another key than --key"):
        Trust(key=stranger).judge(log.key, [log.note], former=log.keys.former)
    with pytest.raises(Rejected, match="another key than --key"):
        Trust(key=old).judge(log.key, [log.note])  # without following the chain


def test_opened_again_it_hands_over_once(audit: Path, keys: Keys):
    keys.rotate()
    for _ in range(3):
        Trail(audit, keys=keys).close()
    assert [e.kind for e in read_log(audit, keys=keys).entries] == ["eval"] * 3 + ["key.rotate"]


@pytest.mark.parametrize("at", ["append", "hand_over", "write_public"])
def test_a_handover_that_was_cut_off_is_completed(
    at: str, audit: Path, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    keys.rotate()
    with monkeypatch.context() as patch:
        patch.setattr(*((rotation, at) if at == "write_public" else (Log, at)), killed)
        with pytest.raises(KeyboardInterrupt):
            Trail(audit, keys=keys)
    read_log(audit, keys=keys, full=True)  # holds in between as well
    with Trail(audit, keys=keys) as trail:
        trail.commit("eval", {"step": 3})
    log = read_log(audit, keys=keys, full=True)
    assert [entry.kind for entry in log.entries] == ["eval"] * 3 + ["key.rotate", "eval"]
    assert log.key.key == keys.log().public_key().public_bytes_raw()


def test_without_the_old_private_key_nothing_is_handed_over(audit: Path, keys: Keys):
    keys.rotate()
    assert keys.destroy_retired() == 2
    with pytest.raises(GovernanceError, match="begun with another key"):
        Trail(audit, keys=keys)


def _appended(audit: Path, private: Ed25519PrivateKey, body: Callable[[Any], dict[str, Any]]) -> None:
    """What somebody with a key of the log, stolen or not, can write: an entry of any content, in good order."""
    origin = _vkey(audit).name
    with Log(audit / "log", LogKey(origin, private)) as log:
        found = reader(audit / "log", log.head.size)
        raws = [found.entry(index) for index in range(log.head.size)]
        chain = Chain(json.loads(raws[-1])["host"], "attacker", rotation.entries.digest(raws[-1]) if raws else FIRST)
        log.append([chain.entry("key.rotate", body(log.head))])


def _signed_by(first: Ed25519PrivateKey, second: Ed25519PrivateKey, old: notes.Verifier, new: notes.Verifier) -> Any:
    def body(head: Any) -> dict[str, Any]:
        said = rotation.Statement(rotation.LOG, head, str(old), str(new))
        return said.body(first.sign(said.text.encode()), second.sign(said.text.encode()))

    return body


def test_10_a_new_key_that_the_old_one_did_not_sign(audit: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch):
    """The log's operator lets another key take over without the consent of the old one: here the appending key is the
    attacker's own, in a log whose public key was replaced as well."""
    old, thief = keys.log(), Ed25519PrivateKey.generate()
    new = LogKey(_vkey(audit).name, thief)
    _appended(audit, old, _signed_by(thief, thief, _vkey(audit), new.verifier))
    with pytest.raises(Rejected, match="the old key has not signed it"):
        read_log(audit, keys=None)
    with Log(audit / "log", LogKey(new.name, old)) as log:
        log.hand_over(new)
    (audit / "log.vkey").write_text(f"{new.verifier}\n")
    with pytest.raises(Rejected, match="the old key has not signed it"):
        read_log(audit, keys=None)
    monkeypatch.setattr(rotation, "_verify", lambda *_: None)  # the defence off: whoever trusts the old key follows
    log = read_log(audit, keys=None)
    trusted = LogKey(new.name, old).verifier
    assert "with the key given" in Trust(key=trusted).judge(log.key, [log.note], former=log.keys.former)[0]


def test_10_a_handover_moved_to_another_place(audit: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch):
    old, new = keys.log(), LogKey(_vkey(audit).name, Ed25519PrivateKey.generate())
    earlier = read_log(audit, keys=None).head
    with Trail(audit, keys=keys) as trail:
        trail.commit("eval", {"step": 3})
    body = rotation.of_log(earlier, LogKey(new.name, old), new)
    _appended(audit, old, lambda _: body)
    with pytest.raises(Rejected, match="another place or another log"):
        read_log(audit, keys=None)
    with Log(audit / "log", LogKey(new.name, old)) as log:
        log.hand_over(new)
    (audit / "log.vkey").write_text(f"{new.verifier}\n")
    said = rotation.Statement("log", earlier, body["old"], body["new"])
    monkeypatch.setattr(rotation, "checked", lambda *_: said)
    assert read_log(audit, keys=None).key == new.verifier, "the signatures alone are content"


def test_10_a_stolen_old_key_that_signs_on_after_it_handed_over(
    audit: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
):
    old, first = keys.log(), _vkey(audit)
    keys.rotate()
    Trail(audit, keys=keys).close()
    (audit / "log.vkey").write_text(f"{first}\n")
    other = LogKey(first.name, Ed25519PrivateKey.generate())
    _appended(audit, old, _signed_by(old, other.private, first, other.verifier))  # to a key of the thief's
    with pytest.raises(Rejected, match="another key than the one before it"):
        read_log(audit, keys=keys)
    real = rotation.follow
    monkeypatch.setattr(rotation, "follow", lambda present, *_: rotation.Chain(present))
    assert read_log(audit, keys=keys).key == first, "its signature and the entries alone are content"
    monkeypatch.setattr(rotation, "follow", real)


def test_10_a_stolen_old_key_that_shows_the_log_without_the_handover(
    audit: Path, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nobody who knows the old key alone can see that it was replaced: what was seen of the log before, a witness, and
    the new key can."""
    old, before, witness = keys.log(), tmp_path / "before", WitnessKey("w.example", Ed25519PrivateKey.generate())
    shutil.copytree(audit, before)
    trusted = _vkey(audit)
    keys.rotate()
    with Trail(audit, keys=keys) as trail:
        trail.commit("eval", {"step": 3})
    honest = read_log(audit, keys=keys)
    cosigned = honest.note.add([witness.cosign(honest.note.text, 1_700_000_000)])
    with Log(before / "log", LogKey(trusted.name, old)) as log:
        raws = [log.tiles().entry(index) for index in range(3)]
        chain = Chain(json.loads(raws[-1])["host"], "thief", rotation.entries.digest(raws[-1]))
        log.append([chain.entry("eval", {"step": 3, "loss": 0.0}), chain.entry("eval", {"step": 4})])

    policy = quorum.parse(f"log {trusted}\nwitness w {witness.verifier}\nquorum w\n".encode())
    with pytest.raises(Rejected, match="rewritten"):
        read_log(before, keys=keys)
    forged = read_log(before, keys=None)
    with pytest.raises(Rejected, match="no quorum"):
        Trust(policy=policy).judge(forged.key, [forged.note], former=forged.keys.former)
    with pytest.raises(Rejected, match="another key than --key"):
        Trust(key=honest.key).judge(forged.key, [forged.note], former=forged.keys.former)
    said, _ = Trust(key=trusted).judge(forged.key, [forged.note], former=forged.keys.former)
    assert "with the key given" in said, "with the old key alone the attack succeeds"
    Trust(policy=policy).judge(honest.key, [cosigned], former=honest.keys.former)


def test_checkpoints_of_both_keys_are_good_and_a_new_one_of_the_old_key_is_not(run: Path, keys: Keys):  # noqa: F811
    old = keys.checkpoint()
    keys.rotate()
    with Trail(run / "audit", keys=keys) as trail, _store(run, trail) as store:
        store.save(30, _state(3), {}, blocking=True)
    for step in (20, 30):
        _restore(run, keys, step)
    log = read_log(run / "audit", keys=keys, full=True)
    public = signers(run / "audit", log.entries)
    assert [index for index, _ in public.former] == [3]

    folder = run / "checkpoints/30"  # signed again, with the stolen old key
    said = model_signature.read(folder, keys.checkpoint().public_key())
    model_signature.sign(folder, "30", said.files, said.governance, old)
    with pytest.raises(CheckpointError, match="signed by another key"):
        _restore(run, keys, 30)
    body = manifest.read(folder)
    forgotten = Commits.of(entry for entry in log.entries if entry.body.get("step") != 30)
    for commits in (Commits.of(log.entries), forgotten):  # also where the log does not know it yet
        judge = Judge(log.run, public, commits)
        with pytest.raises(Rejected, match="signed by another key"):
            judge.check(folder, body)
        judge.keys = Signers(old.public_key())  # the defence off: a key stays good for ever
        judge.check(folder, body)


def test_a_start_that_names_another_signer_without_a_handover_is_refused(run: Path, keys: Keys):  # noqa: F811
    with Trail(run / "audit", keys=keys) as trail:
        trail.commit("run.start", {**START, "signer": "00" * 32})
    with pytest.raises(Rejected, match="names another key of the checkpoints"):
        signers(run / "audit", read_log(run / "audit", keys=keys).entries)


def test_the_command_hands_over_every_log_of_a_run_and_says_what_to_trust(
    run: Path,  # noqa: F811
    keys: Keys,
    capsys: pytest.CaptureFixture[str],
):
    Folder(run).write_config(Run())
    old = keys.log()
    with Trail(run / "audit", "readers", keys=keys) as trail:
        trail.commit("access", {"command": "generate", "account": "a"})
    with Trail(run / "audit", keys=keys):
        jaxlm("audit", "rotate", run, code=2)  # it is being written
    assert keys.has_log(old.public_key().public_bytes_raw()), "and so nothing was replaced"
    jaxlm("audit", "rotate", run, "--destroy")
    assert capsys.readouterr().out.splitlines() == [
        "handed over run/log: entries 3, 4",
        "handed over run/readers: entries 1",
        "destroyed 2 private keys",
    ]
    report = verify_run(run, Trust(key=LogKey("node", old).verifier))
    assert not [fault for fault in report.faults if "config.yaml" not in fault]
    assert any("log: the key given handed over at entry 4; from now on trust" in alert for alert in report.alerts)
    assert any("checkpoints 10, 20: every byte" in line for line in report.lines)

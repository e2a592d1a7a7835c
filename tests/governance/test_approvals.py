"""Who may decide on a verdict: forged, replayed and edited approvals count for nothing, and a stranger sees from the
log who decided and that the run waited. Each attack also against a reader who checks less, with whom it succeeds."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jaxlm.governance import approvals, notes, policy_audit
from jaxlm.governance.approvals import Approval, Open
from jaxlm.governance.entries import Entry
from jaxlm.governance.errors import GovernanceError, Rejected
from jaxlm.governance.keys import private_key
from jaxlm.governance.notes import LogKey, Note, WitnessKey
from jaxlm.governance.policy import loads

ALICE, MALLORY = (
    LogKey(name, Ed25519PrivateKey.from_private_bytes(bytes([n] * 32))) for n, name in ((1, "alice"), (2, "m"))
)
POLICY = loads(
    f'approvers: ["{ALICE.verifier}"]\nrules: [{{name: look, when: step == 3, action: review}}]\n'.encode(), "p.yaml"
)
BODY: dict[str, Any] = {
    "rule": "look",
    "policy": POLICY.digest,
    "action": "review",
    "why": "w",
    "step": 3,
    "approval": True,
    "values": {"x": 6.0},
}
VERDICT = Open(5, BODY)
SAID = Approval("run1", 5, VERDICT.digest, "approve", "fine", 1_800_000_000)


def _read(note: Note, run: str = "run1", verdict: Open = VERDICT) -> str:
    return approvals.read(bytes(note), run, verdict, POLICY.approvers)[1].name


def test_an_approval_of_a_listed_key_counts():
    assert _read(SAID.sign(ALICE)) == "alice"
    assert approvals.read(bytes(SAID.sign(ALICE)), "run1", VERDICT, POLICY.approvers)[0] == SAID
    assert VERDICT.digest == approvals.digest({**BODY, "values": {"x": 6}}), "as it is read back from the log"


def test_an_approval_by_somebody_else_counts_for_nothing():
    impostor = LogKey("alice", MALLORY.private)
    for key in (MALLORY, impostor):
        with pytest.raises(Rejected, match="not signed by an approver"):
            _read(SAID.sign(key))
        assert key.verifier in SAID.sign(key).signed_by([key.verifier]), "the signature alone is good"


def test_an_approval_of_another_run_verdict_or_text_counts_for_nothing():
    note = SAID.sign(ALICE)
    for run, verdict, why in (
        ("run2", VERDICT, "of verdict 5 of run run1"),
        ("run1", Open(6, BODY), "of verdict 5 of run run1"),
        ("run1", Open(5, {**BODY, "rule": "other"}), "says something else"),
        ("run1", Open(5, {**BODY, "action": "halt"}), "says something else"),
    ):
        with pytest.raises(Rejected, match=why):
            _read(note, run, verdict)
        assert ALICE.verifier in note.signed_by(POLICY.approvers), "who looks at the signature alone takes it"


def test_a_changed_decision_or_reason_counts_for_nothing():
    rejected = dataclasses.replace(SAID, decision="reject").sign(ALICE)
    forged = Note(rejected.text.replace('"reject"', '"approve"'), rejected.signatures)
    with pytest.raises(Rejected, match="does not hold"):
        _read(forged)
    assert '"decision":"approve"' in forged.text, "who does not look at the signature takes it"


def test_a_signature_made_for_something_else_counts_for_nothing():
    other = "example.com/log\n5\nAAAA\n"
    with pytest.raises(Rejected, match="no approval"):
        _read(Note(other, (ALICE.sign(other),)))
    text = SAID.sign(ALICE).text
    cosigned = WitnessKey("alice", ALICE.private).cosign(text, 1)
    with pytest.raises(Rejected, match="not signed by an approver"):
        _read(Note(text, (cosigned,)))


def test_an_approval_with_other_fields_is_none():
    for text in ("{}", '{"a":1}', "[]", "x"):
        whole = f"jaxlm.policy.approval/v1\n{text}\n"
        with pytest.raises(GovernanceError):
            _read(Note(whole, (ALICE.sign(whole),)))


def test_every_changed_byte_of_an_approval_is_rejected():
    content = bytes(SAID.sign(ALICE))
    for at in range(len(content)):
        changed = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        with pytest.raises(Rejected):
            approvals.read(changed, "run1", VERDICT, POLICY.approvers)


def test_a_link_among_the_approvals_is_refused(tmp_path: Path):
    approvals.write(tmp_path, SAID, ALICE)
    assert [name for name, _ in approvals.arrived(tmp_path, VERDICT)] == [f"5-{ALICE.verifier.id.hex()}.note"]
    (tmp_path / "approvals" / "5-aaaa.note").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Rejected, match="is a link"):
        approvals.arrived(tmp_path, VERDICT)


def test_a_private_key_is_made_once_and_for_its_owner_alone(tmp_path: Path):
    with pytest.raises(GovernanceError, match="jaxlm audit key --file"):
        private_key(tmp_path / "k.pem")
    made = private_key(tmp_path / "k.pem", make=True).private_bytes_raw()
    assert private_key(tmp_path / "k.pem").private_bytes_raw() == made
    (tmp_path / "k.pem").chmod(0o644)
    with pytest.raises(GovernanceError, match="others may read"):
        private_key(tmp_path / "k.pem")


def _entries(*told: tuple[str, dict[str, Any]]) -> list[Entry]:
    return [Entry(n, kind, body, "h", "b", n, "0" * 64, 0.0, 0.0) for n, (kind, body) in enumerate(told)]


LOAD = ("policy.load", {"policy": POLICY.digest, "before": None})
STEP = ("train.step", {})
HELD = ("policy.verdict", BODY)


def _approved(at: int, key: LogKey = ALICE, body: dict[str, Any] = BODY) -> tuple[str, dict[str, Any]]:
    note = Approval("run1", at, Open(at, body).digest, "approve", "fine", 1).sign(key)
    return ("policy.approval", {"verdict": at, "decision": "approve", "note": bytes(note).decode()})


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    approvals.keep(tmp_path, POLICY)
    return tmp_path


def test_what_waits_is_what_nobody_has_decided_on():
    told = [LOAD, HELD, HELD, ("policy.verdict", {**BODY, "approval": False}), _approved(1)]
    assert [each.index for each in approvals.undecided(_entries(*told))] == [2]
    resolved = ("policy.verdict", {**BODY, "action": "alert", "approval": False, "resolves": [2]})
    assert approvals.undecided(_entries(*told, resolved)) == []
    assert approvals.approved_rules(_entries(*told)) == set(), "its newest verdict was not approved"
    assert approvals.approved_rules(_entries(*told, _approved(2))) == {"look"}


def test_a_stranger_sees_that_the_run_waited_for_who_may_decide(audit: Path):
    found = policy_audit.check(audit, "run1", _entries(LOAD, STEP, HELD, STEP, _approved(2), STEP, STEP))
    assert (found.faults, found.alerts) == ([], [])
    assert "entry 4: alice signed approve on verdict 2" in found.lines


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ([LOAD, HELD, STEP, STEP], "training went on at entry 3 though verdict 1 waited"),
        ([LOAD, HELD, STEP, _approved(1, MALLORY), STEP, STEP], "not signed by an approver"),
        ([LOAD, HELD, STEP, _approved(1, body={**BODY, "why": "x"}), STEP], "says something else"),
        ([LOAD, HELD, STEP, _approved(0), STEP], "there is no verdict 0"),
        ([LOAD, ("policy.load", {"policy": "0" * 64, "before": POLICY.digest})], "cannot be read"),
    ],
)
def test_a_stranger_sees_what_went_past_a_policy(audit: Path, told: list[Any], why: str):
    faults = policy_audit.check(audit, "run1", _entries(*told)).faults
    assert any(why in fault for fault in faults)
    honest = [LOAD, HELD, STEP, _approved(1), STEP, STEP]
    assert policy_audit.check(audit, "run1", _entries(*honest)).faults == []


def test_a_stranger_sees_that_a_policy_was_dropped_or_its_copy_changed(audit: Path):
    dropped = ("policy.load", {"policy": None, "before": POLICY.digest})
    assert "obeys no policy" in policy_audit.check(audit, "run1", _entries(LOAD, dropped)).alerts[0]
    copy = audit / "policies" / f"{POLICY.digest}.yaml"
    copy.write_bytes(copy.read_bytes().replace(b"step == 3", b"step == 9"))
    assert "is not the policy that the log names" in policy_audit.check(audit, "run1", _entries(LOAD)).faults[0]
    assert loads(copy.read_bytes(), "p").approvers == POLICY.approvers, "who does not look at the digest takes it"


def test_notes_that_are_none_are_rejected():
    for raw in (b"", b"\n", b"x" * (notes.LONGEST + 1), b"\xff\xff\n\n"):
        with pytest.raises(Rejected):
            approvals.read(raw, "run1", VERDICT, POLICY.approvers)

"""Signed approvals of verdicts: who may, what is signed, and which verdicts are still open.

An approval is a signed note (https://c2sp.org/signed-note) in RUN/audit/approvals, which names the run, the verdict by
its place in the log and by the digest of what it says, and the decision. The run checks it against the approvers that
the policy of that verdict lists, logs it whole, and goes on or ends. So a text that was signed for one verdict is worth
nothing for another one, and whoever reads the log can check who decided.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from jaxlm.files import write_whole
from jaxlm.governance import canonical, notes
from jaxlm.governance.disk import Disk
from jaxlm.governance.entries import Entry, finite
from jaxlm.governance.errors import GovernanceError, Rejected
from jaxlm.governance.keys import write_public
from jaxlm.governance.notes import LogKey, Note, Verifier
from jaxlm.governance.policy import Loaded, loads

FOLDER, POLICIES = "approvals", "policies"
_FIRST = "jaxlm.policy.approval/v1"
Decision = Literal["approve", "reject"]


@dataclass(frozen=True, slots=True)
class Open:
    """A verdict that nobody has decided on yet, at its place in the log."""

    index: int
    body: dict[str, Any]

    @property
    def digest(self) -> str:
        return digest(self.body)

    def __str__(self) -> str:
        body = self.body
        return f"{body['action']} by rule {body['rule']} after step {body.get('step')}: {body.get('why')}"


@dataclass(frozen=True, slots=True)
class Approval:
    """What is signed.

    Attributes:
        run: the id of the run.
        verdict: its place in the log.
        digest: SHA-256 of its body, hex.
        decision: approve or reject.
        reason: for the log.
        time: POSIX seconds by the clock of who signs; for information.
    """

    run: str
    verdict: int
    digest: str
    decision: Decision
    reason: str
    time: int

    def sign(self, key: LogKey) -> Note:
        text = f"{_FIRST}\n{canonical.dump(asdict(self)).decode()}\n"
        return Note(text, (key.sign(text),))


def digest(body: dict[str, Any]) -> str:
    """What an approval calls a verdict with this body."""
    return hashlib.sha256(canonical.dump(finite(body))).hexdigest()


def read(content: bytes, run: str, verdict: Open, approvers: Sequence[Verifier]) -> tuple[Approval, Verifier]:
    """What a note says of a verdict, and which approver says it.

    Raises:
        Rejected: it is no approval, of another run or verdict, or not signed by an approver.
    """
    note = notes.parse(content)
    first, _, rest = note.text.partition("\n")
    if first != _FIRST:
        raise Rejected("this is no approval")
    said = canonical.load(rest.removesuffix("\n").encode())
    try:
        approval = Approval(**said)
    except TypeError:
        raise Rejected("this is no approval: it has other fields") from None
    if approval.decision not in ("approve", "reject"):
        raise Rejected(f"{str(approval.decision)[:40]!r} is no decision")
    if (approval.run, approval.verdict) != (run, verdict.index):
        raise Rejected(f"it is of verdict {approval.verdict} of run {str(approval.run)[:12]}")
    if approval.digest != verdict.digest:
        raise Rejected(f"verdict {verdict.index} says something else than what was signed")
    signed = note.signed_by(approvers)
    if not signed:
        raise Rejected("it is not signed by an approver that the policy lists")
    return approval, next(iter(signed))


def undecided(entries: Iterable[Entry]) -> list[Open]:
    """The verdicts of a log that wait for a decision, the oldest first: those that say so."""
    found: dict[int, Open] = {}
    for entry in entries:
        if entry.kind == "policy.approval":
            found.pop(entry.body["verdict"], None)
        elif entry.kind == "policy.verdict":
            for index in entry.body.get("resolves", []):
                found.pop(index, None)
            if entry.body.get("approval") is True:
                found[entry.index] = Open(entry.index, entry.body)
    return list(found.values())


def approved_rules(entries: Iterable[Entry]) -> set[str]:
    """The rules whose newest verdict was approved: what is broken and known to be is not told again."""
    newest: dict[str, int] = {}
    approved: set[int] = set()
    for entry in entries:
        if entry.kind == "policy.verdict" and entry.body.get("approval") is True:
            newest[entry.body["rule"]] = entry.index
        elif entry.kind == "policy.approval" and entry.body["decision"] == "approve":
            approved.add(entry.body["verdict"])
    return {rule for rule, index in newest.items() if index in approved}


def in_force(entries: Iterable[Entry]) -> str | None:
    """The digest of the policy that a log says is followed; None where there is none."""
    loads = [entry.body["policy"] for entry in entries if entry.kind == "policy.load" and "refused" not in entry.body]
    return loads[-1] if loads else None


def keep(audit: Path, loaded: Loaded) -> None:
    """Leaves a copy of a policy beside the log that names it."""
    Disk().make_folder(audit / POLICIES)
    write_public(audit / POLICIES / f"{loaded.digest}.yaml", loaded.content)


def kept(audit: Path, digest: str, *, compiled: bool = False) -> Loaded:
    """The policy with this digest; see `policy.loads` for `compiled`.

    Raises:
        GovernanceError: its copy is gone or is another one.
        ConfigError: it is one that cannot be followed.
    """
    path = audit / POLICIES / f"{digest}.yaml"
    try:
        content = Disk().read(path)
    except OSError as error:
        raise GovernanceError(f"{path}, a policy that the log names, cannot be read: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise Rejected(f"{path} is not the policy that the log names")
    return loads(content, str(path), compiled=compiled)


def write(audit: Path, approval: Approval, key: LogKey) -> Path:
    """Puts an approval where the run looks for it."""
    Disk().make_folder(audit / FOLDER)
    path = audit / FOLDER / f"{approval.verdict}-{key.verifier.id.hex()}.note"
    write_whole(path, bytes(approval.sign(key)))
    return path


def arrived(audit: Path, verdict: Open) -> list[tuple[str, bytes]]:
    """The files that may decide on a verdict, by name. Raises Rejected where one is a link."""
    disk = Disk()
    names = [name for name in disk.names(audit / FOLDER) if name.startswith(f"{verdict.index}-")]
    return [(name, disk.read(audit / FOLDER / name)) for name in names if name.endswith(".note")]

"""Signs the checkpoints of a run, logs them, and refuses what was not signed, not logged, or is older than the log."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from jaxlm.governance import model_signature, rotation, tensors
from jaxlm.governance.disk import Disk
from jaxlm.governance.entries import Entry
from jaxlm.governance.errors import GovernanceError, Rejected
from jaxlm.governance.keys import load_public
from jaxlm.governance.trail import Trail

MANIFEST, SIGNER = "manifest.json", "signer.pem"


@dataclass
class Commits:
    """What the log of a run says of its checkpoints.

    Attributes:
        payloads: SHA-256 of what was signed, by step; of a step saved twice, the last.
        newest: the step from which the run goes on by the log; None before the first checkpoint.
        abandoned: steps that the run went back from and has not saved again.
        at: the index of the entry that says so, by step.
    """

    payloads: dict[int, str] = field(default_factory=dict)
    newest: int | None = None
    abandoned: set[int] = field(default_factory=set)
    at: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "Commits":
        found = cls()
        for entry in entries:
            if entry.kind == "ckpt.commit":
                found.add(entry.body["step"], entry.body["payload"], entry.index)
            elif entry.kind == "ckpt.restore" and entry.body.get("rollback_from") is not None:
                found.back_to(entry.body["step"] if entry.body["manifest"] is not None else None)
        return found

    def add(self, step: int, payload: str, index: int) -> None:
        self.payloads[step], self.newest, self.at[step] = payload, step, index
        self.abandoned.discard(step)

    def back_to(self, step: int | None) -> None:
        """The run goes on from an older step, None for its beginning, which somebody chose and the log says: what came
        after it is no part of the run any more, however well it is signed."""
        self.newest = step
        self.abandoned |= {other for other in self.payloads if step is None or other > step}


@dataclass(frozen=True, slots=True)
class Signers:
    """The public keys of a run's checkpoints.

    Attributes:
        present: signs them now.
        former: those before it, oldest first, each with the index of the entry by which it handed over.
    """

    present: EllipticCurvePublicKey
    former: Sequence[tuple[int, EllipticCurvePublicKey]] = ()

    def of(self, index: int | None) -> EllipticCurvePublicKey:
        """The key of its time for a checkpoint that the log has at `index`; the present one where it has none, since a
        key that handed over signs nothing more."""
        return next((key for until, key in self.former if index is not None and index < until), self.present)


@dataclass
class Judge:
    """Says what is wrong with a checkpoint, by the public keys of its run and its log.

    Attributes:
        run: the id of the run.
        keys: sign its checkpoints.
        commits: what its log says.
        forgive: is told the fault of a checkpoint that is restored all the same; None forgives nothing.
        logged: also refuse what is newer than the log. Only the run itself can know that it was stopped between
            signing a checkpoint and logging it.
    """

    run: str
    keys: Signers
    commits: Commits
    forgive: Callable[[str], None] | None = None
    logged: bool = False

    def fault(self, folder: Path, body: dict[str, Any]) -> str | None:
        """Why the checkpoint in `folder` with the manifest `body` must not be restored. Its files are not read again:
        the manifest has vouched for them, and here it is the manifest's turn."""
        try:
            self.check(folder, body)
        except Rejected as error:
            if self.forgive is None:
                return str(error)
            self.forgive(f"{folder.name}: {error}")
        return None

    def check(self, folder: Path, body: dict[str, Any]) -> model_signature.Statement:
        """What was signed. Raises Rejected where the checkpoint is not that."""
        step = body["step"]
        said = model_signature.read(folder, self.keys.of(self.commits.at.get(step)))
        about = said.governance
        if about.get("run") != self.run:
            raise Rejected(f"signed for another run ({str(about.get('run'))[:12]}, this is {self.run[:12]})")
        if about.get("step") != step or said.name != str(step):
            raise Rejected(f"signed as step {about.get('step')}, and lies here as step {step}")
        files = {path: facts["sha256"] for path, facts in body["files"].items()}
        files[MANIFEST] = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
        if files != said.files:
            path = min(name for name in files.keys() | said.files.keys() if files.get(name) != said.files.get(name))
            raise Rejected(f"{path} is not what was signed")
        model_signature.check_listing(folder, said.files)
        model_signature.check_kinds(folder, said.files)
        if about.get("tensor_root") != root_of(body):
            raise Rejected("the tensors in the manifest are not those that were signed")
        if step in self.commits.abandoned:
            raise Rejected(f"signed, but the run went back from step {step} and has not saved it again")
        logged = self.commits.payloads.get(step)
        newest = self.commits.newest
        if logged is None and (self.logged or (newest is not None and step <= newest)):
            raise Rejected(f"signed, but the log does not know a checkpoint of step {step}")
        if logged is not None and logged != said.payload:
            raise Rejected(f"signed, but not the checkpoint of step {step} that the log knows: an older one came back")
        return said

    def genuine(self, folder: Path, body: dict[str, Any]) -> bool:
        """Whether a checkpoint with the manifest `body` is the one that was signed and logged; its files may be
        damaged."""
        try:
            self.check(folder, body)
        except (Rejected, OSError):
            return False
        return True


def signers(audit: Path, entries: Sequence[Entry]) -> Signers:
    """The public keys of a run's checkpoints: the present one lies in its audit folder, if it is the one that the log
    names; a log in which nothing has started knows no checkpoints either.

    Args:
        audit: the folder.
        entries: of the log, as `read_log` verified them.

    Raises:
        Rejected: it is missing, no key, or another one.
    """
    try:
        key = load_public(Disk().read(audit / SIGNER))
    except (OSError, Rejected) as error:
        raise Rejected(f"{SIGNER}: {getattr(error, 'strerror', None) or error}") from None
    if rotation.signer_digest(entries) not in (None, rotation.digest(key)):
        raise Rejected(f"{SIGNER} is not the key that the log names as that of the checkpoints")
    return Signers(key, rotation.former_signers(entries))


class Notary:
    """Signs and logs the checkpoints of a run that trains.

    Args:
        trail: of process 0.
        facts: what else is signed: digests of configuration and plan, the node.
        forgive: see Judge; for `--allow-unverified`.
        copy: is told what was signed of each checkpoint once it is logged, in the thread that saved it. What it raises
            makes the save fail.
    """

    def __init__(
        self,
        trail: Trail,
        facts: dict[str, Any],
        forgive: Callable[[str], None] | None = None,
        copy: Callable[[model_signature.Statement], None] | None = None,
    ):
        self.trail, self._copy = trail, copy
        self._facts, self._key = facts, trail.keys.checkpoint()
        if rotation.signer_digest(trail.history) not in (None, rotation.digest(self._key.public_key())):
            raise GovernanceError(
                f"the checkpoints of this run are signed by another key than checkpoint.pem in {trail.keys.folder}, "
                "which has not handed over: bring it back, or begin another run (`train --from`)"
            )
        signers = Signers(self._key.public_key(), rotation.former_signers(trail.history))
        self.judge = Judge(trail.run, signers, Commits.of(trail.history), forgive)
        self._signed: dict[int, model_signature.Statement] = {}

    def sign(self, folder: Path, body: dict[str, Any], content: bytes) -> None:
        files = {path: facts["sha256"] for path, facts in body["files"].items()}
        files[MANIFEST] = hashlib.sha256(content).hexdigest()
        step = body["step"]
        about = self._facts | {
            "run": self.trail.run,
            "step": step,
            "log_origin": self.trail.origin,
            "tensor_root": root_of(body),
        }
        self._signed[step] = model_signature.sign(folder, str(step), files, about, self._key)

    def saved(self, body: dict[str, Any]) -> None:
        """Returns once the log holds it: what comes back older than this is refused."""
        step = body["step"]
        said = self._signed.pop(step)
        index = self.trail.commit("ckpt.commit", commit_body(body, said.payload))
        self.judge.commits.add(step, said.payload, index)
        if self._copy is not None:
            self._copy(said)

    def restored(self, entry: dict[str, Any]) -> None:
        """Logs that the run goes on from a step, with a `rollback_from` where it goes back; without a manifest, from
        its beginning."""
        self.trail.commit("ckpt.restore", entry)
        if entry.get("rollback_from") is not None:
            self.judge.commits.back_to(entry["step"] if entry["manifest"] is not None else None)

    def catch_up(self, folder: Path, body: dict[str, Any]) -> None:
        """Logs a checkpoint that is signed and newer than the log: the run was stopped after it got its name. What is
        not signed, and restored all the same, is not logged as if it were."""
        step = body["step"]
        if step in self.judge.commits.payloads:
            return
        try:
            payload = self.judge.check(folder, body).payload
        except Rejected:
            return
        index = self.trail.commit("ckpt.commit", {**commit_body(body, payload), "late": True})
        self.judge.commits.add(step, payload, index)

    def fault(self, folder: Path, body: dict[str, Any]) -> str | None:
        return self.judge.fault(folder, body)


def commit_body(body: dict[str, Any], payload: str) -> dict[str, Any]:
    """What the log says of a checkpoint with this manifest."""
    size = sum(facts["size"] for facts in body["files"].values())
    return {
        "step": body["step"],
        "manifest": body["digest"],
        "payload": payload,
        "tensor_root": root_of(body),
        "files": len(body["files"]),
        "bytes": size,
    }


def root_of(body: dict[str, Any]) -> str:
    """The tensor root of a manifest, hex. Raises Rejected when it knows no digests of tensors."""
    if any("sha256" not in tensor for tensor in body["tensors"].values()):
        raise Rejected("the manifest knows no digests of tensors")
    return tensors.root(body["tensors"]).hex()

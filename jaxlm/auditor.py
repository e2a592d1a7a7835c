"""Verifies the audit trail of a whole run, or of one proof, as a stranger would: offline, with public keys."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxlm.checkpoints import manifest
from jaxlm.checkpoints.errors import CheckpointError
from jaxlm.folder import Folder, open_run
from jaxlm.governance import canonical, entries, evidence, heads, merkle, model_signature, node, notes, policy_audit
from jaxlm.governance.audit import Known, read_log
from jaxlm.governance.entries import Entry
from jaxlm.governance.errors import GovernanceError, Rejected
from jaxlm.governance.evidence import Proof
from jaxlm.governance.heads import Head
from jaxlm.governance.inference import Records, reveal
from jaxlm.governance.keys import Keys, load_public
from jaxlm.governance.log import reader
from jaxlm.governance.notary import Commits, Judge, signers
from jaxlm.governance.notes import Note
from jaxlm.governance.quorum import NoQuorum
from jaxlm.governance.trust import UNKNOWN, Trust
from jaxlm.governance.witnessing import cosigned
from jaxlm.privacy.replay import Logged
from jaxlm.reading import readers

VERIFIED, ABSENT = "every byte as signed and logged", "not here any more"
_LARGEST_KEY = 1 << 16


@dataclass
class Report:
    """What an audit found, line by line.

    Attributes:
        lines: what holds.
        alerts: what is odd.
        faults: what does not hold; none means that everything does.
        anchored: whether a key or policy of the reader's own vouches for it.
        logs: that could be read, by name.
        consistent: all of them are there, lead to their heads, and belong to one run.
        checkpoints: what became of each that is there or that the log knows, by step.
    """

    anchored: bool = False
    lines: list[str] = field(default_factory=list)
    alerts: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    logs: dict[str, Known] = field(default_factory=dict)
    consistent: bool = False
    checkpoints: dict[int, str] = field(default_factory=dict)

    def text(self) -> str:
        marked = [
            *(f"ok      {line}" for line in self.lines),
            *(f"ALERT   {line}" for line in self.alerts),
            *(f"FAILED  {line}" for line in self.faults),
        ]
        if self.faults:
            return "\n".join([*marked, f"{len(self.faults)} of these do not hold"])
        return "\n".join([*marked, "everything holds" if self.anchored else f"{UNKNOWN}: give --key or --policy"])


def verify_run(path: Path, trust: Trust, *, pins: bool = True) -> Report:
    """Every log, every entry, every chain, every checkpoint that is there. `pins`: also that no log falls behind what
    this account has seen of it."""
    folder, run = open_run(path)
    report = Report(anchored=trust.key is not None or trust.policy is not None)
    names = sorted(p.name.removesuffix(".vkey") for p in folder.audit.glob("*.vkey"))
    if "log" not in names:
        report.faults.append(f"{folder.audit} holds no log of a run" + _why(run.governance.enabled))
        return report
    known = report.logs
    for name in names:
        try:
            known[name] = read_log(folder.audit, name, keys=Keys() if pins else None, full=True)
            report.lines.append(f"{name}: {known[name].head.size:,} entries lead to its head and follow each other")
        except GovernanceError as error:
            report.faults.append(f"{name}: {error}")
    ids = {log.run for log in known.values()}
    if len(ids) > 1:
        report.faults.append(f"the logs belong to different runs: {', '.join(sorted(ids))}")
    if "log" in known:
        _complete(report, known["log"], names, Keys() if pins else None)
    report.consistent = not report.faults
    own = own_witnesses(known)
    for name, log in known.items():
        _trusted(report, folder, name, log, trust, own)
    if "log" in known:
        _configured(report, folder, known["log"])
        obeyed = policy_audit.check(folder.audit, known["log"].run, known["log"].entries)
        report.lines += obeyed.lines
        report.alerts += obeyed.alerts
        report.faults += obeyed.faults
        if (spent := Logged.of(known["log"].entries)).ledger is not None or spent.faults:
            report.lines.append(f"privacy: {len(spent.charges):,} charges (jaxlm audit privacy adds them up)")
            report.faults += spent.faults
    report.alerts += node.cloned(e.body["node"] for log in known.values() for e in log.entries if e.kind == "run.start")
    if "log" in known:
        _checkpoints(report, folder, run.checkpoint.build(folder.checkpoints).directory, known["log"])
    report.faults += [f"{path} is a private key inside the run directory" for path in private_keys(folder.path)]
    return report


def verify_bundle(path: Path, trust: Trust, checkpoint: Path | None, signer: Path | None) -> Report:
    """A tlog-proof that carries its entry; with `checkpoint` and `signer`, that the checkpoint is the one it names."""
    report = Report(anchored=trust.key is not None or trust.policy is not None)
    try:
        proof = evidence.parse(path.read_bytes())
        if proof.extra is None:
            raise Rejected("the proof carries no entry")
        entry = entries.parse(proof.index, proof.extra)
        head = proof.check(proof.extra)
        report.lines.append(f"entry {proof.index} ({entry.kind}) is in the log {head.origin} of {head.size:,} entries")
        key = _key_of(proof.note, head, trust)
        if key is not None:
            report.lines.append(trust.judge(key, [proof.note])[0])
        report.lines.append(f"it says: {canonical.dump(entries.finite(entry.body)).decode()}")
        if checkpoint is not None:
            _checkpoint_of(report, entry, checkpoint, signer)
    except (GovernanceError, CheckpointError, OSError) as error:
        report.faults.append(str(error))
    return report


def prove(path: Path, *, step: int | None = None, index: int | None = None) -> Proof:
    """A proof of the newest checkpoint entry of `step`, or of the entry `index`, that carries the entry.

    Raises:
        GovernanceError: there is none, or the log does not hold.
    """
    folder, _ = open_run(path)
    log = read_log(folder.audit, keys=Keys())
    if index is None:
        commits = [e.index for e in log.entries if e.kind == "ckpt.commit" and e.body["step"] == step]
        if not commits:
            steps = sorted({e.body["step"] for e in log.entries if e.kind == "ckpt.commit"})
            raise GovernanceError(f"the log knows no checkpoint of step {step} (steps: {steps})")
        index = commits[-1]
    note, size = log.note, log.head.size
    for other in cosigned_head(folder, "log", log):
        if (seen := heads.parse(other.text)).size > index:
            note, size = other, seen.size
    if not 0 <= index < size:
        raise GovernanceError(f"the log has {size} entries, none has index {index}")
    found = reader(folder.audit / "log", log.head.size)
    path_up = merkle.inclusion_proof(found.node, index, 0, size)
    return Proof(index, tuple(path_up), note, found.entry(index))


def show(path: Path, kinds: tuple[str, ...] = (), last: int | None = None, name: str = "log") -> Iterator[Entry]:
    """The entries of a log of a run, oldest first, some kinds only, the last so many. Raises GovernanceError."""
    folder, _ = open_run(path)
    if unknown := set(kinds) - entries.KINDS.keys():
        raise GovernanceError(f"--type {min(unknown)} is unknown; there are {' '.join(entries.KINDS)}")
    found = [e for e in read_log(folder.audit, name, keys=None, full=True).entries if not kinds or e.kind in kinds]
    yield from found if last is None else found[-last:] if last else []


def erase(path: Path, requests: Sequence[str], basis: str) -> None:
    """Destroys inference records of a run and logs it. Raises GovernanceError where there are none of these."""
    folder, _ = open_run(path)
    with readers(folder) as trail:
        Records(trail).erase(requests, basis, trail.history)


def revealed(path: Path, request: str) -> dict[str, Any]:
    """What an inference record says, with the key of this account, once the log says that it was read.

    Raises:
        GovernanceError: it cannot be read, or that cannot be logged.
    """
    folder, _ = open_run(path)
    log = read_log(folder.audit, "readers", keys=None)
    for entry in log.entries:
        if entry.kind == "infer.io" and entry.body["request"] == request:
            body = reveal(folder.audit, Keys(), log.run, entry)
            with readers(folder) as trail:
                trail.commit("access", {"command": "audit reveal", "account": node.account(), "request": request})
            return body
    raise GovernanceError(f"the log of {path} knows no record {request}")


def private_keys(folder: Path) -> list[str]:
    """Files below `folder` that hold a private key, by their content."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= _LARGEST_KEY:
            content = path.read_bytes()
            if b"PRIVATE KEY-----" in content or b"PRIVATE+KEY+" in content or b"AGE-SECRET-KEY-" in content:
                found.append(path.relative_to(folder).as_posix())
    return found


def _trusted(report: Report, folder: Folder, name: str, log: Known, trust: Trust, own: set[bytes]) -> None:
    said, seen = "", None
    try:
        found = [log.note, *cosigned_head(folder, name, log)]
        said, seen = trust.judge(log.key, found, own if name == "log" else (), log.keys.former)
    except NoQuorum as error:  # witnesses are asked about the log of process 0 alone
        (report.faults if name == "log" else report.alerts).append(f"{name}: {error}")
    except Rejected as error:
        report.faults.append(f"{name}: {error}")
    if report.anchored and said:
        report.lines.append(f"{name}: {said}")
    if seen is not None and seen.size < log.head.size:
        report.alerts.append(f"{name}: witnesses saw {seen.size:,} of {log.head.size:,} entries")
    report.alerts += [f"{name}: {alert}" for alert in log.alerts]
    for index, old in log.keys.log:
        report.lines.append(f"{name}: entry {index}: key {old.id.hex()} handed over, signed by both")
        if trust.key is not None and trust.key.key == old.key:
            report.alerts.append(
                f"{name}: the key given handed over at entry {index}; from now on trust {log.key}: whoever has stolen "
                "the old one can show a log without that entry"
            )
    for entry in log.entries:
        if entry.kind == "ckpt.restore" and (
            entry.body.get("unverified") or entry.body.get("rollback_from") is not None
        ):
            report.alerts.append(f"{name}: entry {entry.index}: {canonical.dump(entry.body).decode()}")


def _complete(report: Report, log: Known, names: Sequence[str], keys: Keys | None) -> None:
    """Every log that the run says it wrote is there, and every one that this account has seen of it."""
    processes = max((_processes(e) for e in log.entries if e.kind == "run.start"), default=1)
    if gone := sorted({f"log-{process}" for process in range(1, processes)} - set(names)):
        report.faults.append(f"{', '.join(gone)}: gone, though the run says that {processes} processes wrote logs")
    try:
        lost = sorted(set(keys.seen_of(log.run)) - set(names) - set(gone)) if keys is not None else []
    except GovernanceError as error:
        report.faults.append(str(error))
        return
    if lost:
        report.faults.append(f"{', '.join(lost)}: gone, and was seen here before")


def _processes(start: Entry) -> int:
    count = start.body.get("processes", 1)
    return count if isinstance(count, int) else 1


def _configured(report: Report, folder: Folder, log: Known) -> None:
    """The configuration that lies beside the log is the one that its newest start names."""
    starts = [entry.body["config"] for entry in log.entries if entry.kind == "run.start"]
    if starts and hashlib.sha256(folder.config.read_bytes()).hexdigest() != starts[-1]:
        report.faults.append(
            f"{folder.config.name} is not the configuration that the log says the run was started with"
        )


def cosigned_head(folder: Folder, name: str, log: Known) -> list[Note]:
    """The head that witnesses signed, if there is one. Raises Rejected where it is not of this log or its entries."""
    path = cosigned(folder.audit / name)
    if not path.is_file():
        return []
    content = path.read_bytes()
    head, note = _read_head(content, log.keys.signers(heads.parse(notes.parse(content).text).size))
    found = reader(folder.audit / name, log.head.size)
    if head.size > log.head.size or merkle.root(found.node, 0, head.size) != head.root:
        raise Rejected(f"{path.name} is a head of another history of this log")
    return [note]


def _read_head(content: bytes, keys: Sequence[notes.Verifier]) -> tuple[Head, Note]:
    """A head signed by one of these keys, the last of which may have handed over. Raises Rejected."""
    for key in keys[:-1]:
        with suppress(Rejected):
            return heads.read(content, key)
    return heads.read(content, keys[-1])


def own_witnesses(known: Mapping[str, Known]) -> set[bytes]:
    """The raw public keys of witnesses that the log's own operator runs, which vouch for nothing."""
    starts = (e.body for log in known.values() for e in log.entries if e.kind == "run.start")
    return {bytes.fromhex(body["own_witness"]) for body in starts if body.get("own_witness")}


def _checkpoints(report: Report, folder: Folder, directory: Path, log: Known) -> None:
    commits = Commits.of(log.entries)
    try:
        keys = signers(folder.audit, log.entries)
    except Rejected as error:
        report.faults.append(str(error))
        return
    if not any(entry.kind == "run.start" for entry in log.entries):
        report.faults.append("the log names no key of the checkpoints: it has no run.start")
        return
    judge, there, late = Judge(log.run, keys, commits), [], []
    steps = sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit()) if directory.is_dir() else []
    for step in steps:
        try:
            body = manifest.read(directory / str(step))
            if body["step"] != step:
                raise CheckpointError(f"it is that of step {body['step']}")
            manifest.verify(directory / str(step), body)
            judge.check(directory / str(step), body)
            (there if step in commits.payloads else late).append(step)
            report.checkpoints[step] = VERIFIED if step in commits.payloads else "signed, not logged yet"
        except (CheckpointError, GovernanceError) as error:
            report.faults.append(f"checkpoint {step}: {error}")
            report.checkpoints[step] = str(error)
    if there:
        report.lines.append(f"checkpoints {', '.join(map(str, there))}: every byte as signed and logged")
    report.alerts += [f"checkpoint {step} is signed, and the log does not know it yet" for step in late]
    if commits.newest is not None and commits.newest not in steps:
        report.faults.append(f"checkpoint {commits.newest}, the newest that the log knows, is gone")
    report.checkpoints |= {step: ABSENT for step in commits.payloads if step not in steps}


def _key_of(note: Note, head: Head, trust: Trust) -> notes.Verifier | None:
    """The trusted key under the name of this log, since the proof carries none."""
    known = [trust.key] if trust.key is not None else []
    known += list(trust.policy.logs) if trust.policy is not None else []
    for key in known:
        own = notes.Verifier(head.origin, notes.ED25519, key.key)
        if own in note.signed_by([own]):
            return own
    if known:
        raise Rejected(f"the head of {head.origin} is not signed by a key that is trusted here")
    return None


def _checkpoint_of(report: Report, entry: Entry, checkpoint: Path, signer: Path | None) -> None:
    if entry.kind != "ckpt.commit":
        raise Rejected(f"the proof is of an entry {entry.kind}, not of a checkpoint")
    if signer is None:
        raise Rejected("--checkpoint needs --signer, the public key of the run's checkpoints (audit/signer.pem)")
    said = model_signature.read(checkpoint, load_public(signer.read_bytes()))
    if said.payload != entry.body["payload"]:
        raise Rejected(f"{checkpoint} is not the checkpoint that the entry names")
    model_signature.check_listing(checkpoint, said.files)
    model_signature.check_files(checkpoint, said.files)
    report.lines.append(f"{checkpoint} is that checkpoint, every byte of its {len(said.files)} files")


def _why(enabled: bool) -> str:
    return "" if enabled else " (governance.enabled is false)"


def as_json(entry: Entry) -> dict[str, Any]:
    """An entry as one flat object, for `--json`."""
    return {"index": entry.index, "type": entry.kind, "host": entry.host, "seq": entry.seq, "t_wall": entry.t_wall} | {
        "body": entry.body
    }

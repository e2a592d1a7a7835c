"""Encrypted copies of a run's checkpoints, and the way back: what `jaxlm audit snapshot` and `restore` do."""

import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.checkpoints import manifest
from jaxlm.checkpoints.errors import CheckpointError
from jaxlm.folder import Folder, open_run
from jaxlm.governance import model_signature, node, snapshot
from jaxlm.governance.audit import read_log
from jaxlm.governance.entries import Entry
from jaxlm.governance.errors import GovernanceError, Rejected
from jaxlm.governance.keys import Keys, load_public
from jaxlm.governance.model_signature import Statement
from jaxlm.governance.notary import Commits, Judge, Signers, signers
from jaxlm.governance.snapshot import Binding, Written
from jaxlm.governance.trail import Trail
from jaxlm.reading import readers, tensor_root


@dataclass(frozen=True, slots=True)
class Restored:
    """Attributes:
    folder: where the checkpoint lies now.
    binding: what it was bound to.
    logged: whether the log of its run knows the very file.
    """

    folder: Path
    binding: Binding
    logged: bool


def take(path: Path, step: int, to: Sequence[str], out: Path) -> Written:
    """Encrypts a checkpoint of a run into `out` for these recipients (age1...), and logs that.

    Raises:
        GovernanceError: the checkpoint is not as it was signed and logged, `out` exists, or the log is not ours.
        CheckpointError: there is none of this step.
    """
    if not to:
        raise GovernanceError("name who can read it: --recipient age1...")
    known = snapshot.recipients(to)
    folder, run = open_run(path)
    log = read_log(folder.audit, keys=Keys())
    place = run.checkpoint.build(folder.checkpoints).directory / str(step)
    if not place.is_dir():
        steps = sorted(int(p.name) for p in place.parent.glob("*") if p.name.isdigit())
        raise CheckpointError(f"{path} has no checkpoint of step {step} (steps there: {steps})")
    body = manifest.read(place)
    judge = Judge(log.run, signers(folder.audit, log.entries), Commits.of(log.entries), logged=True)
    said = judge.check(place, body)
    binding = _binding(place, said, log.run, out)
    keys = Keys(outside=folder.path)
    with readers(folder) as trail:
        written = snapshot.seal(place, binding, keys.checkpoint(), known, out)
        trail.record("access", {"command": "audit snapshot", "account": node.account(), "step": step})
        trail.commit("ckpt.snapshot", _entry(binding, written, to))
    return written


class Copying:
    """Makes an encrypted copy of every checkpoint of a run while it trains; see `governance.recipients`.

    Args:
        trail: of process 0, whose log names the copies.
        checkpoints: where the checkpoints lie, each under its step.
        to: recipients, age1...
        folder: where the copies go, made when it is new.
        name: of the run; the copy of step 300 is NAME-300.age, or NAME-300.2.age where that one is there.

    Raises:
        GovernanceError: somebody in `to` is no recipient.
    """

    def __init__(self, trail: Trail, checkpoints: Path, to: Sequence[str], folder: Path, name: str):
        self._trail, self._checkpoints, self._folder, self._name = trail, checkpoints, folder, name
        self._to, self._known = [text.strip() for text in to], snapshot.recipients(to)

    def __call__(self, said: Statement) -> None:
        """Copies the checkpoint that was signed as `said` and lies under its name, and logs that.

        Raises:
            GovernanceError: it is not as it was signed, or the log cannot be written.
            OSError: the disk refuses.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        numbers = itertools.chain([""], (f".{number}" for number in itertools.count(2)))
        names = (self._folder / f"{self._name}-{said.name}{number}.age" for number in numbers)
        out = next(path for path in names if not os.path.lexists(path))
        place = self._checkpoints / said.name
        binding = _binding(place, said, self._trail.run, out)
        written = snapshot.seal(place, binding, self._trail.keys.checkpoint(), self._known, out)
        self._trail.commit("ckpt.snapshot", _entry(binding, written, self._to))


def _binding(place: Path, said: Statement, run: str, out: Path) -> Binding:
    """Where the copy `out` of the checkpoint in `place` belongs."""
    files = {name: ((place / name).stat().st_size, digest) for name, digest in said.files.items()}
    signature = (place / model_signature.NAME).read_bytes()
    files[model_signature.NAME] = (len(signature), hashlib.sha256(signature).hexdigest())
    return Binding(run, int(said.name), f"checkpoints/{said.name}", out.name, said.payload, files)


def _entry(binding: Binding, written: Written, to: Sequence[str]) -> dict[str, Any]:
    """What the log says of a copy."""
    entry = {"step": binding.step, "payload": binding.payload, "name": binding.name, "digest": written.digest}
    return {**entry, "bytes": written.size, "recipients": [*to]}


def bring_back(
    path: Path,
    identity: Path,
    *,
    run: Path | None = None,
    signer: Path | None = None,
    step: int | None = None,
    out: Path | None = None,
    renamed: bool = False,
) -> Restored:
    """Decrypts a snapshot and verifies everything about it before it gets its name.

    Args:
        path: the encrypted file.
        identity: a file with the private key of a recipient.
        run: the run that it belongs to, whose log must know this very file.
        signer: in place of `run`, the public key of its checkpoints, as PEM.
        step: which one it must be; None takes any.
        out: the new folder; by default where it belongs in `run`.
        renamed: take it under another name than it was made with.

    Raises:
        GovernanceError: it is not what it must be; nothing is left behind then.
    """
    if (run is None) == (signer is None):
        raise GovernanceError("say what it must belong to: either --of RUN or --signer PEM")
    with_keys = snapshot.identities(identity)
    if not path.is_file():
        raise GovernanceError(f"{path} is no file")
    home = None if run is None else _Home.of(run)
    if home is None and out is None:
        raise GovernanceError("with --signer say where to: --out FOLDER")
    keys = _from_file(signer) if home is None else home.keys
    entry = None if home is None else home.entry(path)
    accepted = [keys.present] if entry is None else [keys.present, *(key for _, key in keys.former)]
    parent = out.absolute().parent if out is not None else home.directory if home is not None else Path()
    with _aside(parent) as aside:
        with snapshot.unseal(path, with_keys, accepted) as opened:
            binding = opened.binding
            _belongs(binding, path, step, renamed, home, entry)
            place = out or parent / str(binding.step)
            if os.path.lexists(place):
                raise GovernanceError(f"{place} exists already; say another --out")
            opened.extract(aside)
            body = _checked(aside, binding, keys, home)
        os.rename(aside, place)  # only now: the end of an encrypted file is authenticated last
        manifest.sync_folder(parent)
    if home is not None:
        home.restored(binding, body)
    return Restored(place, binding, entry is not None)


@dataclass(frozen=True, slots=True)
class _Home:
    """The run that a snapshot should belong to."""

    folder: Folder
    directory: Path
    run: str
    keys: Signers
    commits: Commits
    snapshots: dict[str, Entry]

    @classmethod
    def of(cls, path: Path) -> "_Home":
        folder, run = open_run(path)
        log = read_log(folder.audit, keys=Keys())
        made = [*log.entries]
        if (folder.audit / "readers").is_dir():
            made += read_log(folder.audit, "readers", keys=Keys()).entries
        return cls(
            folder,
            run.checkpoint.build(folder.checkpoints).directory,
            log.run,
            signers(folder.audit, log.entries),
            Commits.of(log.entries),
            {entry.body["digest"]: entry for entry in made if entry.kind == "ckpt.snapshot"},
        )

    def entry(self, path: Path) -> Entry:
        """What the log says of this very file. Raises Rejected where it does not know it."""
        found = self.snapshots.get(snapshot.digest(path))
        if found is None:
            raise Rejected(f"{path} is not a snapshot that the log of {self.folder.path} knows, or it was changed")
        return found

    def restored(self, binding: Binding, body: dict[str, Any]) -> None:
        facts = {"step": binding.step, "manifest": body["digest"], "tensor_root": tensor_root(body)}
        with readers(self.folder) as trail:
            trail.record("access", {"command": "audit restore", "account": node.account(), "step": binding.step})
            trail.commit("ckpt.restore", {**facts, "snapshot": binding.name})


def _belongs(
    binding: Binding, path: Path, step: int | None, renamed: bool, home: _Home | None, entry: Entry | None
) -> None:
    if home is not None and binding.run != home.run:
        raise Rejected(f"{path} is of the run {binding.run[:12]}, and {home.folder.path} is {home.run[:12]}")
    if step is not None and binding.step != step:
        raise Rejected(f"{path} is of step {binding.step}, not {step}")
    if binding.path != f"checkpoints/{binding.step}":
        raise Rejected(f"{path} is bound to {binding.path}, where no checkpoint of step {binding.step} lies")
    said = (binding.step, binding.payload, binding.name)
    if entry is not None and said != tuple(entry.body[key] for key in ("step", "payload", "name")):
        raise Rejected(f"{path} is bound to another place than the log says")
    if path.name != binding.name and not renamed:
        raise Rejected(f"{path} was made as {binding.name}: it lies in the place of another, or say --renamed")


def _checked(folder: Path, binding: Binding, keys: Signers, home: _Home | None) -> dict[str, Any]:
    """The manifest of what was extracted, once it is the checkpoint that was signed and bound. Raises Rejected."""
    try:
        body = manifest.read(folder)
    except CheckpointError as error:
        raise Rejected(str(error)) from None
    commits = Commits() if home is None else home.commits
    said = Judge(binding.run, keys, commits, logged=home is not None).check(folder, body)
    bound = {name: digest for name, (_, digest) in binding.files.items() if name != model_signature.NAME}
    if (body["step"], said.payload, said.files) != (binding.step, binding.payload, bound):
        raise Rejected("the checkpoint inside is not the one that it is bound to")
    return body


def _from_file(signer: Path | None) -> Signers:
    assert signer is not None
    try:
        return Signers(load_public(signer.read_bytes()))
    except OSError as error:
        raise GovernanceError(f"--signer {signer}: {error.strerror}") from None


@contextmanager
def _aside(parent: Path) -> Iterator[Path]:
    """A new folder to write into, gone again unless it was renamed."""
    parent.mkdir(parents=True, exist_ok=True)
    path = parent / f".restoring-{os.getpid()}"
    shutil.rmtree(path, ignore_errors=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)

"""Opens the audit trail of a run that is only read: verifies its checkpoints, and logs who read them."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.checkpoints.errors import CheckpointError
from jaxlm.checkpoints.manifest import SIGNATURE
from jaxlm.checkpoints.store import Found
from jaxlm.config import Run
from jaxlm.decode import ConfigError
from jaxlm.folder import Folder, open_run
from jaxlm.governance import node
from jaxlm.governance.audit import read_log
from jaxlm.governance.errors import GovernanceError
from jaxlm.governance.inference import Records
from jaxlm.governance.keys import Keys
from jaxlm.governance.notary import Commits, Judge, root_of, signers
from jaxlm.governance.trail import Trail

GO_BACK = "say --allow-rollback, which is logged"
"""What a run that trains may do in place of restoring a checkpoint."""
PATIENCE_SECONDS = 5.0
"""How long a command that reads waits for another one to log."""
UNVERIFIED = "governance.enabled is false, and {} is there: nothing of this run is verified"


class Reader:
    """Verifies the checkpoints of a run for a command that opens it, with its public keys alone."""

    def __init__(self, judge: Judge):
        self.judge = judge

    def fault(self, folder: Path, body: dict[str, Any]) -> str | None:
        return self.judge.fault(folder, body)

    def sign(self, folder: Path, body: dict[str, Any], content: bytes) -> None:
        raise CheckpointError("a command that reads a run signs nothing")

    def saved(self, body: dict[str, Any]) -> None:
        raise CheckpointError("a command that reads a run saves nothing")


def reader(folder: Folder, run: Run, *, allow_unverified: bool = False) -> Reader | None:
    """Who judges the checkpoints of a run that is only read; None where the run was made without governance.

    Raises:
        CheckpointError: its audit trail does not hold.
    """
    if not os.path.lexists(folder.audit):
        local = run.checkpoint.path is None or "://" not in run.checkpoint.path
        nothing = local and not run.checkpoint.build(folder.checkpoints).directory.is_dir()
        if not run.governance.enabled and (left := left_by_governance(folder, run)) is not None:
            print(f"WARNING: {UNVERIFIED.format(left)}", file=sys.stderr)
        if nothing or not run.governance.enabled:
            return None
    warn = lambda fault: print(f"WARNING: not verified, as --allow-unverified says: {fault}", file=sys.stderr)
    try:
        log = read_log(folder.audit, keys=Keys())
        keys = signers(folder.audit, log.entries)
    except (GovernanceError, OSError) as error:
        if allow_unverified:
            warn(str(error))
            return None
        raise CheckpointError(
            f"the checkpoints of {folder.path} cannot be verified: {error}. --allow-unverified reads them all the same"
        ) from None
    return Reader(Judge(log.run, keys, Commits.of(log.entries), warn if allow_unverified else None, logged=True))


def left_by_governance(folder: Folder, run: Run) -> str | None:
    """What says that checkpoints of this run were signed once, whatever its configuration says now."""
    if os.path.lexists(folder.audit):
        return str(folder.audit)
    directory = run.checkpoint.build(folder.checkpoints).directory
    return next((str(path) for path in sorted(directory.glob(f"*/{SIGNATURE}"))), None)


@dataclass(frozen=True, slots=True)
class GoingBack:
    """An older checkpoint is taken than the newest that the log knows.

    Attributes:
        newest: the step of that one.
        step: the one taken; None where there is none.
        automatic: nobody asked for it: the newest lies there as it was signed, and its content is damaged.
        why: what is wrong with each newer one.
    """

    newest: int
    step: int | None
    automatic: bool
    why: list[str]

    def __str__(self) -> str:
        return f"going back from step {self.newest}, which the log knows: {_there(self.step)}"


def going_back(
    judge: Judge, found: Found, damaged: Callable[[int], tuple[Path, dict[str, Any]] | None], allowed: bool, remedy: str
) -> GoingBack | None:
    """Judges a newest good checkpoint that is older than the newest that the log knows; None where it is not older.

    Where that one lies here as it was signed, and only its content is damaged, going back is allowed, and must be said.

    Args:
        judge: knows the log.
        found: the newest good checkpoint, and what is wrong with newer ones.
        damaged: see `Store.damaged`.
        allowed: somebody asked for it.
        remedy: what else can be done, for the message.

    Raises:
        CheckpointError: the newest one is gone, cannot be read, or was put in the place of another: nobody can tell
            then what was lost from what somebody wants forgotten.
    """
    newest = judge.commits.newest
    if newest is None or (found.step is not None and found.step >= newest):
        return None
    there = damaged(newest) if found.step is not None else None
    automatic = there is not None and judge.genuine(*there)
    if not (automatic or allowed):
        reasons = "".join(f"\n  {sentence}" for sentence in found.skipped)
        raise CheckpointError(
            f"the audit log knows a checkpoint of step {newest}, and {_there(found.step)}:"
            f"{reasons or ' it was removed'}\nGoing on from an older one loses what came after it, and hides that "
            f"somebody went back. Restore checkpoint {newest} from a backup, or {remedy}"
        )
    return GoingBack(newest, found.step, automatic, list(found.skipped))


def _there(step: int | None) -> str:
    return "there is none that is good" if step is None else f"the newest good one is {step}"


def newest_to_read(
    reader: Reader | None,
    found: Found,
    damaged: Callable[[int], tuple[Path, dict[str, Any]] | None],
    *,
    remedy: str,
    allow_unverified: bool = False,
) -> int | None:
    """The step of the newest checkpoint that a command may read, what was skipped being said on standard error.

    Raises CheckpointError as `going_back`; a run without governance knows of no newer one.
    """
    for sentence in found.skipped:
        print(f"skipped: {sentence}", file=sys.stderr)
    if reader is not None:
        back = going_back(reader.judge, found, damaged, allow_unverified, remedy)
        if back is not None:
            print(f"WARNING: {back}", file=sys.stderr)
    return found.step


def readers(folder: Folder) -> Trail:
    """The log of commands that read; two of them at once write one after the other."""
    return Trail(folder.audit, "readers", keys=Keys(outside=folder.path), patience=PATIENCE_SECONDS)


def accessed(folder: Folder, command: str, **more: Any) -> None:
    """Logs that a command opened a run. A log that is busy or is another account's is said, and stops nobody who reads:
    whoever can read the files can copy them too."""
    if not folder.audit.exists():
        return
    try:
        with readers(folder) as trail:
            trail.commit("access", {"command": command, "account": node.account(), **more})
    except (GovernanceError, OSError) as error:
        print(f"audit: this access is not logged: {error}", file=sys.stderr)


def inferred(folder: Folder, body: dict[str, Any], **public: Any) -> None:
    """Logs what went into a model and what came out, `body` hidden behind a commitment; said when it cannot be."""
    if not folder.audit.exists():
        return
    try:
        with readers(folder) as trail:
            Records(trail).add(body, **public)
    except (GovernanceError, OSError) as error:
        print(f"audit: this inference is not logged: {error}", file=sys.stderr)


def parent_of(run: Run) -> dict[str, Any]:
    """What a fine-tuned run says of the run it starts from."""
    assert run.parent is not None
    about: dict[str, Any] = {"run": None, "step": run.parent.step, "manifest": run.parent.manifest, "tensor_root": None}
    with suppress(GovernanceError, OSError, CheckpointError, ConfigError):  # gone, or without a trail
        folder, parent = open_run(Path(run.parent.run))
        about["run"] = read_log(folder.audit, keys=None).run
        with parent.checkpoint.build(folder.checkpoints) as store:
            about["tensor_root"] = tensor_root(store.manifest(run.parent.step or 0))
    return about


def tensor_root(body: dict[str, Any]) -> str | None:
    """The tensor root of a manifest, hex; None where it was saved without governance."""
    try:
        return root_of(body)
    except GovernanceError:
        return None

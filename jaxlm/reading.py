"""Opens the audit trail of a run that is only read: verifies its checkpoints, and logs who read them."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxlm.checkpoints.errors import CheckpointError
from jaxlm.config import Run
from jaxlm.decode import ConfigError
from jaxlm.folder import Folder, open_run
from jaxlm.governance import node
from jaxlm.governance.audit import read_log
from jaxlm.governance.errors import GovernanceError
from jaxlm.governance.inference import Records
from jaxlm.governance.keys import Keys, load_public
from jaxlm.governance.notary import Commits, Judge, root_of
from jaxlm.governance.trail import Trail


class Reader:
    """Verifies the checkpoints of a run for a command that opens it, with its public keys alone."""

    def __init__(self, judge: Judge):
        self._judge = judge

    def fault(self, folder: Path, body: dict[str, Any]) -> str | None:
        return self._judge.fault(folder, body)

    def sign(self, folder: Path, body: dict[str, Any], content: bytes) -> None:
        raise CheckpointError("a command that reads a run signs nothing")

    def saved(self, body: dict[str, Any]) -> None:
        raise CheckpointError("a command that reads a run saves nothing")


def reader(folder: Folder, run: Run, *, allow_unverified: bool = False) -> Reader | None:
    """Who judges the checkpoints of a run that is only read; None where the run was made without governance.

    Raises:
        CheckpointError: its audit trail does not hold.
    """
    if not folder.audit.exists():
        local = run.checkpoint.path is None or "://" not in run.checkpoint.path
        nothing = local and not run.checkpoint.build(folder.checkpoints).directory.is_dir()
        if nothing or not run.governance.enabled:
            return None
    warn = lambda fault: print(f"WARNING: not verified, as --allow-unverified says: {fault}", file=sys.stderr)
    try:
        log = read_log(folder.audit, keys=Keys())
        key = load_public((folder.audit / "signer.pem").read_bytes())
    except (GovernanceError, OSError) as error:
        if allow_unverified:
            warn(str(error))
            return None
        raise CheckpointError(
            f"the checkpoints of {folder.path} cannot be verified: {error}. --allow-unverified reads them all the same"
        ) from None
    return Reader(Judge(log.run, key, Commits.of(log.entries), warn if allow_unverified else None))


def accessed(folder: Folder, command: str, **more: Any) -> None:
    """Logs that a command opened a run. A log that is busy or is another account's is said, and stops nobody who reads:
    whoever can read the files can copy them too."""
    if not folder.audit.exists():
        return
    try:
        with Trail(folder.audit, "readers", keys=Keys(outside=folder.path)) as trail:
            trail.commit("access", {"command": command, "account": node.account(), **more})
    except (GovernanceError, OSError) as error:
        print(f"audit: this access is not logged: {error}", file=sys.stderr)


def inferred(folder: Folder, body: dict[str, Any], **public: Any) -> None:
    """Logs what went into a model and what came out, `body` hidden behind a commitment; said when it cannot be."""
    if not folder.audit.exists():
        return
    try:
        with Trail(folder.audit, "readers", keys=Keys(outside=folder.path)) as trail:
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

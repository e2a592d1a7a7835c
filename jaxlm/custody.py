"""What is done with the keys and the copies of a run: handing over to new keys, encrypted snapshots and back."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxlm.folder import open_run
from jaxlm.governance import notes
from jaxlm.governance.disk import Disk
from jaxlm.governance.errors import GovernanceError
from jaxlm.governance.keys import Keys
from jaxlm.governance.trail import Trail


@dataclass
class Rotated:
    """Attributes:
    handed: the logs that have a new key now, as RUN/NAME, each with its entry.
    left: logs that another account writes.
    destroyed: how many private keys, of this rotation or earlier ones, were destroyed.
    """

    handed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    destroyed: int = 0


def rotate(paths: Sequence[Path], *, destroy: bool = False) -> Rotated:
    """New keys for this account, and every log of these runs handed over to them.

    Where a log here still has a key that was replaced before, nothing new is made: that is finished first.

    Args:
        paths: run directories.
        destroy: the replaced private keys afterwards. Runs that are not named can then never be handed over.

    Raises:
        GovernanceError: a log is being written, or does not hold; no key was replaced then.
    """
    folders = [open_run(path)[0] for path in paths]
    keys = Keys()
    for folder in folders:
        Keys(outside=folder.path)
    found = Rotated()
    mine: list[tuple[Path, str]] = []
    behind = False
    for folder in folders:
        names = sorted(path.stem for path in folder.audit.glob("*.vkey"))
        if not names:
            raise GovernanceError(f"{folder.audit} holds no log")
        for name in names:
            key = notes.parse_verifier(Disk().read(folder.audit / f"{name}.vkey").decode()).key
            if keys.has_log(key) or keys.retired_log(key) is not None:
                mine.append((folder.audit, name))
                behind |= not keys.has_log(key)
            else:
                found.left.append(f"{folder.path.name}/{name}")
    if not mine:
        raise GovernanceError(f"no log of {', '.join(map(str, paths))} was written with the keys in {keys.folder}")
    if not behind:
        for audit, name in mine:  # none of them is being written, and all of them hold
            Trail(audit, name, keys=keys).close()
        keys.rotate()
    for audit, name in mine:
        with Trail(audit, name, keys=keys) as trail:
            handed = [entry.index for entry in trail.history if entry.kind == "key.rotate"]
        found.handed.append(f"{audit.parent.name}/{name}: entries {', '.join(map(str, handed))}")
    found.destroyed = keys.destroy_retired() if destroy else 0
    return found

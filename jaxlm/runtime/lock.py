"""One writer per run directory: a lock that names its owner and goes away with the process that holds it."""

import fcntl
import getpass
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

NAME = ".lock"
_held: set[int] = set()


class LockedError(ValueError):
    """Another process writes to this run directory; the message names it."""


@contextmanager
def run_lock(directory: Path) -> Iterator[Path]:
    """Holds the run directory for this process while the block runs; the directory is made if need be.

    The lock is the kernel's (`flock`), so it ends with the process however that dies; what `.lock` says
    is only for people, and old text in it blocks nobody. Among hosts it holds where the file system passes
    `flock` on (NFS since Linux 2.6.12 does). In a run of several processes only process 0 takes it.

    Yields:
        The lock file.

    Raises:
        LockedError: another process holds it; names pid, host, user, start and command.
        OSError: the directory cannot be written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(_owned(directory, os.pread(descriptor, 65536, 0))) from None
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "user": _user(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join(sys.orig_argv),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        yield path
    finally:
        if descriptor in _held:
            _held.remove(descriptor)
            os.close(descriptor)


def _let_go() -> None:
    """A forked worker must not keep the lock of a parent that died."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


def _owned(directory: Path, text: bytes) -> str:
    """Who holds the lock, from what they wrote; they may not have finished writing yet."""
    try:
        owner = json.loads(text)
        who = (
            f"process {owner['pid']} on {owner['host']} (user {owner['user']}, since {owner['started']}): "
            f"{owner['command']}"
        )
    except (ValueError, KeyError, TypeError):
        who = "another process that has not yet said who it is"
    return f"{directory} is in use by {who}. Stop it first, or use another run directory."


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # containers run users that have no name

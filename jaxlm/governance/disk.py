"""The few things that a log asks of a disk, one method each, so that tests can fail or cut the power at any of them."""

import os
from pathlib import Path

from jaxlm.governance.errors import Rejected


class Disk:
    """The real one. Nothing survives a power cut until `sync` (content) and `sync_folder` (names) have returned.

    It follows no symbolic links, which would lead what is written, emptied or deleted to a place of somebody else's
    choice: each method raises Rejected where there is one.
    """

    def read(self, path: Path) -> bytes:
        with os.fdopen(opened(path, os.O_RDONLY), "rb") as file:
            return file.read()

    def write(self, path: Path, content: bytes) -> None:
        """A new file; its content is not safe yet."""
        with os.fdopen(opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
            file.write(content)

    def sync(self, path: Path) -> None:
        _sync(path, os.O_RDWR)

    def rename(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def make_folder(self, path: Path) -> None:
        refuse_link(path)
        path.mkdir(exist_ok=True)

    def sync_folder(self, path: Path) -> None:
        _sync(path, os.O_RDONLY)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def names(self, path: Path) -> list[str]:
        """What lies in a folder; nothing when there is none."""
        refuse_link(path)
        return sorted(os.listdir(path)) if path.is_dir() else []


def refuse_link(path: Path) -> None:
    """Raises Rejected where `path` is a symbolic link, whatever it leads to."""
    if path.is_symlink():
        raise Rejected(f"{path} is a link, and an audit trail holds none")


def destroy(path: Path) -> None:
    """Overwrites a file before its name goes: a disk may keep the old blocks all the same, and so does a copy."""
    refuse_link(path)
    if path.exists():
        with os.fdopen(opened(path, os.O_RDWR), "r+b") as file:
            file.write(bytes(os.fstat(file.fileno()).st_size))
            file.flush()
            os.fsync(file.fileno())
        path.unlink()


def sync_folder(path: Path) -> None:
    """Makes the names in a folder safe from a power cut."""
    _sync(path, os.O_RDONLY)


def opened(path: Path, flags: int) -> int:
    """A descriptor of the file `path` itself. Raises Rejected where it is a link, OSError as `os.open` does."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError:
        refuse_link(path)
        raise


def _sync(path: Path, flags: int) -> None:
    descriptor = opened(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The few things that a log asks of a disk, one method each, so that tests can fail or cut the power at any of them."""

import os
from pathlib import Path


class Disk:
    """The real one. Nothing survives a power cut until `sync` (content) and `sync_folder` (names) have returned."""

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def write(self, path: Path, content: bytes) -> None:
        """A new file; its content is not safe yet."""
        path.write_bytes(content)

    def sync(self, path: Path) -> None:
        _sync(path, os.O_RDWR)

    def rename(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def make_folder(self, path: Path) -> None:
        path.mkdir(exist_ok=True)

    def sync_folder(self, path: Path) -> None:
        _sync(path, os.O_RDONLY)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def names(self, path: Path) -> list[str]:
        """What lies in a folder; nothing when there is none."""
        return sorted(os.listdir(path)) if path.is_dir() else []


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""A disk that forgets: what was not flushed may or may not survive a power cut, file by file and name by name."""

import errno
import random
from pathlib import Path

from jaxlm.governance.disk import Disk


class PowerCut(BaseException):
    """The machine is off."""


class File:
    def __init__(self) -> None:
        self.now, self.safe = b"", b""


class SimulatedDisk(Disk):
    """In memory. `cut_at`: the operation (counted from 0) during which the power goes; `fail_at`: the one that fails.

    `forgets`: operations (`sync`, `sync_folder`) that return without doing anything, to show what they are for.
    """

    def __init__(self, *, cut_at: int | None = None, fail_at: int | None = None, forgets: tuple[str, ...] = ()):
        self.files: dict[Path, File] = {}
        self.safe: dict[Path, File] = {}
        self.folders: set[Path] = set()
        self.safe_folders: set[Path] = set()
        self.cut_at, self.fail_at, self.forgets = cut_at, fail_at, forgets
        self.operations: list[str] = []

    def _operate(self, name: str) -> None:
        at = len(self.operations)
        self.operations.append(name)
        if at == self.cut_at:
            raise PowerCut
        if at == self.fail_at:
            raise OSError(errno.EIO, f"{name} fails")

    def read(self, path: Path) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path].now

    def write(self, path: Path, content: bytes) -> None:
        self.files[path] = File()
        self.files[path].now = content[: len(content) // 2]
        self._operate("write")
        self.files[path].now = content

    def sync(self, path: Path) -> None:
        self._operate("sync")
        if "sync" not in self.forgets:
            self.files[path].safe = self.files[path].now

    def rename(self, old: Path, new: Path) -> None:
        self._operate("rename")
        self.files[new] = self.files.pop(old)

    def make_folder(self, path: Path) -> None:
        if path not in self.folders:
            self._operate("make_folder")
            self.folders.add(path)

    def sync_folder(self, path: Path) -> None:
        self._operate("sync_folder")
        if "sync_folder" in self.forgets:
            return
        for name in [n for n in self.safe if n.parent == path and n not in self.files]:
            del self.safe[name]
        self.safe |= {name: file for name, file in self.files.items() if name.parent == path}
        self.safe_folders |= {folder for folder in self.folders if folder.parent == path}

    def remove(self, path: Path) -> None:
        self._operate("remove")
        self.files.pop(path, None)

    def names(self, path: Path) -> list[str]:
        return sorted(p.name for p in {*self.files, *self.folders} if p.parent == path)

    def after_power_cut(self, rng: random.Random, *, keep_all: bool = False) -> "SimulatedDisk":
        """What is there when the power is back. `keep_all`: a kill only, the kernel finishes what it was given."""
        after = SimulatedDisk()
        luck = (lambda: True) if keep_all else (lambda: rng.random() < 0.5)
        after.folders = self.safe_folders | {folder for folder in self.folders if luck()}
        kept: dict[Path, File] = {}
        for name in {*self.files, *self.safe}:
            now, safe = self.files.get(name), self.safe.get(name)
            chosen = safe if now is safe or not luck() else now
            if chosen is not None:
                kept[name] = chosen
        whole = {root for root in after.folders if all(p in after.folders for p in root.parents if p in self.folders)}
        for name, file in kept.items():
            if name.parent in self.folders and name.parent not in whole:
                continue
            copy = File()
            copy.now = copy.safe = (
                file.now if file.now == file.safe or luck() else rng.choice([file.safe, file.now[:7]])
            )
            after.files[name] = after.safe[name] = copy
        after.folders = after.safe_folders = whole
        return after

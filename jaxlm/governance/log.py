"""A transparency log in a folder: entries in order, their Merkle tree as static files, a signed head.

An entry is in the log when the file `checkpoint`, the signed head, says so, and that file is replaced last, after
everything it speaks of is safe on disk. So a kill or a power cut at any point leaves the old head or the new one, and
`append` returns only when the new one survives both. After a failed write or flush the log takes no more entries: what
the kernel kept of a failed flush cannot be known, so it must be opened again, from what is on disk.

Layout: https://c2sp.org/tlog-tiles. Source of the order of writes: Tessera's POSIX storage
(https://github.com/transparency-dev/tessera), which does not promise order inside a batch; here it is kept.
"""

import fcntl
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from jaxlm.governance import heads, merkle, tiles
from jaxlm.governance.disk import Disk, opened
from jaxlm.governance.errors import GovernanceError, Rejected
from jaxlm.governance.heads import Head
from jaxlm.governance.notes import Note, Signer, Verifier
from jaxlm.governance.tiles import WIDTH, Tiles

HEAD = "checkpoint"
_ASIDE, _LOCK = ".unfinished", ".lock"
_RETRY_SECONDS = 0.02


class Log:
    """The one writer of a log; opening it repairs what a crash left and publishes the head again.

    Args:
        folder: where it lies; made when it is new. Its parent exists.
        key: signs the heads; its name is the origin of the log.
        disk: how to reach it.
        patience: seconds to wait for another process that is writing here.
        admit: is called once no other process can write here and before anything is changed; may raise.

    Attributes:
        head: what is durable.
        note: the head as signed, with the witnesses' lines that `publish` was given.

    Raises:
        Rejected: what lies there was not signed by this key, or does not add up to its signed head.
        GovernanceError: another process is writing here, for longer than `patience`.
        OSError: the disk refuses.
    """

    def __init__(
        self,
        folder: Path,
        key: Signer,
        disk: Disk | None = None,
        *,
        patience: float = 0.0,
        admit: Callable[[], None] = lambda: None,
    ):
        self.folder, self._key, self._disk = folder, key, disk or Disk()
        self._edges: list[list[bytes]] = []
        self._bundle: list[bytes] = []
        self._broken: OSError | None = None
        self._lock: IO[bytes] | None = None
        self._disk.make_folder(folder)
        self._disk.sync_folder(folder.parent)
        if type(self._disk) is Disk:
            self._lock = _locked(folder / _LOCK, patience)
        try:
            admit()
            self._disk.make_folder(folder / _ASIDE)
            for name in self._disk.names(folder / _ASIDE):
                self._disk.remove(folder / _ASIDE / name)
            self._load()
        except BaseException:
            self.close()
            raise

    @property
    def verifier(self) -> Verifier:
        """The public key of its heads."""
        return self._key.verifier

    def append(self, entries: Sequence[bytes]) -> int:
        """Adds entries in this order; returns the index of the first once all of them are durable.

        Raises:
            Rejected: an entry is too long; none was added.
            GovernanceError: an earlier append failed, so the log must be opened again.
            OSError: the disk refuses; whether they are in the log is known when it is opened again, all or none.
        """
        if self._broken is not None:
            raise GovernanceError(f"the log {self.folder} failed before ({self._broken}): open it again")
        first = self.head.size
        if not entries:
            return first
        edges, bundle = [list(edge) for edge in self._edges], list(self._bundle)
        files, full = self._grow(edges, bundle, first, entries)
        head = Head(self._key.verifier.name, first + len(entries), _root(edges))
        note = head.sign(self._key)
        try:
            self._put(files)
            self._put({HEAD: bytes(note)})
        except OSError as error:
            self._broken = error
            raise
        self._edges, self._bundle, self.head, self.note = edges, bundle, head, note
        for path in full:
            self._prune(path)
        return first

    def publish(self, note: Note) -> None:
        """Replaces the signed head by the same one with more signatures. Raises Rejected for another head."""
        if note.text != self.head.text:
            raise Rejected("only the present head can get more signatures")
        note.require(self._key.verifier)
        self._put({HEAD: bytes(note)})
        self.note = note

    def hand_over(self, key: Signer) -> None:
        """From now on `key` signs, of the same name; the present head carries its signature beside the old key's."""
        self.publish(self.note.add([key.sign(self.head.text)]))
        self._key = key

    def tiles(self) -> Tiles:
        """The log as it is now, to read entries and make proofs."""
        return reader(self.folder, self.head.size, self._disk)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self) -> None:
        """Reads the head and the tiles at its right edge, and writes both again: what was read may not be on disk
        yet if the process before this one was killed between a rename and its flush."""
        origin = self._key.verifier.name
        try:
            content = self._disk.read(self.folder / HEAD)
        except FileNotFoundError:
            self.head = Head(origin, 0, merkle.EMPTY)
            self.note = self.head.sign(self._key)
            self._put({HEAD: bytes(self.note)})
            return
        self.head, self.note = heads.read(content, self._key.verifier)
        found, files = self.tiles(), {}
        for level, count in tiles.levels(self.head.size):
            partial = count % WIDTH
            edge = found.hashes(level, count // WIDTH) if partial else []
            self._edges.append(list(edge))
            if partial:
                files[tiles.path(level, count // WIDTH, partial)] = b"".join(edge)
        if partial := self.head.size % WIDTH:
            self._bundle = list(found.entries(self.head.size // WIDTH))
            files[tiles.path(None, self.head.size // WIDTH, partial)] = tiles.pack(self._bundle)
            if [merkle.leaf_hash(entry) for entry in self._bundle] != self._edges[0]:
                raise Rejected(f"{self.folder}: the newest entries do not belong to their hashes")
        if _root(self._edges) != self.head.root:
            raise Rejected(f"{self.folder}: the hashes do not lead to the signed root")
        self._put(files)
        self._put({HEAD: content})

    def _grow(
        self, edges: list[list[bytes]], bundle: list[bytes], size: int, entries: Sequence[bytes]
    ) -> tuple[dict[str, bytes], list[str]]:
        """Adds entries to the right edge; returns the files that change and the paths of tiles that became full."""
        files: dict[str, bytes] = {}
        full: list[str] = []
        touched = 0
        for entry in entries:
            tiles.pack([entry])
            bundle.append(entry)
            value, level, size = merkle.leaf_hash(entry), 0, size + 1
            while True:
                if level == len(edges):
                    edges.append([])
                edges[level].append(value)
                touched = max(touched, level)
                if len(edges[level]) < WIDTH:
                    break
                index = (size >> (tiles.HEIGHT * (level + 1))) - 1
                full.append(tiles.path(level, index))
                files[full[-1]] = b"".join(edges[level])
                if level == 0:
                    full.append(tiles.path(None, index))
                    files[full[-1]] = tiles.pack(bundle)
                    bundle.clear()
                value = merkle.perfect(edges[level])
                edges[level].clear()
                level += 1
        for level in range(touched + 1):
            if edges[level]:
                index = size >> (tiles.HEIGHT * (level + 1))
                files[tiles.path(level, index, len(edges[level]))] = b"".join(edges[level])
        if bundle:
            files[tiles.path(None, size // WIDTH, len(bundle))] = tiles.pack(bundle)
        return files, full

    def _put(self, files: dict[str, bytes]) -> None:
        """Each file whole under its name and safe on disk when this returns."""
        folders: dict[Path, None] = {}
        for number, (name, content) in enumerate(files.items()):
            aside, path = self.folder / _ASIDE / str(number), self.folder / name
            self._disk.write(aside, content)
            self._disk.sync(aside)
            for folder in reversed([p for p in path.parents if self.folder in p.parents]):
                self._disk.make_folder(folder)
                folders[folder.parent] = None
            self._disk.rename(aside, path)
            folders[path.parent] = None
        for folder in folders:
            self._disk.sync_folder(folder)

    def _prune(self, path: str) -> None:
        """Partial tiles go once the full one is durable; a failure leaves them, which harms nobody."""
        folder = self.folder / f"{path}.p"
        try:
            for name in self._disk.names(folder):
                self._disk.remove(folder / name)
        except (OSError, Rejected):
            return


def reader(folder: Path, size: int, disk: Disk | None = None) -> Tiles:
    """The entries and hashes of a log in a folder, as far as `size`; nothing is verified."""
    source = disk or Disk()
    return Tiles(lambda path: source.read(folder / path), size)


def _locked(path: Path, patience: float) -> IO[bytes]:
    end = time.monotonic() + patience
    file = os.fdopen(opened(path, os.O_WRONLY | os.O_CREAT), "wb")  # held as long as the log
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            if time.monotonic() >= end:
                file.close()
                raise GovernanceError(f"another process is writing the log {path.parent}") from None
            time.sleep(_RETRY_SECONDS)
    os.set_inheritable(file.fileno(), False)
    return file


def _root(edges: Sequence[Sequence[bytes]]) -> bytes:
    """The root of a tree from the hashes in its unfinished tiles, lowest level first."""
    joined = None
    for edge in edges:
        at = len(edge)
        while at > 0:
            count = at & -at
            peak = merkle.perfect(edge[at - count : at])
            joined = peak if joined is None else merkle.node_hash(peak, joined)
            at -= count
    return merkle.EMPTY if joined is None else joined

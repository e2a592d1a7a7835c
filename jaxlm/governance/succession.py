"""How a witness learns that the key of a log was replaced: by the log's own entries that say so.

A request to `/add-rotation` is one of `/add-checkpoint` with proofs of handovers (`rotation.py`) beside it, in
canonical JSON:

    {"old": 7, "proof": [BASE64, ...], "head": NOTE, "rotations": [
        {"index": 120, "entry": BASE64, "path": [BASE64, ...], "before": [BASE64, ...]}]}

`path` proves that the entry is in the log of the head, `before` that the log which the statement in it speaks of is the
beginning of that log. One statement must be signed by a key that the witness knows, each after it by the key before it,
and the head by the last. So nobody but who holds the present key can bring in another one.
"""

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaxlm.governance import canonical, entries, heads, merkle, notes, rotation
from jaxlm.governance.entries import Entry
from jaxlm.governance.errors import Rejected
from jaxlm.governance.heads import Head
from jaxlm.governance.notes import Note, Verifier
from jaxlm.governance.tiles import Tiles

PATH = "/add-rotation"
MOST = 64
"""Handovers in one request."""


@dataclass(frozen=True, slots=True)
class Handover:
    """One handover of a log, with its proofs.

    Attributes:
        index: of the entry that says so.
        entry: its bytes.
        path: from its leaf to the root of the head.
        before: from the log of `index` entries to the head.
    """

    index: int
    entry: bytes
    path: tuple[bytes, ...]
    before: tuple[bytes, ...]

    def check(self, head: Head) -> tuple[Verifier, Verifier]:
        """The old key and the new one, both of which have signed that, in the log of `head`. Whether the old one is
        known is not asked here.

        Raises:
            Rejected: it is not in this log, says something else, or is not signed by both.
        """
        leaf = merkle.leaf_hash(self.entry)
        merkle.verify_inclusion(leaf, self.index, head.size, self.path, head.root)
        entry = entries.parse(self.index, self.entry)
        if entry.kind != "key.rotate" or entry.body["of"] != rotation.LOG:
            raise Rejected(f"entry {self.index} does not hand over the key of a log")
        said = rotation.checked(entry, head.origin, lambda _: self._root(entry, head))
        return notes.parse_verifier(said.old), notes.parse_verifier(said.new)

    def _root(self, entry: Entry, head: Head) -> bytes:
        """What the statement says of the log before it, once that is the beginning of the log of `head`."""
        root = bytes.fromhex(entry.body["root"])
        if self.index == 0:
            return merkle.EMPTY
        merkle.verify_consistency(self.index, head.size, self.before, root, head.root)
        return root


@dataclass(frozen=True, slots=True)
class Request:
    """What a log sends to a witness that does not know its key.

    Attributes:
        old: the size of the newest head that the witness has cosigned.
        proof: from that one to `note`.
        note: the head to cosign.
        handovers: oldest first.
    """

    old: int
    proof: tuple[bytes, ...]
    note: Note
    handovers: tuple[Handover, ...]

    def __bytes__(self) -> bytes:
        rotations = [
            {
                "index": each.index,
                "entry": base64.b64encode(each.entry).decode(),
                "path": _lines(each.path),
                "before": _lines(each.before),
            }
            for each in self.handovers
        ]
        head = bytes(self.note).decode()
        return canonical.dump({"old": self.old, "proof": _lines(self.proof), "head": head, "rotations": rotations})

    def follow(self, head: Head, known: Iterable[Verifier]) -> list[tuple[int, Verifier, Verifier]]:
        """Each handover from a key in `known` to the one that has signed the head: index, old key, new key.

        Raises:
            Rejected: they do not lead there.
        """
        found: list[tuple[int, Verifier, Verifier]] = []
        present = list(known)
        for each in self.handovers:
            old, new = each.check(head)
            if not found and old not in present:
                continue  # from before the key that is known
            if old not in present or (found and found[-1][0] >= each.index):
                raise Rejected(f"entry {each.index} is signed by another key than the one before it: {old}")
            found.append((each.index, old, new))
            present = [new]
        if not found:
            raise Rejected("no handover is signed by a key that is known")
        self.note.require(found[-1][2])
        return found


def parse(content: bytes) -> Request:
    """Takes a request apart; checks its form only. Raises Rejected."""
    body = canonical.load(content)
    try:
        if len(body["rotations"]) > MOST:
            raise Rejected(f"{len(body['rotations'])} handovers are too much")
        handovers = tuple(
            Handover(_size(each["index"]), notes.decode(each["entry"]), _hashes(each["path"]), _hashes(each["before"]))
            for each in body["rotations"]
        )
        note = notes.parse(body["head"].encode())
        return Request(_size(body["old"]), _hashes(body["proof"]), note, handovers)
    except (KeyError, TypeError, AttributeError) as error:
        raise Rejected(f"not of the form of a request: {error}") from None


def of_log(old: int, note: Note, tiles: Tiles) -> Request:
    """The request of the log in `tiles` with all its handovers, to a witness that knows `old` entries."""
    head = heads.parse(note.text)
    proof = [] if old in (0, head.size) else merkle.consistency_proof(tiles.node, 0, old, head.size)
    handovers = [_handover(index, head.size, tiles) for index in _places(tiles)]
    return Request(old, tuple(proof), note, tuple(handovers))


def hands_over(tiles: Tiles) -> bool:
    """Whether the key of the log was ever replaced."""
    return next(_places(tiles), None) is not None


def _places(tiles: Tiles) -> Iterator[int]:
    """The entries by which the key of the log hands over."""
    for index in range(tiles.size):
        if b'"key.rotate"' in (raw := tiles.entry(index)):
            entry = entries.parse(index, raw)
            if entry.kind == "key.rotate" and entry.body["of"] == rotation.LOG:
                yield index


def _handover(index: int, size: int, tiles: Tiles) -> Handover:
    path = merkle.inclusion_proof(tiles.node, index, 0, size)
    before = merkle.consistency_proof(tiles.node, 0, index, size) if index else []
    return Handover(index, tiles.entry(index), tuple(path), tuple(before))


def _lines(hashes: Sequence[bytes]) -> list[str]:
    return [base64.b64encode(value).decode() for value in hashes]


def _hashes(texts: Any) -> tuple[bytes, ...]:
    if not isinstance(texts, list) or len(texts) > MOST:
        raise Rejected("a proof is a list of up to 64 hashes")
    return tuple(map(heads.hash_line, texts))


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < merkle.LIMIT:
        raise Rejected(f"not a size or index: {value!r:.40}")
    return value

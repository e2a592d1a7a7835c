"""The signed head of a log: origin, size and root as a note (https://c2sp.org/tlog-checkpoint)."""

import base64
import re
from dataclasses import dataclass

from jaxlm.governance import notes
from jaxlm.governance.errors import Rejected
from jaxlm.governance.merkle import LIMIT, SIZE
from jaxlm.governance.notes import Note, Signer, Verifier

_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class Head:
    """What a log says of itself: `size` entries whose Merkle root is `root` (32 bytes)."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    def sign(self, key: Signer) -> Note:
        return Note(self.text, (key.sign(self.text),))


def number(text: str) -> int:
    """A decimal without leading zeros, below 2**63. Raises Rejected."""
    if not _NUMBER.fullmatch(text) or int(text) >= LIMIT:
        raise Rejected(f"not a size or index: {text[:40]!r}")
    return int(text)


def hash_line(text: str) -> bytes:
    """A hash in base64. Raises Rejected unless it is 32 bytes."""
    raw = notes.decode(text)
    if len(raw) != SIZE:
        raise Rejected(f"a hash is {SIZE} bytes, this one {len(raw)}")
    return raw


def parse(text: str) -> Head:
    """The head that a note's text states; no extension lines. Raises Rejected."""
    lines = text.split("\n")
    if len(lines) != 4 or lines[3] or not lines[0]:
        raise Rejected("the head of a log is three lines: origin, size, root")
    return Head(lines[0], number(lines[1]), hash_line(lines[2]))


def read(content: bytes, key: Verifier) -> tuple[Head, Note]:
    """A head signed by `key`, whose name is the log's origin.

    Raises:
        Rejected: no valid signature of this key, or another log's head.
    """
    note = notes.parse(content)
    note.require(key)
    head = parse(note.text)
    if head.origin != key.name:
        raise Rejected(f"this is a head of {head.origin}, the key belongs to {key.name}")
    return head, note

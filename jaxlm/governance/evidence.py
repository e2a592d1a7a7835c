"""A proof that a file can carry: this entry is in that log, as so many witnesses saw (https://c2sp.org/tlog-proof)."""

import base64
from dataclasses import dataclass

from jaxlm.governance import heads, merkle, notes
from jaxlm.governance.errors import Rejected
from jaxlm.governance.heads import Head
from jaxlm.governance.notes import Note

_FIRST = "c2sp.org/tlog-proof@v1"
_MOST_LINES = 64


@dataclass(frozen=True, slots=True)
class Proof:
    """That the entry `index` leads to the head in `note`.

    Attributes:
        index: of the entry, from 0.
        path: sibling hashes from the leaf up.
        note: the head of the log with its signatures.
        extra: bytes that travel along, such as the entry itself; not authenticated by the format.
    """

    index: int
    path: tuple[bytes, ...]
    note: Note
    extra: bytes | None = None

    def __bytes__(self) -> bytes:
        lines = [_FIRST]
        if self.extra is not None:
            lines.append(f"extra {base64.b64encode(self.extra).decode()}")
        lines += [f"index {self.index}", *(base64.b64encode(value).decode() for value in self.path), "", ""]
        return "\n".join(lines).encode() + bytes(self.note)

    def check(self, entry: bytes) -> Head:
        """The head that `entry` is under. Says nothing of who signed it: see quorum.Policy.

        Raises:
            Rejected: the entry does not lead to it.
        """
        head = heads.parse(self.note.text)
        merkle.verify_inclusion(merkle.leaf_hash(entry), self.index, head.size, self.path, head.root)
        return head


def parse(content: bytes) -> Proof:
    """Takes a tlog-proof apart; checks its form only. Raises Rejected."""
    front, gap, note = content.partition(b"\n\n")
    if not gap:
        raise Rejected("a proof is lines, an empty line, and the head of a log")
    try:
        lines = front.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise Rejected("a proof is ASCII before its head") from None
    if lines.pop(0) != _FIRST:
        raise Rejected(f"a proof begins with {_FIRST}")
    extra = None
    if lines and lines[0].startswith("extra "):
        extra = notes.decode(lines.pop(0).removeprefix("extra "))
    if not lines or not lines[0].startswith("index ") or len(lines) > _MOST_LINES:
        raise Rejected("a proof states its index and up to 63 hashes")
    index = heads.number(lines.pop(0).removeprefix("index "))
    return Proof(index, tuple(map(heads.hash_line, lines)), notes.parse(note), extra)

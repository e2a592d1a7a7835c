"""The Merkle tree of RFC 6962 (section 2.1) over SHA-256, with the proofs of RFC 9162 and of its subtrees.

Indices and sizes are plain ints, hashes are 32 bytes. A tree is anything that answers `node(level, index)`: the hash of
the complete subtree of 2**level leaves that starts at leaf index * 2**level. So proofs come alike from memory and from
tiles on disk.

Sources: RFC 6962 section 2.1, RFC 9162 sections 2.1.3 and 2.1.4 (verification), draft-ietf-plants-merkle-tree-certs
section 4 (subtrees).
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence

from jaxlm.governance.errors import Rejected

SIZE = 32
LIMIT = 1 << 63
EMPTY = hashlib.sha256(b"").digest()
Node = Callable[[int, int], bytes]


def leaf_hash(entry: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(node: Node, start: int, end: int) -> bytes:
    """The hash of leaves [start, end). Raises ValueError unless the range is a subtree or starts at 0."""
    if start == end:
        return EMPTY
    if not is_subtree(start, end):
        raise ValueError(f"[{start}, {end}) is no subtree")
    # Peaks from left to right, joined from the right: the last ones are the smallest.
    peaks, at = [], start
    while at < end:
        level = (end - at).bit_length() - 1
        peaks.append(node(level, at >> level))
        at += 1 << level
    joined = peaks.pop()
    while peaks:
        joined = node_hash(peaks.pop(), joined)
    return joined


def perfect(hashes: Sequence[bytes]) -> bytes:
    """The root of a number of hashes that is a power of two."""
    row = list(hashes)
    while len(row) > 1:
        row = [node_hash(row[at], row[at + 1]) for at in range(0, len(row), 2)]
    return row[0]


def is_subtree(start: int, end: int) -> bool:
    """True for a range that is one node of some tree: not empty, and aligned to the power of two that holds it."""
    return 0 <= start < end <= LIMIT and start % (1 << (end - start - 1).bit_length()) == 0


def inclusion_proof(node: Node, index: int, start: int, end: int) -> list[bytes]:
    """The audit path of leaf `index` in the subtree [start, end), from the leaf up."""
    if not is_subtree(start, end) or not start <= index < end:
        raise ValueError(f"leaf {index} is not in a subtree [{start}, {end})")
    path = []
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(root(node, middle, end))
            end = middle
        else:
            path.append(root(node, start, middle))
            start = middle
    return path[::-1]


def consistency_proof(node: Node, start: int, end: int, size: int) -> list[bytes]:
    """The proof that the subtree [start, end) is part of the tree of `size`; with start 0 that of RFC 6962."""
    if not is_subtree(start, end) or end > size:
        raise ValueError(f"[{start}, {end}) is no subtree of a tree of {size}")
    path, low, high, known = [], 0, size, True
    while (start, end) != (low, high):
        middle = low + _split(high - low)
        if end <= middle:
            path.append(root(node, middle, high))
            high = middle
        else:
            path.append(root(node, low, middle))
            if start < middle:
                start, known = middle, False  # the rest is not the subtree itself any more
            low = middle
    if not known:
        path.append(root(node, low, high))
    return path[::-1]


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes, *, start: int = 0
) -> None:
    """Checks that `leaf` is the hash of leaf `index` of the subtree [start, size) with hash `root`.

    Raises:
        Rejected: it is not, or an argument cannot be.
    """
    _check_hashes([leaf, root, *proof])
    if not is_subtree(start, size):
        raise Rejected(f"inclusion: [{start}, {size}) is no subtree")
    if not start <= index < size:
        raise Rejected(f"inclusion: leaf {index} is outside [{start}, {size})")
    at, last, value = index - start, size - start - 1, leaf
    for sibling in proof:
        if last == 0:
            raise Rejected("inclusion: the proof is too long")
        if at & 1 or at == last:
            value = node_hash(sibling, value)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            value = node_hash(value, sibling)
        at, last = at >> 1, last >> 1
    if last != 0:
        raise Rejected("inclusion: the proof is too short")
    if value != root:
        raise Rejected(f"inclusion: leaf {index} does not lead to the root")


def verify_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """Checks that the tree of `old` leaves is the beginning of that of `new`; `old` 0 proves nothing: rejected.

    Raises:
        Rejected: it is not, or an argument cannot be.
    """
    if old == 0:
        raise Rejected("consistency: every tree starts with the empty one, so a proof from size 0 proves nothing")
    verify_subtree(0, old, new, proof, old_root, new_root)


def verify_subtree(start: int, end: int, size: int, proof: Sequence[bytes], part: bytes, whole: bytes) -> None:
    """Checks that `part` is the hash of the subtree [start, end) of the tree of `size` with root `whole`.

    An empty range is part of any tree. Roots are compared as they are where nothing is hashed.

    Raises:
        Rejected: it is not, or an argument cannot be.
    """
    if 0 <= start == end <= size <= LIMIT and part == EMPTY and not proof:
        return
    _check_hashes([part, whole, *proof] if proof else [])
    if not is_subtree(start, end) or not end <= size <= LIMIT:
        raise Rejected(f"consistency: [{start}, {end}) is no subtree of a tree of {size}")
    first, second, top = start, end - 1, size - 1
    while first != second and (second == top or second & 1):
        first, second, top = first >> 1, second >> 1, top >> 1
    rest = list(proof)
    if first == second:
        old = new = part
    elif rest:
        old = new = rest.pop(0)
    else:
        raise Rejected("consistency: the proof is empty")
    for value in rest:
        if top == 0:
            raise Rejected("consistency: the proof is too long")
        if second & 1 or second == top:
            if first < second:
                old = node_hash(value, old)
            new = node_hash(value, new)
            while not second & 1 and second:
                first, second, top = first >> 1, second >> 1, top >> 1
        else:
            new = node_hash(new, value)
        first, second, top = first >> 1, second >> 1, top >> 1
    if top != 0:
        raise Rejected("consistency: the proof is too short")
    if old != part or new != whole:
        raise Rejected(f"consistency: [{start}, {end}) and the tree of {size} do not share a history")


class Tree:
    """A tree in memory that grows at the end."""

    def __init__(self, leaves: Iterable[bytes] = ()):
        self._levels: list[list[bytes]] = [[]]
        for leaf in leaves:
            self.append(leaf)

    @property
    def size(self) -> int:
        return len(self._levels[0])

    def append(self, leaf: bytes) -> None:
        """Adds one leaf, given as its hash."""
        level, value = 0, leaf
        self._levels[0].append(value)
        while len(self._levels[level]) % 2 == 0:
            value = node_hash(self._levels[level][-2], value)
            level += 1
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append(value)

    def node(self, level: int, index: int) -> bytes:
        return self._levels[level][index]

    def root(self, size: int | None = None) -> bytes:
        return root(self.node, 0, self.size if size is None else size)

    def inclusion(self, index: int, size: int) -> list[bytes]:
        return inclusion_proof(self.node, index, 0, size)

    def consistency(self, old: int, new: int) -> list[bytes]:
        return consistency_proof(self.node, 0, old, new)


def _split(count: int) -> int:
    """The largest power of two below `count`."""
    return 1 << ((count - 1).bit_length() - 1)


def _check_hashes(hashes: Iterable[bytes]) -> None:
    if any(len(value) != SIZE for value in hashes):
        raise Rejected(f"a hash is not {SIZE} bytes long")

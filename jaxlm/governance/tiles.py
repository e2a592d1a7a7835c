"""Where hashes and entries of a log lie: static files in the layout of https://c2sp.org/tlog-tiles.

A tile of level L holds up to 256 hashes of complete subtrees of 256**L leaves; `tile/entries/N` holds the entries under
tile N of level 0, each after its length. Tiles that are not full yet carry their width in their path.
"""

from collections.abc import Callable, Iterable

from jaxlm.governance import merkle
from jaxlm.governance.errors import Rejected

WIDTH, HEIGHT = 256, 8
LONGEST_ENTRY = 65_535
Read = Callable[[str], bytes]


def path(level: int | None, index: int, width: int = WIDTH) -> str:
    """Of the tile `index` of `level`, None for the entries: `tile/0/x001/x234/067.p/12`."""
    parts = [f"{index % 1000:03d}"]
    while (index := index // 1000) > 0:
        parts.append(f"x{index % 1000:03d}")
    kind = "entries" if level is None else str(level)
    return f"tile/{kind}/{'/'.join(reversed(parts))}" + ("" if width == WIDTH else f".p/{width}")


def levels(size: int) -> Iterable[tuple[int, int]]:
    """Level and number of hashes of each level that a log of `size` entries has tiles of."""
    level = 0
    while size > 0:
        yield level, size
        level, size = level + 1, size >> HEIGHT


def width(count: int, index: int) -> int:
    """How many of `count` hashes tile `index` holds, 0 to 256."""
    return max(0, min(WIDTH, count - index * WIDTH))


def pack(entries: Iterable[bytes]) -> bytes:
    """A bundle of entries. Raises Rejected for one that is too long."""
    pieces = []
    for entry in entries:
        if len(entry) > LONGEST_ENTRY:
            raise Rejected(f"an entry of {len(entry):,} bytes is longer than {LONGEST_ENTRY:,}")
        pieces += [len(entry).to_bytes(2, "big"), entry]
    return b"".join(pieces)


def unpack(bundle: bytes) -> list[bytes]:
    """The entries of a bundle. Raises Rejected when it ends inside one."""
    entries, at = [], 0
    while at < len(bundle):
        length = int.from_bytes(bundle[at : at + 2], "big")
        entry = bundle[at + 2 : at + 2 + length]
        if at + 2 > len(bundle) or len(entry) != length:
            raise Rejected("a bundle of entries ends inside one")
        entries.append(entry)
        at += 2 + length
    return entries


class Tiles:
    """Hashes and entries of a log of `size` entries, read tile by tile and kept; nothing here is trusted.

    Args:
        read: the bytes of a path such as `tile/0/000.p/5`; raises OSError when there is none.
        size: entries of the log.
    """

    def __init__(self, read: Read, size: int):
        self.size = size
        self._read = read
        self._kept: dict[tuple[int | None, int], list[bytes]] = {}

    def node(self, level: int, index: int) -> bytes:
        """The hash of the complete subtree of 2**level leaves number `index`. Raises Rejected."""
        tile_level, inside = divmod(level, HEIGHT)
        first = index << inside
        hashes = self.hashes(tile_level, first // WIDTH)
        low = first % WIDTH
        if low + (1 << inside) > len(hashes):
            raise Rejected(f"node {level}/{index} is outside a log of {self.size} entries")
        return merkle.perfect(hashes[low : low + (1 << inside)])

    def hashes(self, level: int, index: int) -> list[bytes]:
        """The hashes in one tile. Raises Rejected when it is missing or of the wrong length."""
        if (level, index) not in self._kept:
            raw = self._tile(level, index)
            wanted = width(self.size >> (HEIGHT * level), index)
            if len(raw) != wanted * merkle.SIZE:
                raise Rejected(f"{path(level, index, wanted)} is {len(raw)} bytes, not {wanted * merkle.SIZE}")
            self._kept[level, index] = [raw[at : at + merkle.SIZE] for at in range(0, len(raw), merkle.SIZE)]
        return self._kept[level, index]

    def entries(self, index: int) -> list[bytes]:
        """The entries of one bundle. Raises Rejected when it is missing or holds another number of them."""
        if (None, index) not in self._kept:
            found = unpack(self._tile(None, index))
            wanted = width(self.size, index)
            if len(found) != wanted:
                raise Rejected(f"{path(None, index, wanted)} holds {len(found)} entries, not {wanted}")
            self._kept[None, index] = found
        return self._kept[None, index]

    def entry(self, index: int) -> bytes:
        if not 0 <= index < self.size:
            raise Rejected(f"entry {index} is outside a log of {self.size} entries")
        return self.entries(index // WIDTH)[index % WIDTH]

    def root(self) -> bytes:
        return merkle.root(self.node, 0, self.size)

    def _tile(self, level: int | None, index: int) -> bytes:
        """A tile as wide as the size asks for; a full one may stand in for it, cut to the width."""
        count = self.size >> (HEIGHT * (level or 0))
        wanted = width(count, index)
        if wanted == 0:
            raise Rejected(f"{path(level, index)} is outside a log of {self.size} entries")
        try:
            return self._read(path(level, index, wanted))
        except OSError:
            if wanted == WIDTH:
                raise Rejected(f"{path(level, index, wanted)} is missing") from None
        try:
            full = self._read(path(level, index))
        except OSError:
            raise Rejected(f"{path(level, index, wanted)} is missing") from None
        return full[: wanted * merkle.SIZE] if level is not None else pack(unpack(full)[:wanted])

"""Reads the log of a run and checks everything about it that can be checked offline."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jaxlm.governance import canonical, entries, heads, merkle, notes, rotation, tiles
from jaxlm.governance.disk import Disk, refuse_link
from jaxlm.governance.entries import Entry
from jaxlm.governance.errors import Rejected
from jaxlm.governance.heads import Head
from jaxlm.governance.keys import Keys, check_pin
from jaxlm.governance.log import HEAD, reader
from jaxlm.governance.notes import Note, Verifier
from jaxlm.governance.rotation import Chain
from jaxlm.governance.tiles import WIDTH, Tiles

FREQUENT = (b'"type":"train.step"}', b'"type":"train.layer"}')


@dataclass(frozen=True, slots=True)
class Known:
    """A log as it was read and verified against its own head.

    Attributes:
        keys: of the log, by the public key beside it and the handovers that lead to it.
        head: its signed head.
        note: with its signatures.
        entries: parsed, those of single steps left out unless asked for.
        alerts: what is odd but breaks nothing; only known after a full reading.
    """

    keys: Chain
    head: Head
    note: Note
    entries: list[Entry]
    alerts: list[str] = field(default_factory=list)

    @property
    def key(self) -> Verifier:
        return self.keys.present

    @property
    def run(self) -> str:
        return run_of(self.key, self.key.name.rsplit("/", 1)[-1])


def origin_of(run: str, name: str) -> str:
    """How the log `name` of a run is called in its heads, so that none can be put in the place of another."""
    return f"jaxlm/{run}/{name}"


def run_of(key: Verifier, name: str) -> str:
    """The id of the run whose log `name` this is the key of. Raises Rejected for the key of another log."""
    match key.name.split("/"):
        case ["jaxlm", run, last] if run and last == name:
            return run
    raise Rejected(f"{name}.vkey is the key of {key.name}, and here belongs that of {origin_of('RUN', name)}")


def read_log(audit: Path, name: str = "log", *, keys: Keys | None, full: bool = False) -> Known:
    """The log `name` in an audit folder, every hash recomputed from the entries.

    Args:
        audit: such as RUN/audit.
        name: of the log.
        keys: whose pinned heads it must not fall behind; None looks at no pins.
        full: parse every entry and check the chains of the hosts too.

    Raises:
        Rejected: something in there is not what the head was signed over.
    """
    folder = audit / name
    for path in (audit, folder):
        refuse_link(path)
    disk = Disk()
    try:
        key = notes.parse_verifier(disk.read(audit / f"{name}.vkey").decode())
        run_of(key, name)
        # Before the head: the run may go on while it is read, and what it has pinned by then is never ahead of that.
        seen = None if keys is None else keys.pinned(key.name)
        head, note = heads.read(disk.read(folder / HEAD), key)
    except (OSError, UnicodeDecodeError) as error:
        raise Rejected(f"{folder} is no log: {getattr(error, 'strerror', None) or error}") from None
    found = reader(folder, head.size)
    raws = verified(found, head)
    if seen is not None:
        check_pin(seen, head, found)
    alerts: list[str] = []
    if full:
        known, walked = entries.walk(raws)
        alerts = walked.alerts
    else:
        known = [entries.parse(index, raw) for index, raw in enumerate(raws) if not raw.endswith(FREQUENT)]
    keyring = rotation.follow(key, known, lambda size: merkle.root(found.node, 0, size), head.size)
    return Known(keyring, head, note, known, alerts)


def verified(found: Tiles, head: Head) -> Iterator[bytes]:
    """The entries of a log in order, after every tile was recomputed from them and their root found in the head.

    Raises:
        Rejected: naming the first tile that is not the one of these entries.
    """
    row: list[bytes] = []
    for index in range(-(-head.size // WIDTH)):
        row += map(merkle.leaf_hash, found.entries(index))
    level = 0
    while row:
        for index in range(-(-len(row) // WIDTH)):
            if found.hashes(level, index) != row[index * WIDTH : (index + 1) * WIDTH]:
                width = tiles.width(len(row), index)
                raise Rejected(f"{tiles.path(level, index, width)} is not made of the entries below it")
        full = len(row) // WIDTH
        row = [merkle.perfect(row[n * WIDTH : (n + 1) * WIDTH]) for n in range(full)]
        level += 1
    if found.root() != head.root:
        raise Rejected("the entries do not lead to the signed root")
    return (found.entry(index) for index in range(head.size))


def body_text(entry: Entry) -> str:
    """What an entry says, on one line."""
    return canonical.dump(entries.finite(entry.body)).decode()

"""What a run writes into its log: typed entries in canonical JSON, each chained to the one before of the same host.

    {"boot": "...", "body": {...}, "host": "...", "prev": "...", "schema": 1, "seq": 7, "t_mono": 1.5, "t_wall": 1.7e9,
     "type": "train.step"}

`seq` counts the entries of one start of one host from 0; `prev` is the SHA-256 of that host's entry before, also of
the start before, and zeros for its first. So an entry that was dropped, repeated or moved breaks the chain, whoever
ordered the log. Order comes from the log and `seq` alone; clocks are information.
"""

import hashlib
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxlm.governance import canonical
from jaxlm.governance.errors import Rejected

SCHEMA = 1
FIRST = "0" * 64
KINDS: dict[str, frozenset[str]] = {
    "run.start": frozenset({"run", "stage", "config", "plan", "data", "signer", "node"}),
    "plan.adopt": frozenset({"step", "plan", "summary"}),
    "ckpt.commit": frozenset({"step", "manifest", "payload", "tensor_root"}),
    "ckpt.restore": frozenset({"step", "manifest", "tensor_root"}),
    "ckpt.snapshot": frozenset({"step", "payload", "name", "digest"}),
    "train.layer": frozenset({"step", "gradient", "weight", "update"}),
    "train.step": frozenset({"step", "loss", "batch"}),
    "eval": frozenset({"step"}),
    "infer.io": frozenset({"request", "commitment"}),
    "access": frozenset({"command", "account"}),
    "dp.charge": frozenset({"mechanism", "epsilon", "state"}),
    "policy.load": frozenset({"policy", "before"}),
    "policy.judged": frozenset({"policy", "steps"}),
    "policy.verdict": frozenset({"rule", "policy", "action"}),
    "policy.approval": frozenset({"verdict", "decision", "note"}),
    "key.rotate": frozenset({"of", "old", "new", "size", "root", "signatures"}),
    "erasure": frozenset({"indices", "basis"}),
}
"""The types of entries, and what the body of each must hold."""

_KEYS = {"boot", "body", "host", "prev", "schema", "seq", "t_mono", "t_wall", "type"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as it was read.

    Attributes:
        index: in the log, from 0.
        kind: one of KINDS.
        body: what it says.
        host, boot, seq, prev: its place in the chain of its host.
        t_mono: seconds of that host's clock that only goes forward.
        t_wall: POSIX seconds by that host's clock, whatever it says.
    """

    index: int
    kind: str
    body: dict[str, Any]
    host: str
    boot: str
    seq: int
    prev: str
    t_mono: float
    t_wall: float


def digest(entry: bytes) -> str:
    """What the next entry of the same host calls `prev`."""
    return hashlib.sha256(entry).hexdigest()


def parse(index: int, raw: bytes) -> Entry:
    """Raises Rejected unless `raw` is an entry of a known type in canonical form."""
    value = canonical.load(raw)
    if not isinstance(value, dict) or value.keys() != _KEYS:
        raise Rejected(f"entry {index} has other fields than an entry")
    if value["schema"] != SCHEMA:
        raise Rejected(f"entry {index} is of schema {value['schema']}, this jaxlm reads {SCHEMA}")
    check_body(str(value["type"]), value["body"], f"entry {index}")
    texts = all(isinstance(value[key], str) for key in ("host", "boot", "prev", "type"))
    numbers = all(isinstance(value[key], int | float) for key in ("seq", "t_mono", "t_wall"))
    if not texts or not numbers:
        raise Rejected(f"entry {index} has a field of the wrong type")
    fields = [value[key] for key in ("type", "body", "host", "boot", "seq", "prev", "t_mono", "t_wall")]
    return Entry(index, *fields)


def check_body(kind: str, body: Any, where: str) -> None:
    """Raises Rejected unless `body` holds what an entry of this kind must."""
    if kind not in KINDS:
        raise Rejected(f"{where} is of the unknown type {kind!r}")
    if not isinstance(body, dict) or not KINDS[kind] <= body.keys():
        lacking = ", ".join(sorted(KINDS[kind] - (body.keys() if isinstance(body, dict) else set())))
        raise Rejected(f"{where} ({kind}) lacks {lacking}")


@dataclass
class Chain:
    """Where the next entry of one start of one host goes on."""

    host: str
    boot: str
    prev: str = FIRST
    seq: int = 0

    def entry(
        self, kind: str, body: Mapping[str, Any], t_mono: float | None = None, t_wall: float | None = None
    ) -> bytes:
        """The next entry, of now by default. Raises Rejected when the body is not that of the kind or no JSON."""
        check_body(kind, body, "a new entry")
        t_mono, t_wall = time.monotonic() if t_mono is None else t_mono, time.time() if t_wall is None else t_wall
        raw = canonical.dump(
            {
                "schema": SCHEMA,
                "type": kind,
                "host": self.host,
                "boot": self.boot,
                "seq": self.seq,
                "prev": self.prev,
                "t_mono": round(t_mono, 6),
                "t_wall": round(t_wall, 6),
                "body": finite(body),
            }
        )
        self.prev, self.seq = digest(raw), self.seq + 1
        return raw


@dataclass
class _Host:
    boot: str
    seq: int
    prev: str
    t_wall: float
    boots: set[str] = field(default_factory=set)


@dataclass
class Walk:
    """Checks entries one after the other, in the order of the log.

    Attributes:
        skew: the most seconds by which a host's wall clock went back.
        alerts: what is odd but breaks nothing.
    """

    skew: float = 0.0
    alerts: list[str] = field(default_factory=list)
    _hosts: dict[str, _Host] = field(default_factory=dict)

    def step(self, index: int, raw: bytes) -> Entry:
        """Raises Rejected when the entry is malformed or does not follow its host's entry before."""
        entry = parse(index, raw)
        before = self._hosts.get(entry.host)
        prev = FIRST if before is None else before.prev
        if entry.prev != prev:
            raise Rejected(f"entry {index} of host {entry.host} does not follow that host's entry before: chain broken")
        if before is None or entry.boot != before.boot:
            boots = set() if before is None else before.boots
            if entry.boot in boots:
                raise Rejected(f"entry {index} repeats the start {entry.boot} of host {entry.host}")
            if entry.seq != 0:
                raise Rejected(f"entry {index} begins a start of host {entry.host} with number {entry.seq}")
            before = _Host(entry.boot, -1, prev, entry.t_wall, {*boots, entry.boot})
            self._hosts[entry.host] = before
        if entry.seq != before.seq + 1:
            raise Rejected(f"entry {index} of host {entry.host} has number {entry.seq}, not {before.seq + 1}")
        if (back := before.t_wall - entry.t_wall) > max(1.0, self.skew):
            self.skew = back
            self.alerts.append(f"the clock of host {entry.host} went back {back:.0f} s at entry {index}")
        before.seq, before.prev, before.t_wall = entry.seq, digest(raw), entry.t_wall
        return entry


def walk(raws: Iterable[bytes]) -> tuple[list[Entry], Walk]:
    """All entries of a log, checked. Raises Rejected at the first that does not belong."""
    checking = Walk()
    return [checking.step(index, raw) for index, raw in enumerate(raws)], checking


def finite(value: Any) -> Any:
    """The same value with NaN and infinities as text, which JSON can hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value

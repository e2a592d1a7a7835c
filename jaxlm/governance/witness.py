"""A witness of logs: cosigns each head it is shown once it follows from the one before (https://c2sp.org/tlog-witness).

It keeps one head per log, whose newest size never goes back, and writes it before it answers. Two heads of one size,
or one that is not consistent, are kept as evidence: both are signed by the log. Where the log's own entries, signed by
the key that it knows, hand over to another one (`succession.py`), it knows that one from then on, and for this log no
longer the old one.
"""

import base64
import hashlib
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from jaxlm.governance import heads, merkle, notes, succession
from jaxlm.governance.disk import Disk
from jaxlm.governance.errors import Rejected
from jaxlm.governance.heads import Head
from jaxlm.governance.notes import Note, Verifier, WitnessKey

PATH = "/add-checkpoint"
_MOST_PROOF, _LONGEST = 63, 1 << 18
_ROTATED = ".rotated"


class Refused(Exception):
    """An answer other than yes: the status of HTTP, and what to say."""

    def __init__(self, status: int, body: str, kind: str = "text/plain"):
        super().__init__(f"{status}: {body.strip()}")
        self.status, self.body, self.kind = status, body, kind


class Witness:
    """Remembers the newest head of each log in `folder`.

    Args:
        key: cosigns.
        logs: the keys of the logs it knows; a name may have several.
        folder: where heads and evidence are kept, made when new.
        clock: POSIX seconds.
        nodes: raw public keys, 32 bytes, whose logs are known whatever their name. A key that one of them hands over to
            counts too.
        disk: how to reach the folder.
    """

    def __init__(
        self,
        key: WitnessKey,
        logs: Iterable[Verifier],
        folder: Path,
        clock: Callable[[], float] = time.time,
        nodes: Iterable[bytes] = (),
        disk: Disk | None = None,
    ):
        self.key, self._clock, self._disk, self._folder = key, clock, disk or Disk(), folder
        self._logs: dict[str, list[Verifier]] = {}
        for log in logs:
            if log.key == key.verifier.key:
                raise Rejected(f"the witness would cosign with the key of the log {log.name}: a log is no witness")
            self._logs.setdefault(log.name, []).append(log)
        self._nodes = list(nodes)
        if key.verifier.key in self._nodes:
            raise Rejected("the witness would cosign with the key of a log: a log is no witness")
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._successions: dict[str, list[tuple[int, Verifier, Verifier]]] = {}
        for name in self._disk.names(folder):
            if name.endswith(_ROTATED):
                self._follow(_parsed(self._disk.read(folder / name)))

    def add(self, body: bytes) -> str:
        """The signature line for a request `old SIZE`, proof lines, an empty line, a head.

        Raises:
            Refused: with the status that the protocol asks for.
        """
        old, proof, note = _request(body)
        try:
            head = heads.parse(note.text)
        except Rejected as error:
            raise Refused(400, f"{error}\n") from None
        known = self._known(head.origin)
        try:
            if not note.signed_by(known):
                raise Rejected("no signature of a known key of this log")
        except Rejected as error:
            raise Refused(403, f"{error}\n") from None
        with self._lock:  # comparing and keeping must be one, or a slow request rolls back a fast one
            self._admit(old, proof, head, note)
            return self._cosign(head, note)

    def rotate(self, body: bytes) -> str:
        """The signature line for a request of `succession`: as `add`, of a log that has handed over to another key.

        Raises:
            Refused: as `add` does; with 403 where the handovers do not lead from a known key to that of the head.
        """
        try:
            asked = succession.parse(body)
            head = heads.parse(asked.note.text)
        except Rejected as error:
            raise Refused(400, f"{error}\n") from None
        with self._lock:
            done = self._successions.get(head.origin, [])
            known, before = self._known(head.origin), self.newest(head.origin)
            began = {old for _, old, _ in done}
            try:
                found = asked.follow(head, [*known, *began])
                if found[: len(done)] != done:  # all of the log, so a key that handed over cannot do so again
                    raise Rejected("the log has handed over to another key before")
                if any(before is not None and index + 1 < before.size for index, _, _ in found[len(done) :]):
                    raise Rejected("the old key has signed more entries than it says there were")
                if self.key.verifier.key in {new.key for _, _, new in found}:
                    raise Rejected("this is the key of the witness: a log is no witness")
            except Rejected as error:
                raise Refused(403, f"{error}\n") from None
            self._admit(asked.old, list(asked.proof), head, asked.note)
            lines = "".join(f"{index} {old} {new}\n" for index, old, new in found)
            self._write(f"{_name(head.origin)}{_ROTATED}", lines.encode())  # before the head, which needs it
            self._follow(found)
            return self._cosign(head, asked.note)

    def _known(self, origin: str) -> list[Verifier]:
        """The keys that may sign heads of this log now. Raises Refused where there is none."""
        if origin in self._successions:
            return [self._successions[origin][-1][2]]
        known = [*self._logs.get(origin, []), *(Verifier(origin, notes.ED25519, key) for key in self._nodes)]
        if not known:
            raise Refused(404, f"the log {origin} is not known here\n")
        return known

    def _follow(self, found: list[tuple[int, Verifier, Verifier]]) -> None:
        """From now on the last of these keys is that of their log."""
        self._successions[found[0][1].name] = found
        for _, old, new in found:
            if old.key in self._nodes and new.key not in self._nodes:
                self._nodes.append(new.key)

    def _admit(self, old: int, proof: list[bytes], head: Head, note: Note) -> None:
        """Raises Refused unless the head follows from the newest one."""
        if old > head.size:
            raise Refused(400, f"the old size {old} is beyond the head's {head.size}\n")
        before = self.newest(head.origin)
        size = 0 if before is None else before.size
        if old != size:
            raise Refused(409, f"{size}\n", "text/x.tlog.size")
        self._check(before, head, proof, note)

    def _cosign(self, head: Head, note: Note) -> str:
        self._keep(head, note)
        return self.key.cosign(note.text, int(self._clock())).line()

    def newest(self, origin: str) -> Head | None:
        """The newest head that was cosigned of this log."""
        note = self._kept(origin)
        return None if note is None else heads.parse(note.text)

    def published(self, name: str) -> bytes | None:
        """The newest head by SHA-256 of its log's origin, hex, for monitors."""
        path = self._folder / name
        return path.read_bytes() if len(name) == 64 and name.isalnum() and path.is_file() else None

    def _check(self, before: Head | None, head: Head, proof: list[bytes], note: Note) -> None:
        size = 0 if before is None else before.size
        if before is not None and size == head.size:
            if head.root != before.root or proof:
                self._accuse(head.origin, note)
                raise Refused(409, f"{size}\n", "text/x.tlog.size")
        elif size == 0:  # every tree follows from the empty one, and there is nothing to prove
            if proof or (head.size == 0 and head.root != merkle.EMPTY):
                raise Refused(422, "a first head needs no proof\n")
        else:
            assert before is not None
            try:
                merkle.verify_consistency(size, head.size, proof, before.root, head.root)
            except Rejected as error:
                self._accuse(head.origin, note)
                raise Refused(422, f"{error}\n") from None

    def _keep(self, head: Head, note: Note) -> None:
        self._write(_name(head.origin), bytes(note))

    def _write(self, name: str, content: bytes) -> None:
        aside = self._folder / f"{name}.unfinished"
        self._disk.write(aside, content)
        self._disk.sync(aside)
        self._disk.rename(aside, self._folder / name)
        self._disk.sync_folder(self._folder)

    def _kept(self, origin: str) -> Note | None:
        try:
            return notes.parse(self._disk.read(self._folder / _name(origin)))
        except FileNotFoundError:
            return None

    def _accuse(self, origin: str, note: Note) -> None:
        """Keeps both signed heads that cannot belong to one log: proof that its operator misbehaved."""
        before = self._kept(origin)
        assert before is not None
        digest = hashlib.sha256(bytes(note)).hexdigest()[:16]
        path = self._folder / f"{_name(origin)}.evidence-{digest}"
        self._disk.write(path, bytes(before) + b"\n" + bytes(note))
        self._disk.sync(path)


def request(old: int, proof: Iterable[bytes], note: Note) -> bytes:
    """What a log sends to a witness."""
    lines = [f"old {old}", *(base64.b64encode(value).decode() for value in proof), "", ""]
    return "\n".join(lines).encode() + bytes(note)


def serve(witness: Witness, host: str, port: int) -> ThreadingHTTPServer:
    """A server that answers for `witness`, listening but not serving yet; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            answer = {PATH: witness.add, succession.PATH: witness.rotate}.get(self.path)
            if answer is None:
                return self._answer(404, f"only {PATH} and {succession.PATH} are here\n")
            if not 0 < length <= _LONGEST:
                self.close_connection = True
                return self._answer(413, f"a request has 1 to {_LONGEST} bytes\n")
            try:
                self._answer(200, answer(self.rfile.read(length)))
            except Refused as refused:
                self._answer(refused.status, refused.body, refused.kind)

        def do_GET(self) -> None:
            parts = self.path.strip("/").split("/")
            found = witness.published(parts[0]) if len(parts) == 2 and parts[1] == "checkpoint" else None
            if found is None:
                return self._answer(404, "no such head\n")
            self._answer(200, found.decode())

        def _answer(self, status: int, body: str, kind: str = "text/plain; charset=utf-8") -> None:
            raw = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: object) -> None:
            return

    return ThreadingHTTPServer((host, port), Handler)


def _request(body: bytes) -> tuple[int, list[bytes], Note]:
    front, gap, rest = body.partition(b"\n\n")
    try:
        lines = front.decode("ascii").split("\n")
        if not gap or not lines[0].startswith("old ") or len(lines) > _MOST_PROOF + 1:
            raise Rejected("a request is `old SIZE`, up to 63 hashes, an empty line and a head")
        return heads.number(lines[0][4:]), [heads.hash_line(line) for line in lines[1:]], notes.parse(rest)
    except (Rejected, UnicodeDecodeError) as error:
        raise Refused(400, f"{error}\n") from None


def _parsed(content: bytes) -> list[tuple[int, Verifier, Verifier]]:
    """Handovers as `Witness` keeps them: index, old key and new one, a line each."""
    lines = [line.split(" ") for line in content.decode().splitlines()]
    return [(int(index), notes.parse_verifier(old), notes.parse_verifier(new)) for index, old, new in lines]


def _name(origin: str) -> str:
    return hashlib.sha256(origin.encode()).hexdigest()

"""The audit trail of one process of a run: entries come in from any thread, and are made durable in batches.

RUN/audit/log/           the log of process 0, static files in the layout of tlog-tiles
RUN/audit/log.vkey       the public key of its heads
RUN/audit/log-1/ ...     those of the other processes
RUN/audit/readers/ ...   of commands that open the run
RUN/audit/signer.pem     the public key of its checkpoints
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm.governance import entries, notes
from jaxlm.governance.audit import origin_of, read_log, run_of
from jaxlm.governance.disk import Disk
from jaxlm.governance.entries import Chain, Entry
from jaxlm.governance.errors import GovernanceError, Rejected
from jaxlm.governance.keys import Keys, write_public
from jaxlm.governance.log import HEAD, Log
from jaxlm.governance.notes import LogKey
from jaxlm.governance.rotation import hand_over

BATCH = 256
_MOST = 1 << 16


class Trail:
    """Writes the log `name` in an audit folder. Use one per process; close it, or what was not acknowledged is lost.

    Args:
        audit: the folder, made when it is new.
        name: of the log in it.
        keys: the private keys of this account.
        run: the id of the run, for a log that is new; by default that of the other logs here, or a new one.
        flush_seconds: how long an entry may wait for company before it is made durable.
        patience: seconds to wait while the log is being written elsewhere.

    Attributes:
        history: the entries that were there when it was opened, those of single steps left out; and those by which the
            keys before the present ones handed over, if they had not yet.
        verifier: the public key of the log.

    Raises:
        GovernanceError: the log is not ours to write, is damaged, was rolled back, or is being written elsewhere.
    """

    def __init__(
        self,
        audit: Path,
        name: str = "log",
        *,
        keys: Keys | None = None,
        flush_seconds: float = 1.0,
        run: str | None = None,
        patience: float = 0.0,
    ):
        self.audit, self.name, self._given = audit, name, run
        self.keys = keys or Keys(outside=audit.parent)
        disk = Disk()
        new = not audit.exists()
        disk.make_folder(audit)
        if new:
            disk.sync_folder(audit.parent)
        key = self._key()
        self.origin = key.name
        self.history: list[Entry] = []
        self._log = Log(audit / name, key, patience=patience, admit=self._admit)
        try:
            mine = self._last_of(host := socket.gethostname())
            self._chain = Chain(host, uuid.uuid4().hex, mine)
            hand_over(self._log, self._chain, key, self.keys, audit, self.history)
        except BaseException:
            self._log.close()
            raise
        self.verifier = self._log.verifier
        self.keys.pin(self._log.head)
        self._flush_seconds = flush_seconds
        self._change = threading.Condition()
        self._waiting: list[tuple[str, Mapping[str, Any], float, float]] = []
        self._taken = self._done = 0  # entries given to `record`, and those of them that are durable
        self._urgent, self._closed, self._failure = False, False, None
        self._first = self._log.head.size
        self._thread = threading.Thread(target=self._work, name="audit", daemon=True)
        self._thread.start()

    @property
    def run(self) -> str:
        """Which run this is, in all its logs and signatures: random, made with its first log."""
        return self.origin.split("/")[1]

    @property
    def host(self) -> str:
        return self._chain.host

    @property
    def size(self) -> int:
        """Entries that are durable."""
        return self._first + self._done

    @property
    def waiting(self) -> int:
        """Entries that are not durable yet."""
        return self._taken - self._done

    def record(self, kind: str, body: Mapping[str, Any]) -> int:
        """Takes an entry and returns at once, with a ticket for `wait`.

        Raises:
            GovernanceError: the log cannot be written any more, or is too far behind.
        """
        entries.check_body(kind, body, "a new entry")
        with self._change:
            self._raise()
            if self._closed:
                raise GovernanceError(f"the audit log {self.audit / self.name} is closed")
            if len(self._waiting) >= _MOST:
                raise GovernanceError(f"{len(self._waiting):,} entries wait for the log {self.audit / self.name}")
            self._waiting.append((kind, body, time.monotonic(), time.time()))
            self._taken += 1
            if len(self._waiting) in (1, BATCH):
                self._change.notify_all()
            return self._taken

    def commit(self, kind: str, body: Mapping[str, Any]) -> int:
        """Takes an entry and returns its index in the log once it is durable, and all entries before it.

        Raises:
            GovernanceError: the log cannot be written.
        """
        ticket = self.record(kind, body)
        self.wait(ticket)
        return self._first + ticket - 1

    def wait(self, ticket: int) -> None:
        """Returns when the entry with this ticket is durable. Raises GovernanceError when it cannot be."""
        with self._change:
            while self._done < ticket:
                self._raise()
                self._urgent = True
                self._change.notify_all()
                self._change.wait()

    def close(self) -> None:
        """Makes everything durable and lets go of the log. Raises GovernanceError when that is not possible."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._thread.join()
        self._log.close()
        self._raise()

    def __enter__(self) -> "Trail":
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        try:
            self.close()
        except GovernanceError as failure:
            if error is None:
                raise
            error.add_note(str(failure))

    def find(self, kind: str) -> list[Entry]:
        """The entries of one type that were there when the log was opened."""
        return [entry for entry in self.history if entry.kind == kind]

    def _admit(self) -> None:
        """Reads and verifies what is there before anything is repaired: a log that is not the one that was seen here
        stays as it is, for whoever looks into it."""
        if os.path.lexists(self.audit / self.name / HEAD):
            self.history = read_log(self.audit, self.name, keys=self.keys).entries
        elif (seen := self.keys.pinned(self.origin)) is not None and seen.size:
            raise Rejected(
                f"the log {self.origin} was rolled back: it is gone, and {seen.size} entries were seen here before"
            )

    def _last_of(self, host: str) -> str:
        """The digest of the newest entry of this host, where its chain goes on."""
        found = self._log.tiles()
        for index in reversed(range(found.size)):
            if entries.parse(index, found.entry(index)).host == host:
                return entries.digest(found.entry(index))
        return entries.FIRST

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                self._change.wait_for(
                    lambda: self._urgent or self._closed or len(self._waiting) >= BATCH, self._flush_seconds
                )
                batch, self._waiting, self._urgent = self._waiting, [], False
            failure = None
            try:
                self._log.append([self._chain.entry(*item) for item in batch])
                self.keys.pin(self._log.head)
            except Exception as error:  # whatever it is, the run must hear of it
                failure = error
            with self._change:
                if failure is None:
                    self._done += len(batch)
                else:
                    self._failure = failure
                self._change.notify_all()
                if failure is not None:
                    return

    def _raise(self) -> None:
        if self._failure is not None:
            raise GovernanceError(f"the audit log {self.audit / self.name} cannot be written: {self._failure}")

    def _key(self) -> LogKey:
        """The key that signs the log, under its name: made when it is new, kept in its public key."""
        path = self.audit / f"{self.name}.vkey"
        if not os.path.lexists(path):
            if os.path.lexists(self.audit / self.name):
                raise Rejected(f"{path} is missing: it belongs to the log beside it")
            key = LogKey(origin_of(self._given or self._run(), self.name), self.keys.log())
            write_public(path, f"{key.verifier}\n".encode())
            return key
        known = notes.parse_verifier(Disk().read(path).decode())
        run_of(known, self.name)
        private = self.keys.log()
        if private.public_key().public_bytes_raw() != known.key:
            private = self.keys.retired_log(known.key)
        if private is None:
            raise GovernanceError(f"the log {self.audit / self.name} was begun with another key than those here")
        return LogKey(known.name, private)

    def _run(self) -> str:
        """The id of the run: that of its other logs, or a new one."""
        for other in sorted(self.audit.glob("*.vkey")):
            return run_of(notes.parse_verifier(Disk().read(other).decode()), other.stem)
        return uuid.uuid4().hex

"""Shows the heads of a log to its witnesses while it grows; training never waits for them."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from jaxlm.files import write_whole
from jaxlm.governance import notes
from jaxlm.governance.cosigning import cosign
from jaxlm.governance.errors import Rejected
from jaxlm.governance.log import HEAD, reader
from jaxlm.governance.quorum import Policy

SECONDS = 10.0


class Witnessing:
    """Asks from a thread of its own at once, then every so many seconds, and once more when it is closed.

    The newest head with a quorum lies in `NAME.cosigned` beside the log. A witness that does not answer is told to
    `alert` once, and again after it has answered.

    Args:
        folder: of the log, as audit/log.
        policy: witnesses with their URLs.
        alert: is told what is wrong, from the thread.
        seconds: between two heads.

    Attributes:
        size: of the newest head that has a quorum; -1 before there is one.
        since: when all that was there had a quorum last, by the clock that only goes forward; at first, its beginning.
    """

    def __init__(self, folder: Path, policy: Policy, alert: Callable[[str], None], seconds: float = SECONDS):
        self.folder, self.policy, self._alert, self._seconds = folder, policy, alert, seconds
        self.size, self.since = -1, time.monotonic()
        self._down: set[str] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="witnesses", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """After a last try, which may take as long as the slowest witness."""
        self._end.set()
        self._thread.join()

    def _work(self) -> None:
        ended, wait = False, 0.0
        while not ended:
            ended, wait = self._end.wait(wait), self._seconds
            try:
                self._ask()
            except Exception as error:  # a thread that dies would leave the log unwitnessed in silence
                self._complain("the witnesses", f"{type(error).__name__}: {error}")

    def _ask(self) -> None:
        note = notes.parse((self.folder / HEAD).read_bytes())
        size = int(note.text.split("\n")[1])
        if size == self.size:
            self.since = time.monotonic()
            return
        note, failed = cosign(self.policy, note, reader(self.folder, size))
        for name, why in failed.items():
            self._complain(name, why)
        self._down -= self.policy.witnesses.keys() - failed.keys()
        try:
            self.policy.check(note)
        except Rejected as error:
            self._complain("quorum", str(error))
            return
        self._down -= {"quorum", "the witnesses"}
        write_whole(cosigned(self.folder), bytes(note))
        self.size, self.since = size, time.monotonic()

    def _complain(self, name: str, why: str) -> None:
        if name not in self._down:
            self._down.add(name)
            self._alert(f"{name}: {why}")


def cosigned(folder: Path) -> Path:
    """Where the newest head with a quorum lies, of the log in `folder`."""
    return folder.with_name(f"{folder.name}.cosigned")

"""The engine of policies: rules are judged by a process of their own, which may do nothing but that.

It runs as another account where this one is root, with an empty environment in an empty folder, under limits and a
filter of system calls where Linux has one (`sandbox.py`). Whatever goes wrong with it, an answer that is late, broken,
or to another question, is an `EngineFailed`, and it is ended: a process that failed once is never asked again.
"""

import json
import os
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.governance import policy_worker
from jaxlm.governance.policy import Rule
from jaxlm.governance.verdicts import Said

START_SECONDS = 60.0
"""For the process to come up: it imports a parser."""
_LARGEST = 1 << 24
_CANARY, _SINGS = "canary:", "canary.sings"
"""A rule that is broken in every other question, at random: an engine that always gives one answer is found out."""


class EngineFailed(Exception):
    """There is no judgement; the message says why."""


class Engine:
    """Judges facts by rules. Starts at once, and is waited for when it is first asked.

    Args:
        rules: what is judged.
        deadline: seconds for one judgement of all of them.
        start_seconds: for the process to come up.

    Attributes:
        sandbox: what the process gave up, by its own tests; known once it has answered.
        failed: why it is of no use any more; None while it is.
    """

    def __init__(self, rules: Sequence[Rule], deadline: float, start_seconds: float = START_SECONDS):
        self.rules, self.deadline = tuple(rules), deadline
        self.sandbox: list[str] = []
        self.failed: str | None = None
        self._up = False
        self._asked = 0
        self._end = time.monotonic() + start_seconds
        self._folder = Path(tempfile.mkdtemp(prefix="jaxlm-policy-"))
        self._folder.chmod(0o555)
        here, there = socket.socketpair()
        self._socket = here
        paths = [path or os.getcwd() for path in sys.path]
        command = [sys.executable, "-I", policy_worker.__file__, json.dumps(paths)]
        try:
            with there:
                self._process = subprocess.Popen(
                    command,
                    env={},
                    cwd=self._folder,
                    stdin=there.fileno(),
                    stdout=there.fileno(),
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C in a terminal reaches a whole group of processes
                )
        except OSError as error:
            here.close()
            shutil.rmtree(self._folder)
            raise EngineFailed(f"the policy process cannot be started: {error}") from None

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> None:
        """Returns once the process is up and has the rules. Raises EngineFailed."""
        if self._up:
            return
        hello = self._guarded(lambda: self._receive(self._end))
        if not isinstance(given := hello.get("sandbox"), list):
            raise self._lost(f"it said {str(hello.get('failed', hello))[:300]}")
        self.sandbox = [str(each) for each in given]
        self._up = True
        self.load(self.rules, self.deadline)

    def load(self, rules: Sequence[Rule], deadline: float) -> None:
        """Judges by these rules from now on. Raises EngineFailed."""
        self.rules, self.deadline = tuple(rules), deadline
        if self._up:
            asked = {_CANARY: _SINGS, **{rule.name: rule.when for rule in rules}}
            answer = self._ask({"rules": asked}, max(deadline, START_SECONDS))
            if answer.get("loaded") != sorted(asked):
                raise self._lost("it did not take the rules")

    def judge(self, facts: Mapping[str, Any], rules: Sequence[Rule] | None = None) -> dict[str, Said]:
        """What is said of these rules, by default of all. Raises EngineFailed."""
        self.ready()
        sings = bool(secrets.randbits(1))
        names = {rule.name for rule in (self.rules if rules is None else rules)}
        question = {"facts": {**facts, "canary": {"sings": sings}}, "of": [_CANARY, *sorted(names)]}
        said = self._ask(question, self.deadline).get("said")
        if not isinstance(said, dict) or said.pop(_CANARY, None) is not sings:
            raise self._lost("its answer is none")
        if said.keys() != names or not all(isinstance(each, bool | str) for each in said.values()):
            raise self._lost("its answer is none")
        return {k: Said(v) if isinstance(v, bool) else Said(fault=v) for k, v in said.items()}

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        if self.failed is not None:
            raise EngineFailed(self.failed)
        self._asked += 1
        raw = json.dumps({"id": self._asked, **question}).encode()
        end = time.monotonic() + seconds

        def exchange() -> dict[str, Any]:
            self._socket.settimeout(max(end - time.monotonic(), 0.001))
            self._socket.sendall(struct.pack(">I", len(raw)) + raw)
            return self._receive(end)

        answer = self._guarded(exchange)
        if answer.get("id") != self._asked:
            raise self._lost(f"it answered {str(answer.get('failed', 'another question'))[:300]}")
        return answer

    def _guarded(self, exchange: Any) -> dict[str, Any]:
        """What comes back, or EngineFailed for all that can go wrong on the way."""
        try:
            return exchange()
        except TimeoutError:
            raise self._lost("it gave no answer in time") from None
        except EOFError:
            code = self._process.wait() if self._gone() else None
            raise self._lost("it closed its pipe" if code is None else f"it ended with exit code {code}") from None
        except (OSError, ValueError) as error:
            raise self._lost(f"{type(error).__name__}: {error}") from None

    def _gone(self) -> bool:
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _lost(self, why: str) -> EngineFailed:
        """Ends the process: what it says from now on counts for nothing."""
        self.failed = f"the policy process failed: {why}"
        self._process.kill()
        return EngineFailed(self.failed)

    def _receive(self, end: float) -> dict[str, Any]:
        size = struct.unpack(">I", self._exactly(4, end))[0]
        if size > _LARGEST:
            raise ValueError(f"an answer of {size:,} bytes")
        found = json.loads(self._exactly(size, end))
        if not isinstance(found, dict):
            raise ValueError("an answer that is no object")
        return found

    def _exactly(self, count: int, end: float) -> bytes:
        found = b""
        while len(found) < count:
            if (left := end - time.monotonic()) <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            if not (more := self._socket.recv(count - len(found))):
                raise EOFError
            found += more
        return found

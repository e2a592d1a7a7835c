"""The process that judges rules: it reads questions and writes answers, and can do nothing else.

Started by `engine.py` as `python -I policy_worker.py SYS_PATH`, with one socket for both directions. Each message is a
length of four bytes, big-endian, and JSON. It says hello with what it gave up; then

    {"id": 1, "rules": {"NAME": "EXPRESSION"}}   ->  {"id": 1, "loaded": ["NAME"]}
    {"id": 2, "facts": {...}, "of": ["NAME"]}    ->  {"id": 2, "said": {"NAME": true}}, or in its place why it failed
"""

import json
import os
import struct
import sys
from typing import Any


def read() -> Any:
    """The next message; None when the other side has gone."""
    head = _exactly(4)
    body = None if head is None else _exactly(struct.unpack(">I", head)[0])
    return None if body is None else json.loads(body)


def write(message: Any) -> None:
    raw = json.dumps(message).encode()
    raw = struct.pack(">I", len(raw)) + raw
    while raw:
        raw = raw[os.write(1, raw) :]


def _exactly(count: int) -> bytes | None:
    found = b""
    while len(found) < count:
        if not (more := os.read(0, count - len(found))):
            return None
        found += more
    return found


def main() -> None:
    from jaxlm.governance import cel, sandbox

    cel.compile("step > 1 && 'a'.matches('b')")(
        {"step": 2}
    )  # imports all that a judgement needs, while that is allowed
    programs: dict[str, Judge] = {}
    write({"sandbox": sandbox.apply(), "pid": os.getpid()})
    while (asked := read()) is not None:
        if "rules" in asked:
            programs = {name: Judge(cel.compile(when)) for name, when in asked["rules"].items()}
            write({"id": asked["id"], "loaded": sorted(programs)})
        else:
            write({"id": asked["id"], "said": {name: programs[name](asked["facts"]) for name in asked["of"]}})


class Judge:
    """Judges by one rule, and not again while all that it reads is as it was."""

    def __init__(self, program: Any):
        self.program = program
        self.read: Any = None
        self.said: bool | str = "never asked"

    def __call__(self, facts: dict[str, Any]) -> bool | str:
        from jaxlm.governance.cel import Fault, value

        read = {path: value(facts, path) for path in self.program.reads}
        if read != self.read:  # NaN is like nothing, itself included
            self.read = read
            try:
                self.said = self.program(facts)
            except Fault as fault:
                self.said = str(fault)
        return self.said


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[1])
    try:
        main()
    except Exception as error:
        write({"failed": f"{type(error).__name__}: {error}"[:500]})
        sys.exit(1)

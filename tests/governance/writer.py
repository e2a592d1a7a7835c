"""Processes that append to a log until they are killed, and say what they were promised. Run: python writer.py FOLDER

For each line on standard input one is forked, so that none has to start Python again; it says its process id, then the
size of the log after each append that it was promised. Once it is dead that is said, with its exit status.
"""

import os
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jaxlm.governance.log import Log
from jaxlm.governance.notes import LogKey

KEY = LogKey("example.com/killed", Ed25519PrivateKey.from_private_bytes(bytes(32)))


def entry(number: int) -> bytes:
    return f"entry {number} ".encode() * (1 + number % 7)


def main(folder: Path) -> None:
    with Log(folder, KEY) as log:
        while True:
            first = log.head.size
            count = 1 + first % 5
            log.append([entry(first + n) for n in range(count)])
            print(first + count, flush=True)


def serve(folder: Path) -> None:
    while sys.stdin.readline():
        child = os.fork()
        if child == 0:
            print(os.getpid(), flush=True)
            main(folder)  # for ever; what it raises ends the child
        _, status = os.waitpid(child, 0)
        print("dead", os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))

"""A process that appends to a log until it is killed, and says what it was promised. Run: python writer.py FOLDER"""

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


if __name__ == "__main__":
    main(Path(sys.argv[1]))

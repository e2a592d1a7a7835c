"""Asks witnesses to cosign the head of a log."""

import urllib.error
import urllib.request
from collections.abc import Mapping

from jaxlm.governance import heads, merkle, notes, succession, witness
from jaxlm.governance.errors import GovernanceError, Rejected
from jaxlm.governance.notes import Note, Signature, Verifier
from jaxlm.governance.quorum import Policy
from jaxlm.governance.tiles import Tiles

_SECONDS = 20.0


def cosign(policy: Policy, note: Note, tiles: Tiles) -> tuple[Note, dict[str, str]]:
    """The head with the lines of every witness that the policy has a URL of and that answers; and why others did not,
    by name."""
    found: list[Signature] = []
    failed: dict[str, str] = {}
    for name, url in policy.urls.items():
        try:
            found.append(ask(url, policy.witnesses[name], note, tiles))
        except (GovernanceError, OSError) as error:
            failed[name] = str(error)
    return note.add(found), failed


def ask(url: str, key: Verifier, note: Note, tiles: Tiles) -> Signature:
    """The cosignature of one witness.

    Raises:
        Rejected: it refuses, or answers with something else.
        OSError: it cannot be reached.
    """
    head = heads.parse(note.text)
    old, rotated = 0, False
    for _ in range(4):  # another process of this log may be at the same witness
        if rotated:
            path, content = succession.PATH, bytes(succession.of_log(old, note, tiles))
        else:
            proof = [] if old == 0 or old == head.size else merkle.consistency_proof(tiles.node, 0, old, head.size)
            path, content = witness.PATH, witness.request(old, proof, note)
        status, headers, body = _post(f"{url.rstrip('/')}{path}", content)
        if status == 403 and not rotated and succession.hands_over(tiles):
            rotated = True  # the witness knows a key that was replaced since
            continue
        if status == 200:
            answer = notes.parse(f"{note.text}\n".encode() + body)
            return answer.require(key)
        if status != 409 or headers.get("Content-Type") != "text/x.tlog.size":
            raise Rejected(f"{url} refuses with {status}: {body.decode(errors='replace').strip()[:200]}")
        size = heads.number(body.decode(errors="replace").strip())
        if size > head.size:
            raise Rejected(f"{url} has cosigned {size} entries of this log, and {head.size} are here: rolled back")
        if size == old == head.size:
            raise Rejected(f"{url} has cosigned another log of {size} entries: two histories of one log")
        old = size
    raise Rejected(f"{url} does not come to an end")


def _post(url: str, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
    if not url.startswith(("http://", "https://")):
        raise Rejected(f"{url} is no URL of a witness")
    asked = urllib.request.Request(url, data=body, method="POST", headers={"Content-Type": "text/plain"})
    try:
        with urllib.request.urlopen(asked, timeout=_SECONDS) as answer:
            return answer.status, dict(answer.headers), answer.read(1 << 16)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read(1 << 16)

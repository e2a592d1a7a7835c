"""Inputs and outputs of a model in the log: hidden behind commitments, readable with a key each, and erasable.

The log holds a commitment, SHA-256(domain, 32 random bytes, canonical body), which says nothing about the body to who
lacks the random bytes. Those and the body lie encrypted (AES-256-GCM, the request as associated data) in
`audit/inference/REQUEST`, and the key of each record lies apart from them, in the folder of keys. Erasing a record
destroys its key and its file and logs that; the log and every proof made from it stay as they were. Whether what is
left is personal data is a question of law, not of this code.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from jaxlm.files import write_whole
from jaxlm.governance import canonical
from jaxlm.governance.disk import Disk, destroy, refuse_link
from jaxlm.governance.entries import Entry
from jaxlm.governance.errors import GovernanceError, Rejected
from jaxlm.governance.keys import Keys
from jaxlm.governance.trail import Trail

_DOMAIN = b"jaxlm inference record v1\0"
_NONCE = 12
_REQUEST = re.compile(r"[0-9a-f]{32}")


def commitment(salt: bytes, body: dict[str, Any]) -> str:
    """Hides and binds: 32 bytes, hex."""
    return hashlib.sha256(_DOMAIN + salt + canonical.dump(body)).hexdigest()


class Records:
    """The inference records of one run.

    Args:
        trail: the log they go to.
    """

    def __init__(self, trail: Trail):
        self.trail = trail
        self.folder = trail.audit / "inference"

    def add(self, body: dict[str, Any], **public: Any) -> str:
        """Keeps `body`, such as prompt and text, and logs its commitment beside what is `public`, such as the step and
        the number of tokens. Returns the request's id once all of it is durable."""
        request, salt, key = os.urandom(16).hex(), os.urandom(32), AESGCM.generate_key(256)
        nonce = os.urandom(_NONCE)
        sealed = AESGCM(key).encrypt(nonce, salt + canonical.dump(body), self._about(request))
        Disk().make_folder(self.folder)
        path = _key(self.trail.keys, request)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _private(path, key)
        write_whole(self.folder / request, nonce + sealed)
        self.trail.commit("infer.io", {"request": request, "commitment": commitment(salt, body), **public})
        return request

    def _about(self, request: str) -> bytes:
        return f"{self.trail.run}/{request}".encode()

    def erase(self, requests: Sequence[str], basis: str, known: Sequence[Entry]) -> None:
        """Destroys what can be read of these records, and logs it with the reason.

        Args:
            requests: ids of records.
            basis: why, for the log: it must name nobody.
            known: the entries of the log.

        Raises:
            GovernanceError: the log knows no such record, or it is erased already.
        """
        refuse_link(self.folder)
        index = {entry.body["request"]: entry.index for entry in known if entry.kind == "infer.io"}
        for request in requests:
            if request not in index:
                raise GovernanceError(f"the log knows no record {request}")
            _checked(request)
            refuse_link(self.folder / request)
            if not (self.folder / request).exists() and not _key(self.trail.keys, request).exists():
                raise GovernanceError(f"record {request} is erased already")
        for request in requests:
            destroy(_key(self.trail.keys, request))
            destroy(self.folder / request)
        self.trail.commit("erasure", {"indices": [index[request] for request in requests], "basis": basis})


def reveal(audit: Path, keys: Keys, run: str, entry: Entry) -> dict[str, Any]:
    """What an `infer.io` entry stands for, by whoever has its key.

    Raises:
        Rejected: it was erased, or is not what the log committed to.
    """
    request = _checked(str(entry.body["request"]))
    refuse_link(audit / "inference")
    try:
        key, sealed = _key(keys, request).read_bytes(), Disk().read(audit / "inference" / request)
    except FileNotFoundError:
        raise Rejected(f"record {request} is erased, or its key is not here") from None
    try:
        opened = AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], f"{run}/{request}".encode())
    except (InvalidTag, ValueError):
        raise Rejected(f"record {request} was changed, or belongs to another request") from None
    body = canonical.load(opened[32:])
    if commitment(opened[:32], body) != entry.body["commitment"]:
        raise Rejected(f"record {request} is not what the log committed to")
    return body


def _checked(request: str) -> str:
    if not _REQUEST.fullmatch(request):
        raise Rejected(f"{request[:40]!r} is no id of a request")
    return request


def _key(keys: Keys, request: str) -> Path:
    return keys.folder / "records" / request


def _private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())

"""C2SP signed notes: text, an empty line, and signature lines, by Ed25519 keys and by witnesses with a timestamp.

Sources: https://c2sp.org/signed-note (types 0x01), https://c2sp.org/tlog-cosignature (0x04 Ed25519, 0x06 ML-DSA-44).
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from jaxlm.governance.errors import Rejected

ED25519, COSIGNATURE, SUBTREE = 0x01, 0x04, 0x06
_LENGTHS = {ED25519: 32, COSIGNATURE: 32, SUBTREE: 1312}
MOST_SIGNATURES, LONGEST = 100, 1 << 20
_DASH = "— "


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key under a name, as a vkey writes it: `name+id+base64(type || key)`.

    Attributes:
        name: of the key; a log's is its origin.
        kind: ED25519, COSIGNATURE or SUBTREE, the type byte.
        key: the raw public key, 32 bytes (ML-DSA-44: 1312).
    """

    name: str
    kind: int
    key: bytes

    @property
    def id(self) -> bytes:
        """The hint in signature lines, 4 bytes. Never trusted by itself: anybody can make a key that shares it."""
        return hashlib.sha256(f"{self.name}\n".encode() + bytes([self.kind]) + self.key).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{encode(bytes([self.kind]) + self.key)}"

    def check(self, text: str, signature: bytes) -> None:
        """Raises Rejected unless `signature` (without the key id) is this key's over `text`."""
        try:
            if self.kind == ED25519:
                Ed25519PublicKey.from_public_bytes(self.key).verify(signature, text.encode())
            elif self.kind == COSIGNATURE:
                time, rest = _timestamp(signature)
                message = cosigned(text, time)
                Ed25519PublicKey.from_public_bytes(self.key).verify(rest, message)
            else:
                time, rest = _timestamp(signature)
                origin, size, root = text.split("\n")[:3]
                message = subtree_message(self.name, time, origin, 0, int(size), decode(root))
                MLDSA44PublicKey.from_public_bytes(self.key).verify(rest, message)
        except (InvalidSignature, ValueError) as error:
            raise Rejected(f"the signature of {self.name} does not hold") from error


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line."""

    name: str
    id: bytes
    value: bytes

    def line(self) -> str:
        return f"{_DASH}{self.name} {encode(self.id + self.value)}\n"

    @property
    def time(self) -> int:
        """When a witness made it, POSIX seconds by the witness's clock."""
        return _timestamp(self.value)[0]


class Signer(Protocol):
    """Something that signs note texts."""

    @property
    def verifier(self) -> Verifier: ...

    def sign(self, text: str) -> Signature: ...


@dataclass(frozen=True, slots=True)
class LogKey:
    """An Ed25519 key that signs the heads of a log, under the log's origin."""

    name: str
    private: Ed25519PrivateKey

    @classmethod
    def parse(cls, text: str) -> "LogKey":
        """From `PRIVATE+KEY+name+id+base64(0x01 || seed)`, the form of golang.org/x/mod/sumdb/note. Raises Rejected."""
        parts = text.strip().split("+", 4)
        if len(parts) != 5 or parts[:2] != ["PRIVATE", "KEY"]:
            raise Rejected("this is no private key of signed notes")
        raw = decode(parts[4])
        if len(raw) != 33 or raw[0] != ED25519:
            raise Rejected("a private key of signed notes is 0x01 and 32 bytes")
        key = cls(_name(parts[2]), Ed25519PrivateKey.from_private_bytes(raw[1:]))
        if key.verifier.id.hex() != parts[3]:
            raise Rejected(f"the id of private key {parts[2]} does not belong to it")
        return key

    @property
    def verifier(self) -> Verifier:
        return Verifier(_name(self.name), ED25519, self.private.public_key().public_bytes_raw())

    def sign(self, text: str) -> Signature:
        return Signature(self.name, self.verifier.id, self.private.sign(text.encode()))


@dataclass(frozen=True, slots=True)
class WitnessKey:
    """An Ed25519 key that cosigns heads with a time."""

    name: str
    private: Ed25519PrivateKey

    @property
    def verifier(self) -> Verifier:
        return Verifier(_name(self.name), COSIGNATURE, self.private.public_key().public_bytes_raw())

    def cosign(self, text: str, time: int) -> Signature:
        value = time.to_bytes(8, "big") + self.private.sign(cosigned(text, time))
        return Signature(self.name, self.verifier.id, value)


@dataclass(frozen=True, slots=True)
class Note:
    """A text and its signature lines, of which none has been checked.

    `text` ends with a newline; `signatures` are in the order of the note.
    """

    text: str
    signatures: tuple[Signature, ...]

    def __bytes__(self) -> bytes:
        return (f"{self.text}\n" + "".join(each.line() for each in self.signatures)).encode()

    def signed_by(self, known: Iterable[Verifier]) -> dict[Verifier, Signature]:
        """The known keys whose signature is on the note and holds. Unknown keys are ignored.

        Raises:
            Rejected: a known key's signature does not hold. None at all is for the caller to judge.
        """
        found: dict[Verifier, Signature] = {}
        for key in known:
            for signature in self.signatures:
                if (signature.name, signature.id) == (key.name, key.id):
                    key.check(self.text, signature.value)
                    found[key] = signature
        return found

    def require(self, key: Verifier) -> Signature:
        """Raises Rejected unless `key` has signed this."""
        found = self.signed_by([key])
        if key not in found:
            raise Rejected(f"there is no signature of {key.name} with key {key.id.hex()}")
        return found[key]

    def add(self, signatures: Sequence[Signature]) -> "Note":
        """With more lines, each once."""
        return Note(self.text, tuple(dict.fromkeys([*self.signatures, *signatures])))


def parse(content: bytes) -> Note:
    """Takes a note apart at its last empty line; checks its form, no signature.

    Raises:
        Rejected: it is not of the form, too long, or carries too many signatures.
    """
    if len(content) > LONGEST:
        raise Rejected(f"a note of {len(content):,} bytes is too long")
    try:
        whole = content.decode("utf-8")
    except UnicodeDecodeError:
        raise Rejected("a note is UTF-8") from None
    if any(ord(letter) < 0x20 and letter != "\n" for letter in whole):
        raise Rejected("a note holds no control characters")
    text, gap, rest = whole.rpartition("\n\n")
    if not gap or not rest.endswith("\n"):
        raise Rejected("a note is text, an empty line, and lines of signatures")
    lines = rest[:-1].split("\n")
    if len(lines) > MOST_SIGNATURES:
        raise Rejected(f"a note with {len(lines):,} signatures is too much")
    return Note(text + "\n", tuple(map(parse_signature, lines)))


def parse_signature(line: str) -> Signature:
    """One signature line without its newline. Raises Rejected."""
    if not line.startswith(_DASH) or line.count(" ") != 2:
        raise Rejected(f"not a signature line: {line[:80]!r}")
    _, name, value = line.split(" ")
    raw = decode(value)
    if len(raw) < 5:
        raise Rejected(f"the signature of {name} is too short")
    return Signature(_name(name), raw[:4], raw[4:])


def parse_verifier(text: str) -> Verifier:
    """A vkey. Raises Rejected when its form, its id or its type is wrong."""
    parts = text.strip().split("+", 2)
    if len(parts) != 3:
        raise Rejected(f"not a verifier key (name+id+key): {text[:80]!r}")
    name, identity, value = parts
    raw = decode(value)
    if not raw or raw[0] not in _LENGTHS:
        raise Rejected(f"verifier key {name} is of no known type")
    if len(raw) != 1 + _LENGTHS[raw[0]]:
        raise Rejected(f"verifier key {name} has the wrong length")
    key = Verifier(_name(name), raw[0], raw[1:])
    if key.id.hex() != identity:
        raise Rejected(f"the id {identity} of verifier key {name} does not belong to it")
    return key


def cosigned(text: str, time: int) -> bytes:
    """What a witness with an Ed25519 key signs."""
    return f"cosignature/v1\ntime {time}\n{text}".encode()


def subtree_message(cosigner: str, time: int, origin: str, start: int, end: int, root: bytes) -> bytes:
    """What a witness with an ML-DSA-44 key signs: leaves [start, end) of the log `origin` have the hash `root`."""
    names = [bytes([len(name)]) + name for name in (cosigner.encode(), origin.encode())]
    numbers = [number.to_bytes(8, "big") for number in (time, start, end)]
    return b"subtree/v1\n\0" + names[0] + numbers[0] + names[1] + numbers[1] + numbers[2] + root


def _timestamp(value: bytes) -> tuple[int, bytes]:
    time = int.from_bytes(value[:8], "big")
    if len(value) <= 8 or time >= 1 << 63:
        raise Rejected("a cosignature begins with its time")
    return time, value[8:]


def _name(name: str) -> str:
    if not name or "+" in name or any(letter.isspace() for letter in name):
        raise Rejected(f"{name!r} cannot be the name of a key")
    return name


def encode(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def decode(text: str) -> bytes:
    """Standard base64 in its one canonical form: no other letters, no stray bits at the end."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Rejected(f"not base64: {text[:60]!r}") from None
    if encode(raw) != text:
        raise Rejected(f"base64 is not in its canonical form: {text[:60]!r}")
    return raw

"""Files that `age -d` opens, written to X25519 recipients (https://c2sp.org/age, version 1).

    header    a random file key, wrapped for each recipient: X25519, HKDF-SHA256, ChaCha20-Poly1305; and its HMAC
    payload   16 random bytes, then chunks of 64 KiB, each under its number and whether it is the last

Only the writer is here, by the primitives of OpenSSL, which are several times as fast as pyrage's; pyrage, another
implementation, reads what this writes.
"""

import base64
import hashlib
import hmac
import os
from collections.abc import Iterable, Iterator, Sequence

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

CHUNK = 1 << 16
"""Bytes that are encrypted at once."""
_VERSION = b"age-encryption.org/v1\n"
_INFO = b"age-encryption.org/v1/X25519"
_LETTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def public_key(recipient: str) -> X25519PublicKey:
    """The key in a recipient `age1...` whose checksum was checked: Bech32 (BIP 173) without its last six letters.

    Raises:
        ValueError: it does not hold 32 bytes.
    """
    letters = recipient.strip().lower().removeprefix("age1")[:-6]
    number = 0
    for letter in letters:
        number = number << 5 | _LETTERS.index(letter)
    spare = 5 * len(letters) - 256
    if not 0 <= spare < 5 or number & ((1 << spare) - 1):
        raise ValueError(f"{recipient} does not hold a key of 32 bytes")
    return X25519PublicKey.from_public_bytes((number >> spare).to_bytes(32, "big"))


def encrypt(pieces: Iterable[bytes], to: Sequence[X25519PublicKey]) -> Iterator[bytes]:
    """The encrypted file, piece by piece, of which each recipient can read the content `pieces`.

    Raises:
        ValueError: there is no recipient, or one whose key is of low order.
    """
    if not to:
        raise ValueError("a file that nobody can read")
    key, nonce = os.urandom(16), os.urandom(16)
    header = _VERSION + b"".join(_stanza(key, recipient) for recipient in to) + b"---"
    mac = hmac.digest(_derived(key, b"", b"header"), header, hashlib.sha256)
    yield header + b" " + _base64(mac) + b"\n" + nonce
    seal = ChaCha20Poly1305(_derived(key, nonce, b"payload")).encrypt
    number, held = 0, b""
    for chunk in _chunks(pieces):
        if held:
            yield seal(number.to_bytes(11, "big") + b"\0", held, None)
            number += 1
        held = chunk
    yield seal(number.to_bytes(11, "big") + b"\1", held, None)


def _chunks(pieces: Iterable[bytes]) -> Iterator[bytes | memoryview]:
    """The same bytes in chunks, all full but the last; a piece that holds whole chunks is not copied."""
    rest = bytearray()
    for piece in pieces:
        view, at = memoryview(piece), 0
        if rest:
            at = min(CHUNK - len(rest), len(view))
            rest += view[:at]
            if len(rest) < CHUNK:
                continue
            yield bytes(rest)
            rest.clear()
        while len(view) - at >= CHUNK:
            yield view[at : at + CHUNK]
            at += CHUNK
        rest += view[at:]
    if rest:
        yield bytes(rest)


def _stanza(key: bytes, recipient: X25519PublicKey) -> bytes:
    """The file key as only `recipient` can unwrap it."""
    once = X25519PrivateKey.generate()
    share = once.public_key().public_bytes_raw()
    wrapping = _derived(once.exchange(recipient), share + recipient.public_bytes_raw(), _INFO)
    wrapped = ChaCha20Poly1305(wrapping).encrypt(bytes(12), key, None)
    return b"-> X25519 " + _base64(share) + b"\n" + _base64(wrapped) + b"\n"


def _derived(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt, info).derive(secret)


def _base64(raw: bytes) -> bytes:
    return base64.b64encode(raw).rstrip(b"=")

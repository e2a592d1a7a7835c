"""DSSE envelopes with ECDSA P-256 in a Sigstore bundle, as the package model-signing writes and reads them.

Sources: https://github.com/secure-systems-lab/dsse/blob/master/protocol.md,
https://docs.sigstore.dev/about/bundle/ (v0.3).
"""

import base64
import hashlib
import json
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from jaxlm.governance.errors import Rejected
from jaxlm.governance.keys import public_pem
from jaxlm.governance.notes import decode

PAYLOAD_TYPE = "application/vnd.in-toto+json"
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
LONGEST = 1 << 26


def encoding(payload_type: str, payload: bytes) -> bytes:
    """What is signed: the pre-authentication encoding of DSSE v1."""
    return f"DSSEv1 {len(payload_type.encode())} {payload_type} {len(payload)} ".encode() + payload


def hint(key: EllipticCurvePublicKey) -> str:
    """Which key it was, as model-signing says it: SHA-256 of its PEM, hex."""
    return hashlib.sha256(public_pem(key)).hexdigest()


def seal(payload: bytes, key: EllipticCurvePrivateKey) -> bytes:
    """The bundle, JSON, of a payload signed by `key`; the signature is DER with the lower of both values of s."""
    r, s = decode_dss_signature(key.sign(encoding(PAYLOAD_TYPE, payload), ECDSA(SHA256())))
    return _bundle(payload, encode_dss_signature(r, min(s, _ORDER - s)), hint(key.public_key()))


def unseal(bundle: bytes, key: EllipticCurvePublicKey) -> bytes:
    """The payload of a bundle that `key` signed. Only the one form that `seal` writes is taken, so that no byte can
    change unnoticed: neither the other value of s nor the encoding of model-signing before 1.0.

    Raises:
        Rejected: it is not of the form, or the signature is not of this key.
    """
    if len(bundle) > LONGEST:
        raise Rejected(f"a signature of {len(bundle):,} bytes is too long")
    try:
        whole: Any = json.loads(bundle)
        envelope = whole["dsseEnvelope"]
        payload, signature = decode(envelope["payload"]), decode(envelope["signatures"][0]["sig"])
        said = whole["verificationMaterial"]["publicKey"]["hint"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise Rejected(f"not a signed bundle: {error}") from None
    if bundle != _bundle(payload, signature, str(said)):
        raise Rejected("the bundle is not in the one form that is written here")
    if said != hint(key):
        raise Rejected(f"signed by another key ({str(said)[:12]}, not {hint(key)[:12]})")
    try:
        key.verify(signature, encoding(PAYLOAD_TYPE, payload), ECDSA(SHA256()))
    except (InvalidSignature, ValueError):
        raise Rejected(f"the signature of key {hint(key)[:12]} does not hold") from None
    if decode_dss_signature(signature)[1] > _ORDER // 2:
        raise Rejected("the signature is the mirrored form of another")
    return payload


def _bundle(payload: bytes, signature: bytes, key: str) -> bytes:
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
    }
    material = {"publicKey": {"hint": key}, "tlogEntries": []}
    return json.dumps({"mediaType": _MEDIA_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope}).encode()

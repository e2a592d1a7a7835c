"""Canonical JSON (RFC 8785): one text for one value, so that a digest of it means something."""

import json
from typing import Any

import rfc8785

from jaxlm.governance.errors import Rejected

DEEPEST = 32
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


def dump(value: Any) -> bytes:
    """The one canonical text of a JSON value, UTF-8.

    Raises:
        Rejected: it holds what JSON cannot: NaN, infinity, integers beyond 2**53, keys that are no text.
    """
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeError, RecursionError) as error:
        raise Rejected(f"not canonical JSON: {error}") from None


def load(text: bytes) -> Any:
    """The value of a canonical text.

    Raises:
        Rejected: it is not JSON, not canonical (twice the same key, spaces, other number forms), or too deep.
    """
    if _depth(text) > DEEPEST:
        raise Rejected(f"JSON is nested deeper than {DEEPEST}")
    try:
        value = json.loads(text.decode("utf-8"), parse_constant=_no_constant, parse_int=_integer)
    except (ValueError, RecursionError, OverflowError) as error:
        raise Rejected(f"not JSON: {error}") from None
    if dump(value) != text:
        raise Rejected("JSON is not in its canonical form")
    return value


def _depth(text: bytes) -> int:
    """An upper bound of how deep `text` is nested; brackets inside strings count too."""
    deepest = now = 0
    for byte in text.translate(None, delete=_NO_BRACKETS):
        if byte in b"[{":
            now += 1
            deepest = max(deepest, now)
        else:
            now -= 1
    return deepest


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _integer(text: str) -> int | float:
    """RFC 8785 writes floats of this size without a point."""
    value = int(text)
    return value if abs(value) < 1 << 53 else float(value)

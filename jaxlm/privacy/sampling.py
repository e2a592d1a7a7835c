"""Poisson samples and noise keys from a secret that is drawn at each start, kept in memory, and never written.

Amplification by sampling holds only while nobody knows who was sampled, and noise only hides what its seed does not
give away. So neither depends on the seed of the run; a run that goes on after a stop draws another secret, and the
steps that it takes again are charged again.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

_BLOCK = 1 << 20


class Secret:
    """Randomness of one start of a run. All processes hold the same 32 bytes; `repr` does not show them."""

    def __init__(self, value: bytes):
        if len(value) != 32:
            raise ValueError(f"a secret has 32 bytes, not {len(value)}")
        self._value = value

    @classmethod
    def fresh(cls, first_does: Callable[[Callable[[], Any]], Any] = lambda work: work()) -> "Secret":
        """From the operating system; `first_does` lets one process draw it for all."""
        return cls(bytes.fromhex(first_does(lambda: secrets.token_bytes(32).hex())))

    def _derived(self, purpose: str, step: int) -> bytes:
        return hmac.new(self._value, f"jaxlm {purpose} {step}".encode(), hashlib.sha256).digest()

    def noise(self, step: int) -> np.ndarray:
        """The key of a step's noise, uint32 [2], for JAX's threefry: 64 bits are all that it takes."""
        return np.frombuffer(self._derived("noise", step)[:8], np.uint32).copy()

    def sample(self, step: int, rows: int, rate: float) -> np.ndarray:
        """The rows of a step, int64, in order: each of `rows` is in it with chance `rate`, independently, by a stream
        of ChaCha20. The chance is exact to 2**-64."""
        threshold = min(int(rate * 2**64), 2**64 - 1)
        stream = Cipher(algorithms.ChaCha20(self._derived("sample", step), bytes(16)), mode=None).encryptor()
        found = []
        for start in range(0, rows, _BLOCK):
            size = min(_BLOCK, rows - start)
            drawn = np.frombuffer(stream.update(bytes(8 * size)), "<u8")
            found.append(start + np.flatnonzero(drawn < np.uint64(threshold)))
        return np.concatenate(found).astype(np.int64) if found else np.zeros(0, np.int64)

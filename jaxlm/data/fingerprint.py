"""A 64-bit hash of a batch, the same on any mesh, any number of processes and any accumulation.

Each element is mixed with its place and the lanes are plain sums, so it does not matter which device adds what:

    lane_j = sum over arrays a and places i of  mix(value ^ mix(i + salt(a, j)))   mod 2^32,   j = 0, 1

`i` counts the elements of the *global* batch in row-major order [rows, length], whoever holds which row, `mix` is the
finaliser fmix32 of MurmurHash3 (Appleby, https://github.com/aappleby/smhasher), and the salts are the CRC-32 of the
names `tokens/0`, `tokens/1`, `targets/0`, ... All in unsigned 32-bit integers, hence exact. It tells batches apart that
differ by accident; it is no signature, for anyone can make two batches of equal hash.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

ARRAYS = ("tokens", "targets", "segments", "labels")
"""What decides which tokens or labels are learned, and in which context; labels are [...], a row's own number."""
LANES = 2


def fingerprint(batch: Mapping[str, Any], xp: Any = np, *, rows: Any = None) -> Any:
    """uint32 [2]: the lanes of a batch, a mapping with int32 arrays [..., length] (absent or None: left out).

    `xp` is numpy, or jax.numpy under `jit`, where the arrays may be sharded in any way. `rows` [...] says which rows of
    the batch these are, where they are not all of them in their order; the lanes of all parts add up to the batch's.
    """
    lanes = []
    for lane in range(LANES):
        total = xp.zeros((1,), xp.uint32)
        for name in ARRAYS:
            if batch.get(name) is not None:
                values = batch[name].astype(xp.uint32)
                values = values[..., None] if name == "labels" else values
                places = _places(values.shape, zlib.crc32(f"{name}/{lane}".encode()), xp, rows)
                total = total + xp.sum(_mix(values ^ _mix(places)), dtype=xp.uint32)
        lanes.append(total)
    return xp.concatenate(lanes)


def as_text(lanes: Any) -> str:
    """16 hexadecimal digits, the first lane first."""
    return "".join(f"{int(lane):08x}" for lane in np.asarray(lanes))


def _places(shape: tuple[int, ...], first: int, xp: Any, rows: Any) -> Any:
    """The row-major number of each element, from `first`, modulo 2^32. No array as large as the batch is a constant of
    the compiled program: each axis counts for itself."""
    if rows is not None:
        along = xp.arange(shape[-1], dtype=xp.uint32).reshape((1,) * (len(shape) - 1) + (-1,))
        return rows[..., None].astype(xp.uint32) * np.uint32(shape[-1]) + along + np.uint32(first)
    places = xp.zeros((1,) * len(shape), xp.uint32)
    for axis, size in enumerate(shape):
        along = xp.arange(size, dtype=xp.uint32).reshape([-1 if axis == other else 1 for other in range(len(shape))])
        places = places * np.uint32(size) + along
    return places + np.uint32(first)


def _mix(h: Any) -> Any:
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))

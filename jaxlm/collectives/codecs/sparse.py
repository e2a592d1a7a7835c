"""Codecs that drop most of what they are given, and so need error feedback: signs, and the largest of each block."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxlm.collectives.codecs.codec import (
    TINY,
    Codes,
    bits8,
    bits16,
    blocks,
    blocks_of,
    flat,
    from_bits16,
    scale_of,
    steps,
)

SIGN_BLOCK = 256
TOP_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Sign:
    """One bit per element, and the mean magnitude of each block. Error: at most the larger of the two magnitudes.

    A bit cannot say zero, so a block of zeros is sent by its scale, and zeros among others by a mask that both sides
    know (rule S13, `masked`).
    """

    unit: int = SIGN_BLOCK
    unbiased: bool = False

    def encode(self, x: jax.Array, key: jax.Array | None = None) -> Codes:
        x = blocks(x, self.unit)
        # In integers: two sums of floats over the same axis become one loop that XLA does not vectorise on CPU.
        told = jnp.sum(x != 0.0, axis=-1, dtype=jnp.uint16).astype(jnp.float32)
        scale = jnp.sum(jnp.abs(x), axis=-1) / jnp.maximum(told, 1.0)
        return pack_bits(flat(x >= 0.0)), bits16(jnp.where(scale < TINY, 0.0, scale))

    def decode(self, codes: Codes) -> jax.Array:
        packed, scale = codes
        signs = unpack_bits(packed).astype(jnp.float32) * 2.0 - 1.0
        return flat(blocks(signs, self.unit) * from_bits16(scale)[..., None])

    def bound(self, x: jax.Array) -> jax.Array:
        x = blocks(x, self.unit)
        told = jnp.maximum(jnp.sum((x != 0.0).astype(jnp.float32), axis=-1, keepdims=True), 1.0)
        scale = jnp.sum(jnp.abs(x), axis=-1, keepdims=True) / told * (1 + 2.0**-7)
        return flat(jnp.maximum(jnp.abs(x), scale) + TINY)


def pack_bits(bits: jax.Array) -> jax.Array:
    """Truths [..., n] as uint8 [..., n / 8], the first in the lowest bit."""
    parts = bits.reshape(*bits.shape[:-1], bits.shape[-1] // 8, 8).astype(jnp.uint8)
    places = jnp.arange(8, dtype=jnp.uint8).reshape((1,) * (parts.ndim - 1) + (8,))
    return jnp.sum(parts << places, axis=-1, dtype=jnp.uint8)


def unpack_bits(packed: jax.Array) -> jax.Array:
    """The opposite: uint8 [..., n] of zeros and ones."""
    places = jnp.arange(8, dtype=jnp.uint8).reshape((1,) * packed.ndim + (8,))
    return flat((packed[..., None] >> places) & 1)


@dataclass(frozen=True, slots=True)
class TopK:
    """The `keep` largest of each block: a 16-bit place, and the value as bfloat16 or, with `small`, as int8.

    Error: what is dropped is no larger than the smallest value that is kept; of the squared norm of a block at least
    keep / block arrives. Static shapes, and a fifth of the time of one top-K over everything.

    Attributes:
        keep: values of each block; 10 of 1,024 are 1 %.
        unit: elements of a block.
        small: whether values are int8 with a scale per block instead of bfloat16.
    """

    keep: int = 10
    unit: int = TOP_BLOCK
    small: bool = False
    unbiased: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.keep <= self.unit <= 2**16:
            raise ValueError(f"top-K keeps {self.keep} of {self.unit}: it must be 1 to {self.unit}, places are 16 bit")

    def encode(self, x: jax.Array, key: jax.Array | None = None) -> Codes:
        x = blocks_of(x.astype(jnp.float32), self.unit)
        _, places = jax.lax.top_k(jnp.where(jnp.isfinite(x), jnp.abs(x), 0.0), self.keep)
        # Looked at once more here, where there are few: a second array as large as the gradient costs as much as top-K.
        values = jnp.take_along_axis(x, places, axis=-1)
        values = jnp.where(jnp.isfinite(values), values, 0.0)
        where = flat(places.astype(jnp.uint16))
        if not self.small:
            return where, flat(bits16(jnp.clip(values, -_LARGEST, _LARGEST)))
        scale = scale_of(values, 127.0)
        return where, flat(bits8(steps(values, scale, 127, None).astype(jnp.int8))), scale

    def decode(self, codes: Codes) -> jax.Array:
        places = blocks_of(codes[0], self.keep).astype(jnp.int32)
        if self.small:
            whole = jax.lax.bitcast_convert_type(codes[1], jnp.int8).astype(jnp.float32)
            values = blocks_of(whole, self.keep) * from_bits16(codes[2])[..., None]
        else:
            values = from_bits16(blocks_of(codes[1], self.keep))
        empty = jnp.zeros((*places.shape[:-1], self.unit), jnp.float32)
        return flat(jnp.put_along_axis(empty, places, values, axis=-1, inplace=False))

    def bound(self, x: jax.Array) -> jax.Array:
        x = blocks(x, self.unit)
        largest, _ = jax.lax.top_k(jnp.abs(x), self.keep)
        step = largest[..., :1] / 127.0 * (1 + 2.0**-7) if self.small else jnp.abs(x) * 2.0**-7
        return flat(jnp.broadcast_to(jnp.maximum(largest[..., -1:], step) + TINY, x.shape))


_LARGEST = float(jnp.finfo(jnp.bfloat16).max)

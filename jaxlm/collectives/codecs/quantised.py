"""Codecs that keep every element, in fewer bits: exact, bfloat16, int8, float8 and int4."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxlm.collectives.codecs.codec import (
    TINY,
    Codes,
    bits8,
    bits16,
    blocks,
    flat,
    from_bits16,
    scale_of,
    steps,
)

BLOCK = 256
"""Elements that share a scale; a bfloat16 scale then adds 0.8 % to int8."""


@dataclass(frozen=True, slots=True)
class Exact:
    """float32 as its bits: nothing is lost, and nothing saved."""

    unit: int = 1
    unbiased: bool = True

    def encode(self, x: jax.Array, key: jax.Array | None = None) -> Codes:
        return (jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32),)

    def decode(self, codes: Codes) -> jax.Array:
        return jax.lax.bitcast_convert_type(codes[0], jnp.float32)

    def bound(self, x: jax.Array) -> jax.Array:
        return jnp.zeros_like(x)


@dataclass(frozen=True, slots=True)
class BFloat16:
    """The upper half of a float32. Error: at most 2^-8 of the element to nearest, 2^-7 at random."""

    unit: int = 1
    unbiased: bool = True

    def encode(self, x: jax.Array, key: jax.Array | None = None) -> Codes:
        x = jnp.where(jnp.isfinite(x), x, 0.0).astype(jnp.float32)
        if key is None:
            return (bits16(jnp.clip(x, -_LARGEST_BFLOAT16, _LARGEST_BFLOAT16)),)
        # Random bits below the cut, then cut: goes up as often as the part that is cut is large.
        raw = jax.lax.bitcast_convert_type(jnp.clip(x, -_LARGEST_BFLOAT16, _LARGEST_BFLOAT16), jnp.uint32)
        whole = (raw & jnp.uint32(0xFFFF)) == 0
        noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
        return (((raw + jnp.where(whole, jnp.uint32(0), noise)) >> 16).astype(jnp.uint16),)

    def decode(self, codes: Codes) -> jax.Array:
        return from_bits16(codes[0])

    def bound(self, x: jax.Array) -> jax.Array:
        return jnp.abs(x) * 2.0**-7 + TINY


_LARGEST_BFLOAT16 = float(jnp.finfo(jnp.bfloat16).max)


@dataclass(frozen=True, slots=True)
class Int8:
    """Symmetric, 127 steps each way, one scale per block. Error: at most a step, half of one to nearest."""

    unit: int = BLOCK
    unbiased: bool = True

    def encode(self, x: jax.Array, key: jax.Array | None = None) -> Codes:
        x = blocks(x, self.unit)
        scale = scale_of(x, 127.0)
        return bits8(flat(steps(x, scale, 127, key)).astype(jnp.int8)), scale

    def decode(self, codes: Codes) -> jax.Array:
        values, scale = codes
        whole = jax.lax.bitcast_convert_type(values, jnp.int8).astype(jnp.float32)
        return flat(blocks(whole, self.unit) * from_bits16(scale)[..., None])

    def bound(self, x: jax.Array) -> jax.Array:
        return _steps_bound(blocks(x, self.unit), 127.0)


@dataclass(frozen=True, slots=True)
class Int4:
    """Symmetric, 7 steps each way, two to a byte, one scale per block. Error: at most a step, half of one to
    nearest. Needs error feedback to train (compression rule S2)."""

    unit: int = BLOCK
    unbiased: bool = True

    def encode(self, x: jax.Array, key: jax.Array | None = None) -> Codes:
        x = blocks(x, self.unit)
        scale = scale_of(x, 7.0)
        nibbles = (flat(steps(x, scale, 7, key)) + 8.0).astype(jnp.uint8)
        return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4), scale

    def decode(self, codes: Codes) -> jax.Array:
        packed, scale = codes
        pairs = jnp.stack([packed & 15, packed >> 4], axis=-1)
        whole = flat(pairs).astype(jnp.float32) - 8.0
        return flat(blocks(whole, self.unit) * from_bits16(scale)[..., None])

    def bound(self, x: jax.Array) -> jax.Array:
        return _steps_bound(blocks(x, self.unit), 7.0)


def _steps_bound(x: jax.Array, levels: float) -> jax.Array:
    """A step of each block; bfloat16 rounds the scale by up to 2^-8, which is on top."""
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    return flat(jnp.broadcast_to(largest / levels * (1 + 2.0**-7) + TINY, x.shape))


@dataclass(frozen=True, slots=True)
class Float8:
    """float8 e4m3, one scale per block: as many bytes as int8 at about 3.7 times its error. Error: at most 2^-4 of
    the element or, near zero, 2^-10 of the scale. Rounds to nearest only."""

    unit: int = BLOCK
    unbiased: bool = False

    def encode(self, x: jax.Array, key: jax.Array | None = None) -> Codes:
        x = blocks(x, self.unit)
        scale = scale_of(x, _LARGEST_E4M3)
        factor = from_bits16(scale)[..., None]
        ratio = jnp.where(factor == 0.0, 0.0, x / jnp.where(factor == 0.0, 1.0, factor))
        # Beyond its largest number e4m3 has no infinity but NaN.
        return bits8(flat(jnp.clip(ratio, -_LARGEST_E4M3, _LARGEST_E4M3)).astype(jnp.float8_e4m3fn)), scale

    def decode(self, codes: Codes) -> jax.Array:
        values, scale = codes
        numbers = jax.lax.bitcast_convert_type(values, jnp.float8_e4m3fn).astype(jnp.float32)
        return flat(blocks(numbers, self.unit) * from_bits16(scale)[..., None])

    def bound(self, x: jax.Array) -> jax.Array:
        x = blocks(x, self.unit)
        step = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / _LARGEST_E4M3 * 2.0**-10
        return flat(jnp.maximum(jnp.abs(x) * 2.0**-4, step) * (1 + 2.0**-6) + TINY)


_LARGEST_E4M3 = 448.0

"""What a codec is, and what they share: blocks, scales, and codes that travel as raw unsigned integers.

XLA's CPU backend sends bfloat16 as float32, float8 as float16 and int4 as int8, and on any backend the compiler may
move a conversion across a collective (https://github.com/jax-ml/jax/issues/23543). An unsigned integer stays what it
is, so every code is one: floats are bit-cast, smaller codes are packed into bytes.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

Codes = tuple[jax.Array, ...]
"""Unsigned integer arrays [..., m], m of their own each, whose leading axes are those of what was encoded."""

TINY = 2.0**-100
"""Blocks whose largest magnitude is below this are sent as zeros: their scale could not be told from a denormal."""


@runtime_checkable
class Codec(Protocol):
    """A pure pair of functions on float32 [..., n], whose last axis is a whole number of blocks.

    `unit` is the number of elements that n must be a multiple of. Without a key, encoding rounds to nearest; with one
    it rounds stochastically and without bias, where a codec can (`unbiased`). Values that are not finite are sent as
    zeros: whoever calls must have looked for them before.
    """

    @property
    def unit(self) -> int: ...

    @property
    def unbiased(self) -> bool:
        """Whether encoding with a key is right on average."""
        ...

    def encode(self, x: jax.Array, key: jax.Array | None = None) -> Codes: ...

    def decode(self, codes: Codes) -> jax.Array:
        """float32 [..., n], the same bits on every device that is given the same codes."""
        ...

    def bound(self, x: jax.Array) -> jax.Array:
        """float32 [..., n]: |decode(encode(x)) - x| of each element is at most this, with or without a key."""
        ...


def payload(codec: Codec, n: int) -> int:
    """Bytes of the codes of n elements."""
    codes = jax.eval_shape(codec.encode, jax.ShapeDtypeStruct((n,), jnp.float32))
    return sum(code.size * code.dtype.itemsize for code in codes)


def blocks(x: jax.Array, block: int) -> jax.Array:
    """[..., n] as [..., n / block, block], finite. Raises ValueError where the block does not divide n."""
    x = blocks_of(x.astype(jnp.float32), block)
    return jnp.where(jnp.isfinite(x), x, 0.0)


def blocks_of(x: jax.Array, block: int) -> jax.Array:
    """[..., n] as [..., n / block, block]. Raises ValueError where the block does not divide n."""
    if x.shape[-1] % block:
        raise ValueError(f"{x.shape[-1]} elements are no whole number of blocks of {block}; pad the bucket")
    return x.reshape(*x.shape[:-1], x.shape[-1] // block, block)


def flat(x: jax.Array) -> jax.Array:
    """The last two axes as one."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def bits16(x: jax.Array) -> jax.Array:
    """float32 rounded to bfloat16, as its bits."""
    return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)


def from_bits16(code: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(code, jnp.bfloat16).astype(jnp.float32)


def bits8(x: jax.Array) -> jax.Array:
    """An 8-bit type as its bits."""
    return jax.lax.bitcast_convert_type(x, jnp.uint8)


def scale_of(x: jax.Array, levels: float) -> jax.Array:
    """The bits [..., blocks] of a bfloat16 scale at which the largest magnitude of each block is `levels` steps, to
    within half a step; 0 for a block of zeros."""
    largest = jnp.max(jnp.abs(x), axis=-1)
    return bits16(jnp.where(largest < TINY, 0.0, largest / levels))


def steps(x: jax.Array, scale: jax.Array, levels: int, key: jax.Array | None) -> jax.Array:
    """float32 [..., blocks, block] of whole numbers in +-levels: how many steps of its block's scale each element is.

    Rounded to nearest, or with a key up or down at random, so that the mean over keys is the element.
    """
    scale = from_bits16(scale)[..., None]
    ratio = x / jnp.where(scale == 0.0, 1.0, scale)
    ratio = jnp.where(scale == 0.0, 0.0, ratio)
    whole = jnp.round(ratio) if key is None else jnp.floor(ratio + jax.random.uniform(key, x.shape))
    return jnp.clip(whole, -levels, levels)

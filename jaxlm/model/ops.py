"""Operations whose form depends on how tensors are sharded: embedding lookup, label pick, biased einsum.

A gather that reads a sharded dimension inside a partial-manual `shard_map` aborts XLA's partitioner, so the two
gathers of a language model live here and nowhere else.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlm.sharding import Rules


def lookup(table_VD: Float[Array, "V D"], ids_BT: Int[Array, "B T"], shard: Rules, dtype: jnp.dtype) -> jax.Array:
    """Rows of a table, [B, T, D] in `dtype`.

    The table is gathered over everything but its vocabulary first, because a gather whose operand and result are
    both sharded over the same mesh axis on different dimensions makes XLA rematerialise the whole operand.
    """
    table_VD = shard(table_VD.astype(dtype), "vocab", None)
    return shard(table_VD[ids_BT], "batch", "length", None)


def pick(logits: Float[Array, "... V"], labels: Int[Array, "..."]) -> jax.Array:
    """The logit of each label. A masked sum that XLA fuses, because it needs no gather over a sharded vocabulary."""
    hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == labels[..., None]
    return jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)


def project(equation: str, x: jax.Array, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """`einsum(equation, x, weight) + bias` in the dtype of x; the bias has the trailing dimensions of the result."""
    y = jnp.einsum(equation, x, weight.astype(x.dtype))
    if bias is None:
        return y
    return y + bias.astype(y.dtype).reshape((1,) * (y.ndim - bias.ndim) + bias.shape)

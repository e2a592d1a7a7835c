"""Operations whose form depends on how tensors are sharded: embedding lookup, label pick, biased einsum.

A gather that reads a sharded dimension inside a partial-manual `shard_map` aborts XLA's partitioner, so the two
gathers of a language model live here and nowhere else.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlm.model import fp8
from jaxlm.sharding import Rules, alone


def lookup(
    table_VD: Float[Array, "V D"], ids_BT: Int[Array, "B T"], shard: Rules, dtype: jnp.dtype, *, rows: str
) -> jax.Array:
    """Rows of a table whose first axis is called `rows`, [B, T, D] in `dtype`.

    The table is gathered over everything but its vocabulary first, because a gather whose operand and result are
    both sharded over the same mesh axis on different dimensions makes XLA rematerialise the whole operand.
    """
    table_VD = gathered(table_VD, (rows, "embed"), dtype, shard, rows, None)
    # So that the gradient is added up in the gathered layout too, before it is sent to where the table rests.
    table_VD = shard(table_VD, rows, None)
    return shard(_rows(table_VD, ids_BT), "batch", "length", None)


@jax.custom_vjp
def _rows(table_VD: jax.Array, ids_BT: jax.Array) -> jax.Array:
    """`table_VD[ids_BT]`, whose gradient is added up in a buffer that is not there before the gradient is.

    The buffer is as large as the gathered table and starts as zeros, which XLA for GPUs makes at any time it likes,
    and keeps through the whole step: 262 MB of 8.6 GB that a step of Llama-7B on 8 H100 needed, at 32 layers and not
    at 16 (`experiments/benchmarks/memory.py`). So its zeros are made of a number that is zero whatever it is made of.
    """
    return table_VD[ids_BT]


def _rows_forward(table_VD: jax.Array, ids_BT: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _rows(table_VD, ids_BT), (ids_BT, jnp.zeros((table_VD.shape[0], 0), table_VD.dtype))


def _rows_backward(given: tuple[jax.Array, jax.Array], gradient_BTD: jax.Array) -> tuple[jax.Array, None]:
    ids_BT, like = given
    first = jax.lax.slice(gradient_BTD, (0, 0, 0), (1, 1, 1)).reshape(())
    zero = jnp.minimum(jnp.abs(first), jnp.zeros((), first.dtype)).astype(like.dtype)
    zeros_VD = jnp.broadcast_to(zero, (like.shape[0], gradient_BTD.shape[-1]))
    return zeros_VD.at[ids_BT].add(gradient_BTD), None


_rows.defvjp(_rows_forward, _rows_backward)


def gathered(weight: jax.Array, axes: tuple[str, ...], dtype: jnp.dtype, shard: Rules, *names: str | None) -> jax.Array:
    """A weight with these logical axes in `dtype`, laid out for work: split over `names` and gathered over every other
    mesh axis. Its gradient is laid out as the weight is at rest.

    The barrier holds the cast before the gather; the partitioner would gather the float32 weight, twice the bytes.
    JAX's own gradient rule would lay the gradient out as the weight at work: summed over all devices and held whole.
    """

    @jax.custom_vjp
    def at_work(weight: jax.Array) -> jax.Array:
        return shard(jax.lax.optimization_barrier(weight.astype(dtype)), *names)

    def back(_: None, gradient: jax.Array) -> tuple[jax.Array]:
        return (shard.resting(gradient, *axes).astype(weight.dtype),)

    at_work.defvjp(lambda weight: (at_work(weight), None), back)
    return at_work(weight)


def pick(logits: Float[Array, "... V"], labels: Int[Array, "..."]) -> jax.Array:
    """The logit of each label. A masked sum that XLA fuses, because it needs no gather over a sharded vocabulary.

    A CPU alone reads the few numbers that it needs: there XLA writes the masked logits down before it adds them.
    """
    if not alone():
        return _masked_sum(logits, labels)
    return jax.lax.platform_dependent(logits, labels, cpu=_read, default=_masked_sum)


def _hit(logits: jax.Array | jax.ShapeDtypeStruct, labels: jax.Array) -> jax.Array:
    return _index(logits) == labels[..., None]


def _masked_sum(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(_hit(logits, labels), logits, 0.0), axis=-1)


@jax.custom_vjp
def _read(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """As `_masked_sum`, by a gather whose gradient is no scatter."""
    last = logits.shape[-1] - 1
    found = jnp.take_along_axis(logits, jnp.clip(labels, 0, last)[..., None], axis=-1, mode="promise_in_bounds")
    return jnp.where((labels >= 0) & (labels <= last), found[..., 0], 0.0)


def _read_forward(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _read(logits, labels), (labels, jnp.zeros((0, logits.shape[-1]), logits.dtype))


def _read_backward(given: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None]:
    labels, like = given
    full = jax.ShapeDtypeStruct((*labels.shape, like.shape[-1]), like.dtype)
    return jnp.where(_hit(full, labels), gradient[..., None], 0.0), None


_read.defvjp(_read_forward, _read_backward)


def mask_tail(logits: Float[Array, "... V"], size: int) -> jax.Array:
    """-1e30 beyond the first `size` entries of the last dimension."""
    return logits if size == logits.shape[-1] else jnp.where(_index(logits) < size, logits, -1e30)


def _index(logits: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """The position in the last dimension, one row that broadcasts: XLA hoists a full-size one out of loops."""
    return jax.lax.broadcasted_iota(jnp.int32, (1,) * (logits.ndim - 1) + logits.shape[-1:], logits.ndim - 1)


def project(
    equation: str, x: jax.Array, weight: jax.Array, bias: jax.Array | None = None, *, eight_bits: bool = False
) -> jax.Array:
    """`einsum(equation, x, weight) + bias` in the dtype of x; the bias has the trailing dimensions of the result.

    With `eight_bits` the product and its gradients are computed of scaled eight-bit floats (see fp8.py).
    """
    how: Any = fp8.multiply if eight_bits else _multiply
    y: jax.Array = how(equation, x, weight.astype(x.dtype))
    if bias is None:
        return y
    return y + bias.astype(y.dtype).reshape((1,) * (y.ndim - bias.ndim) + bias.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _multiply(equation: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """An einsum whose weight gradient is written in the order of the weight's own dimensions.

    JAX's own rule computes that gradient transposed and turns it round; on CPU, XLA then copies the gradient of the
    output into transposed order and multiplies without its fast kernel (a third of a training step, measured by
    `experiments/weight_gradient.py`).
    """
    return jnp.einsum(equation, x, weight)


def _multiply_forward(equation: str, x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return jnp.einsum(equation, x, weight), (x, weight)


def _multiply_backward(
    equation: str, given: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, weight = given
    operands, result = equation.split("->")
    left, right = operands.split(",")
    to_input = jnp.einsum(f"{result},{right}->{left}", gradient, weight)
    rows = sum(letter not in right for letter in left)
    if not alone() or left[:rows] + right.removeprefix(left[rows:]) != result:
        return to_input, jnp.einsum(f"{left},{result}->{right}", x, gradient)
    # With one dimension for all rows XLA multiplies both as they lie; with two it turns x round first, by copying.
    flat = lambda a: a.reshape(math.prod(a.shape[:rows]), -1)
    return to_input, jnp.einsum("rk,rf->kf", flat(x), flat(gradient)).reshape(weight.shape)


_multiply.defvjp(_multiply_forward, _multiply_backward)

"""Fused attention over packed rows by the offsets of their documents, where the usual fused kernel takes a mask.

cuDNN reads documents out of a row by where each starts and how long it is: it looks at no pair of tokens of different
documents, and no mask of T x T numbers is made. JAX has the call in a private module only, so everything that knows
it is here.

Axes: B rows, T position, N query heads, K key/value heads, H head_dim, M documents of one call.
"""

import importlib.util
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlm.sharding import Rules, mesh_axes

DOCUMENTS = 16
"""Documents of a row that one call of the kernel takes; rows with more of them take more calls."""

HOPPER = (9, 0)
"""The first compute capability whose cuDNN kernels read packed rows."""

_MODULE = "jax._src.cudnn.fused_attention_stablehlo"
_ARGUMENTS = ("q_seqlen", "kv_seqlen", "q_offsets", "kv_offsets", "scale", "mask_type")


def obstacles(capability: tuple[int, int] | None = None) -> list[str]:
    """Why this JAX, or a GPU of this compute capability (None: not known), cannot do it; empty if nothing is known."""
    found = []
    if lacking := _lacking():
        found.append(f"jax {jax.__version__} has changed the private call behind it (no {', '.join(lacking)})")
    if capability is not None and capability < HOPPER:
        found.append(f"it needs a Hopper GPU (compute capability 9.0), this one has {capability[0]}.{capability[1]}")
    return found


def _lacking() -> list[str]:
    """What this JAX has not, of what is asked of its private module."""
    if importlib.util.find_spec(_MODULE) is None:
        return [_MODULE]
    module = _private()
    call, masks = getattr(module, "dot_product_attention", None), getattr(module, "MaskType", None)
    known = inspect.signature(call).parameters if callable(call) else {}
    arguments = [name for name in _ARGUMENTS if name not in known]
    return arguments + [name for name in ("PADDING", "PADDING_CAUSAL") if not hasattr(masks, name)]


def _private() -> Any:
    from jax._src.cudnn import fused_attention_stablehlo

    return fused_attention_stablehlo


def ranks(segments_BT: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Which document of its row each position belongs to, from 0; padding counts as one more."""
    begins_BT = jnp.concatenate(
        [jnp.zeros_like(segments_BT[:, :1], bool), segments_BT[:, 1:] != segments_BT[:, :-1]], axis=1
    )
    return jnp.cumsum(begins_BT.astype(jnp.int32), axis=1)


def extents(
    ranks_BT: Int[Array, "B T"], first: Int[Array, ""], documents: int
) -> tuple[Int[Array, "B M"], Int[Array, "B M1"]]:
    """Length and start of the documents `first`, `first + 1`, ... of each row, as JAX asks for them.

    Both are -1 where a row has no such document; the starts have one column more, of -1. JAX puts those that are not
    negative one after the other, over all rows, so a row must have as many lengths as starts: no end may be among them.
    """
    which_M1 = first + jnp.arange(documents + 1, dtype=jnp.int32)
    starts_BM1 = jnp.sum(ranks_BT[:, None, :] < which_M1[None, :, None], axis=-1, dtype=jnp.int32)
    lengths_BM = starts_BM1[:, 1:] - starts_BM1[:, :-1]
    there_BM = lengths_BM > 0
    starts_BM = jnp.where(there_BM, starts_BM1[:, :-1], -1)
    return jnp.where(there_BM, lengths_BM, -1), jnp.pad(starts_BM, ((0, 0), (0, 1)), constant_values=-1)


def kernel(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    lengths_BM: Int[Array, "B M"],
    starts_BM1: Int[Array, "B M1"],
    causal: bool,
) -> Float[Array, "B T N H"]:
    """The fused call, on arrays of one device; what it returns for positions outside the documents means nothing."""
    # JAX scales the offsets of keys by the width of a query, so keys must be as wide.
    k_BTNH, v_BTNH = (jnp.repeat(x, q_BTNH.shape[2] // x.shape[2], axis=2) for x in (k_BTKH, v_BTKH))
    cudnn = _private()
    mask = cudnn.MaskType.PADDING_CAUSAL if causal else cudnn.MaskType.PADDING
    given: Any = dict(q_seqlen=lengths_BM, kv_seqlen=lengths_BM, q_offsets=starts_BM1, kv_offsets=starts_BM1)
    return cudnn.dot_product_attention(q_BTNH, k_BTNH, v_BTNH, **given, scale=q_BTNH.shape[-1] ** -0.5, mask_type=mask)


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    segments_BT: Int[Array, "B T"],
    *,
    causal: bool,
    shard: Rules,
) -> Float[Array, "B T N H"]:
    """Attention of each position to its own document, in half precision: equal segment numbers, one after the other.

    A row may hold any number of documents: each call of the kernel takes DOCUMENTS of them. The backward pass keeps the
    arguments alone and runs the forward kernel again, because its statistics, [B x M, N, T] float32, grow with M.
    Every device works on its own rows and heads. Raises ValueError where the layout splits rows along their length, or
    heads unlike key/value heads, or where a device has more numbers than 32-bit offsets can count.
    """
    return _attend(causal, shard, q_BTNH, k_BTKH, v_BTKH, segments_BT)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(causal: bool, shard: Rules, *arguments: jax.Array) -> jax.Array:
    q, k, segments = "heads", "kv_heads", None
    return _on_each_device(partial(_forward, causal), shard, (q, k, k, segments), q)(*arguments)


def _attend_forward(causal: bool, shard: Rules, *arguments: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _attend(causal, shard, *arguments), arguments


def _attend_backward(
    causal: bool, shard: Rules, arguments: tuple[jax.Array, ...], given_BTNH: jax.Array
) -> tuple[jax.Array | None, ...]:
    q, k, segments = "heads", "kv_heads", None
    backward = _on_each_device(partial(_backward, causal), shard, (q, k, k, segments, q), (q, k, k))
    return (*backward(*arguments, given_BTNH), None)


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(causal: bool, q: jax.Array, k: jax.Array, v: jax.Array, segments_BT: jax.Array) -> jax.Array:
    return _in_turn(segments_BT, jnp.zeros_like(q), lambda lengths, starts: kernel(q, k, v, lengths, starts, causal))


def _backward(
    causal: bool, q: jax.Array, k: jax.Array, v: jax.Array, segments_BT: jax.Array, given: jax.Array
) -> tuple[jax.Array, ...]:
    def gradients(lengths: jax.Array, starts: jax.Array) -> tuple[jax.Array, ...]:
        return jax.vjp(lambda q, k, v: kernel(q, k, v, lengths, starts, causal), q, k, v)[1](given)

    return _in_turn(segments_BT, tuple(jnp.zeros_like(x) for x in (q, k, v)), gradients)


def _in_turn(segments_BT: jax.Array, zeros: Any, call: Callable[[jax.Array, jax.Array], Any]) -> Any:
    """`call(lengths, starts)` for DOCUMENTS documents at a time, joined: each position from the call that has it.

    One call is all it takes where no row has more documents than that.
    """
    ranks_BT = ranks(segments_BT)
    last = jnp.max(ranks_BT)

    def turn(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        first, joined = carry
        made = call(*extents(ranks_BT, first, DOCUMENTS))
        here_BT = (ranks_BT >= first) & (ranks_BT < first + DOCUMENTS)
        # What a call returns for other documents was never written, so it is passed over, never multiplied by zero.
        joined = jax.tree.map(lambda new, old: jnp.where(here_BT[:, :, None, None], new, old), made, joined)
        return first + DOCUMENTS, joined

    return jax.lax.while_loop(lambda carry: carry[0] <= last, turn, (jnp.zeros((), jnp.int32), zeros))[1]


def _on_each_device(
    call: Callable[..., Any], shard: Rules, heads: tuple[str | None, ...], out: str | tuple[str, ...]
) -> Callable[..., Any]:
    """`call` on the rows and heads of each device; `heads` names the axis of heads of each argument (None: [B, T]).

    JAX's own partitioning of the kernel may leave the documents of all rows on every device, and count them wrongly.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = set(mesh.axis_names) - set(mesh.manual_axes)

    def spec(name: str | None) -> jax.P:
        return shard.here("batch", "length", *((name, None) if name else ()))

    def checked(*arguments: jax.Array) -> Any:
        q = arguments[0]
        if q.size >= 2**31:
            raise ValueError(
                f"attention by segment offsets counts {q.shape} = {q.size} numbers of a device in 32 bits, at most "
                f"{2**31 - 1}; use more microbatches, or model.attention=cudnn"
            )
        return call(*arguments)

    if not free:
        return checked
    if any(mesh.shape[axis] > 1 for axis in mesh_axes(shard.here("length")[0])):
        raise ValueError("attention by segment offsets needs whole rows; set the mesh axis context to 1")
    if shard.here("heads") != shard.here("kv_heads"):
        raise ValueError("attention by segment offsets needs heads and kv_heads split alike; make the plan's rules so")
    specs = spec(out) if isinstance(out, str) else tuple(spec(name) for name in out)
    return jax.shard_map(
        checked, in_specs=tuple(spec(name) for name in heads), out_specs=specs, axis_names=free, check_vma=False
    )

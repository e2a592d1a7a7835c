"""Many copies of a module as one: built by vmap, run by scan, rematerialised in segments as the Plan says."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PRNGKeyArray

from jaxlm.model.attention import FUSED_FORWARD, STATISTICS
from jaxlm.sharding import Rules
from planners.plan import Segment

M = TypeVar("M", bound=nnx.Module)


def stack(make: Callable[[PRNGKeyArray], M], layers: int, key: PRNGKeyArray) -> M:
    """`layers` copies of a module as one module, each weight with a leading `layers` axis."""
    stacked = jax.vmap(make)(jax.random.split(key, layers))

    def with_layers(variable: nnx.Variable) -> nnx.Variable:
        return variable.replace(axes=("layers", *variable.get_metadata()["axes"]))

    return jax.tree.map(with_layers, stacked, is_leaf=lambda node: isinstance(node, nnx.Variable))


def policy_of(segment: Segment) -> Callable[..., Any]:
    """The `jax.checkpoint` policy of a segment that rematerialises."""
    names = list(segment.save or ())
    if STATISTICS in names:
        # The kernel that makes the statistics makes the context too, and both are kept as it gives them.
        rest = dataclasses.replace(segment, save=tuple(name for name in names if name not in (STATISTICS, "context")))
        others = policy_of(rest)  # what to save as a bool, or where to if anything is offloaded
        return lambda primitive, *given, **how: primitive.name == FUSED_FORWARD or others(primitive, *given, **how)
    if segment.offload:
        return jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=names,
            names_which_can_be_offloaded=list(segment.offload),
            offload_src="device",
            offload_dst="pinned_host",
        )
    return jax.checkpoint_policies.save_only_these_names(*names)


@jax.custom_vjp
def _routed(layer: M, place: jax.Array, slots: M) -> tuple[M, M]:
    """A layer, and `slots` whose values are never looked at: on the way back the gradient of the layer is put into
    those of the slots at `place`, and goes nowhere else."""
    return layer, slots


def _leave(layer: M, place: jax.Array, slots: M) -> tuple[tuple[M, M], jax.Array]:
    return (layer, slots), place


def _put(place: jax.Array, gradients: tuple[M, M]) -> tuple[None, None, M]:
    of_layer, of_slots = gradients
    put = lambda slots, layer: jax.lax.dynamic_update_index_in_dim(slots, layer.astype(slots.dtype), place, 0)
    return None, None, jax.tree.map(put, of_slots, of_layer)


_routed.defvjp(_leave, _put)


def _last(x: jax.Array, slots: Any) -> jax.Array:
    """`x`; on the way back the gradients of `slots` begin here, as zeros that are not there before that of `x` is.

    XLA for GPUs makes zeros at any time it likes, and the room for the gradients of a segment may so be taken during
    the loss and the backward passes of all segments behind it (see also `jaxlm.model.ops`).
    """
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), slots)

    @jax.custom_vjp
    def last(x: jax.Array, slots: Any) -> jax.Array:
        return x

    def back(_: None, gradient: jax.Array) -> tuple[jax.Array, Any]:
        first = jax.lax.slice(gradient, (0,) * gradient.ndim, (1,) * gradient.ndim).reshape(())
        zero = jnp.minimum(jnp.abs(first), jnp.zeros((), first.dtype))
        return gradient, jax.tree.map(lambda leaf: jnp.broadcast_to(zero.astype(leaf.dtype), leaf.shape), like)

    last.defvjp(lambda x, slots: (x, None), back)
    return last(x, slots)


def _cast(blocks: M, dtype: jnp.dtype, shard: Rules) -> M:
    """The stack, where matrices that are gathered along their last dimension are in `dtype`.

    XLA for GPUs turns the whole stack of these round before the first layer runs, and keeps that copy until the last
    has gone back: in float32 it is twice as large as need be (576 MiB of the 17.9 GiB of Llama-8B on 8 H100).
    """

    def cast(variable: nnx.Variable) -> nnx.Variable:
        matrix = len(axes := variable.get_metadata()["axes"]) > 2
        return variable.replace(variable[...].astype(dtype)) if matrix and shard.gathers(axes[-1]) else variable

    return jax.tree.map(cast, blocks, is_leaf=lambda node: isinstance(node, nnx.Variable))


def run(
    blocks: M,
    x: jax.Array,
    call: Callable[[M, jax.Array, Any], jax.Array],
    each: Any,
    segments: tuple[Segment, ...],
    unroll: int = 1,
    *,
    turned: Rules | None = None,
) -> jax.Array:
    """`x = call(layer, x, each[layer])` for every layer, under the rematerialisation of each segment (eq. 8).

    `each` is a tree whose leaves have a leading layers axis (dropout keys), or None. With `turned`, how weights lie at
    work and at rest, those that XLA turns round are cast first where anything is computed again. Not in one of several
    microbatches: XLA turns their float32 weights once for all of them, and a cast would come on top.
    """
    start, still = 0, jax.lax.stop_gradient(blocks)
    if turned is not None and any(segment.save is not None for segment in segments):
        still = _cast(still, x.dtype, turned)
    for segment in segments:
        layers = slice(start, start + segment.layers)
        x = _segment(blocks, still, x, call, each, layers, segment, unroll)
        start = layers.stop
    return x


def _segment(
    blocks: M,
    still: M,
    x: jax.Array,
    call: Callable[[M, jax.Array, Any], jax.Array],
    each: Any,
    layers: slice,
    segment: Segment,
    unroll: int,
) -> jax.Array:
    """The layers of one segment: their weights are read out of `still`, and their gradients are those of `blocks`.

    Those of one segment among several are read out of the whole stack by their index. A slice of the stack would be a
    copy of its weights, which lives as long as the segment: 2 to 11% of a compiled step's temporaries on GPUs
    (`experiments.benchmarks.remat_memory`). Autodiff keeps each layer that is read so for the backward pass, unless
    a policy computes again, or it is cast: where neither is the case a slice is the smaller evil.
    """
    weights = jax.tree.leaves(blocks)
    cut = lambda tree: jax.tree.map(lambda leaf: leaf[layers], tree)
    by_index = segment.save is not None or any(leaf.dtype != x.dtype for leaf in weights)
    whole = layers == slice(0, weights[0].shape[0])
    indices = jnp.arange(layers.start, layers.stop)
    of = lambda index: jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), still)

    def layer(carry: tuple[jax.Array, M], item: tuple[Any, jax.Array, Any]) -> tuple[jax.Array, M]:
        (x, slots), (block, place, own) = carry, item
        block, slots = _routed(block if whole or not by_index else of(block), place, slots)
        return call(block, x, own), slots

    layered = still if whole else indices if by_index else cut(still)
    slots = blocks if whole else cut(blocks)
    return _last(
        *_scan(layer, (x, slots), (layered, indices - layers.start, each if whole else cut(each)), segment, unroll)
    )


Carry = TypeVar("Carry")


def _scan(layer: Callable[[Carry, Any], Carry], carry: Carry, parts: Any, segment: Segment, unroll: int) -> Carry:
    """`carry = layer(carry, part)` for every layer of a segment; those of a group are computed again together, from
    the input of the first."""
    one = lambda carry, item: (layer(carry, item), None)
    if segment.group > 1:
        remat = jax.checkpoint(layer, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False)
        inner = lambda carry, items: jax.lax.scan(lambda carry, item: (remat(carry, item), None), carry, items)[0]
        outer = jax.checkpoint(inner, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False)
        one = lambda carry, items: (outer(carry, items), None)
        groups = segment.layers // segment.group
        parts = jax.tree.map(lambda leaf: leaf.reshape(groups, segment.group, *leaf.shape[1:]), parts)
    elif segment.save is not None:
        remat = jax.checkpoint(layer, policy=policy_of(segment), prevent_cse=False)
        one = lambda carry, item: (remat(carry, item), None)
    steps = segment.layers // segment.group
    return jax.lax.scan(one, carry, parts, unroll=min(unroll, steps))[0]

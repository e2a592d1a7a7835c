"""Many copies of a module as one: built by vmap, run by scan, rematerialised in segments as the Plan says."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PRNGKeyArray

from jaxlm.model.attention import FUSED_FORWARD, STATISTICS
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
        policies = jax.checkpoint_policies.save_from_both_policies
        return policies(policy_of(rest), lambda primitive, *_, **__: primitive.name == FUSED_FORWARD)
    if segment.offload:
        return jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=names,
            names_which_can_be_offloaded=list(segment.offload),
            offload_src="device",
            offload_dst="pinned_host",
        )
    return jax.checkpoint_policies.save_only_these_names(*names)


@jax.custom_vjp
def layer_of(blocks: M, index: jax.Array, slot: M) -> M:
    """Layer `index` of stacked blocks, read in place; its gradient goes to `slot`, whose value is never looked at."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), blocks)


def _read(blocks: M, index: jax.Array, slot: M) -> tuple[M, None]:
    return layer_of(blocks, index, slot), None


def _give(_: None, gradient: M) -> tuple[None, None, M]:
    return None, None, gradient


layer_of.defvjp(_read, _give)


def run(
    blocks: M,
    x: jax.Array,
    call: Callable[[M, jax.Array, Any], jax.Array],
    each: Any,
    segments: tuple[Segment, ...],
    unroll: int = 1,
) -> jax.Array:
    """`x = call(layer, x, each[layer])` for every layer, under the rematerialisation of each segment (eq. 8).

    `each` is a tree whose leaves have a leading layers axis (dropout keys), or None.
    """
    start = 0
    for segment in segments:
        x = _scan(_part(blocks, x, call, each, slice(start, start + segment.layers), segment), x, segment, unroll)
        start += segment.layers
    return x


Layer = Callable[[jax.Array, Any], jax.Array]
"""The carry after one layer, from the carry before it and what belongs to that layer."""


def _part(
    blocks: M, x: jax.Array, call: Callable[[M, jax.Array, Any], jax.Array], each: Any, layers: slice, segment: Segment
) -> tuple[Layer, Any]:
    """How one layer of a segment is called, and the trees (leading layers axis) of what belongs to each.

    The layers of one segment among several are read out of the whole stack by their index. A slice of the stack would
    be a copy of its weights, which lives as long as the segment: 2 to 11% of a compiled step's temporaries on GPUs
    (`experiments/benchmarks/remat_memory.py`). Autodiff keeps each layer that is read so for the backward pass, unless
    a policy computes again, or it is cast: where neither is the case a slice is the smaller evil.
    """
    weights = jax.tree.leaves(blocks)
    cut = lambda leaf: leaf[layers]
    if layers == slice(0, weights[0].shape[0]):
        return lambda x, layer: call(layer[0], x, layer[1]), (blocks, each)
    if segment.save is None and all(leaf.dtype == x.dtype for leaf in weights):
        return lambda x, layer: call(layer[0], x, layer[1]), jax.tree.map(cut, (blocks, each))
    still = jax.lax.stop_gradient(blocks)

    def read(x: jax.Array, layer: Any) -> jax.Array:
        index, slot, item = layer
        return call(layer_of(still, index, slot), x, item)

    return read, (jnp.arange(layers.start, layers.stop), *jax.tree.map(cut, (blocks, each)))


def _scan(part: tuple[Layer, Any], x: jax.Array, segment: Segment, unroll: int) -> jax.Array:
    """All layers of one segment; those of a group are computed again together, from the input of the first."""
    layer, parts = part
    one = lambda x, item: (layer(x, item), None)
    if segment.group > 1:
        remat = jax.checkpoint(layer, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False)
        inner = lambda x, items: jax.lax.scan(lambda x, item: (remat(x, item), None), x, items)[0]
        outer = jax.checkpoint(inner, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False)
        one = lambda x, items: (outer(x, items), None)
        groups = segment.layers // segment.group
        parts = jax.tree.map(lambda leaf: leaf.reshape(groups, segment.group, *leaf.shape[1:]), parts)
    elif segment.save is not None:
        remat = jax.checkpoint(layer, policy=policy_of(segment), prevent_cse=False)
        one = lambda x, item: (remat(x, item), None)
    steps = segment.layers // segment.group
    return jax.lax.scan(one, x, parts, unroll=min(unroll, steps))[0]

"""Many copies of a module as one: built by vmap, run by scan, rematerialised in segments as the Plan says."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray

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
    if segment.offload:
        return jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=names,
            names_which_can_be_offloaded=list(segment.offload),
            offload_src="device",
            offload_dst="pinned_host",
        )
    return jax.checkpoint_policies.save_only_these_names(*names)


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
        stop = start + segment.layers
        part = (blocks, each)
        if len(segments) > 1:
            part = jax.tree.map(lambda leaf, a=start, b=stop: leaf[a:b], part)
        body = call
        if segment.save is not None:
            body = jax.checkpoint(call, policy=policy_of(segment), prevent_cse=False)
        step = lambda x, layer, body=body: (body(layer[0], x, layer[1]), None)
        x, _ = jax.lax.scan(step, x, part, unroll=min(unroll, segment.layers))
        start = stop
    return x

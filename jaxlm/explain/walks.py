"""Attention followed through all layers: rollout and flow (https://arxiv.org/abs/2005.00928).

Axes: L layers, B rows, T position, S key position, N heads.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_flow

from jaxlm.explain.relevance import Batch
from jaxlm.model.attention_map import trunk_with_maps
from jaxlm.model.classifier import Classifier

UNITS = 1_000_000
"""Capacities are whole numbers for the solver: millionths of attention."""


def mixed_maps(model: Classifier, batch: Batch) -> tuple[Float[Array, "L B T S"], Float[Array, "B T"]]:
    """Attention averaged over heads, half of it and half the identity for the residual stream: rows add up to 1. And
    the share of each position in what the classifier reads."""
    x_BTD = model.embed(batch["tokens"], batch["positions"])
    x_BTD, maps_LBNTS = trunk_with_maps(model, x_BTD, batch["positions"], batch["segments"])
    return with_residual(jnp.mean(maps_LBNTS, axis=2)), model.shares(x_BTD, batch["segments"])


def with_residual(maps_LBTS: jax.Array) -> jax.Array:
    """A + I, each row divided by its sum."""
    added = maps_LBTS + jnp.eye(maps_LBTS.shape[-1])[None, None]
    return added / jnp.sum(added, axis=-1, keepdims=True)


def rolled_out(mixed_LBTS: Float[Array, "L B T S"]) -> Float[Array, "B T S"]:
    """The product of all layers, the last one leftmost."""
    multiply = lambda product_BTS, layer_BTS: (jnp.einsum("BTR,BRS->BTS", layer_BTS, product_BTS), None)
    return jax.lax.scan(multiply, mixed_LBTS[0], mixed_LBTS[1:])[0]


def rollout(model: Classifier, batch: Batch, classes_B: Int[Array, " B"]) -> jax.Array:
    """How much of each position's embedding reaches what the classifier pools, float32 [B, T]."""
    mixed_LBTS, pooled_BT = mixed_maps(model, batch)
    return jnp.einsum("BT,BTS->BS", pooled_BT, rolled_out(mixed_LBTS))


def flow(mixed_LTS: np.ndarray, pooled_T: np.ndarray) -> np.ndarray:
    """The maximum flow from what is pooled of the last layer down to each position of the first, float64 [S].

    The network has a node per position and layer, and an edge of each entry's capacity; a source feeds the top layer by
    the pooling weights, without bound for those that are not zero, as the reference code's single [CLS] node is. One
    maximum flow per position, so this is for short texts; capacities are rounded to millionths.
    """
    layers, length = mixed_LTS.shape[:2]
    node = lambda layer, place: layer * length + place  # layer `layers` is the top, 0 the embeddings
    source = (layers + 1) * length
    boundless = UNITS * length * 4
    top = np.flatnonzero(pooled_T > 0)
    rows, columns, capacity = [source] * len(top), [node(layers, int(t)) for t in top], [boundless] * len(top)
    for layer in range(layers):
        queries, keys = np.nonzero(mixed_LTS[layer])
        rows += node(layer + 1, queries).tolist()
        columns += node(layer, keys).tolist()
        capacity += np.round(mixed_LTS[layer][queries, keys] * UNITS).astype(int).tolist()
    size = source + 1
    graph = coo_array((np.array(capacity, np.int32), (rows, columns)), shape=(size, size)).tocsr()
    return np.array([maximum_flow(graph, source, node(0, s)).flow_value / UNITS for s in range(length)])

"""How long one forward pass takes, from tokens to logits of every position."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.model.transformer import Transformer
from jaxlm.sharding import Rules

TOKENS = 512
"""The length that is timed: what the paper truncates texts to."""

WARM_UP = 3
LEAST, MOST, SECONDS = 10, 100, 5.0
"""Timed calls: at least and at most so many, and between them as many as these seconds hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds of one forward pass.

    Attributes:
        p50: the median.
        p95: the 95th percentile, linearly interpolated.
        tokens: length of the one sequence.
        calls: timed calls, one after the other.
    """

    p50: float
    p95: float
    tokens: int
    calls: int

    def facts(self) -> dict[str, float]:
        """In the units of reports."""
        return {
            "latency_p50_ms": 1e3 * self.p50,
            "latency_p95_ms": 1e3 * self.p95,
            "latency_tokens": self.tokens,
            "latency_calls": self.calls,
        }


def latency(model: Transformer, *, clock: Callable[[], float] = time.perf_counter) -> Latency:
    """Times the forward pass of one sequence of 512 tokens (fewer where a learned position table is shorter).

    The pass is compiled ahead and called WARM_UP times before; each timed call waits until the logits are there, and
    is given tokens that are on the device already, so reading text, encoding and copying are not in it. It computes
    the logits of all positions with the run's own attention kernel and dtype, and no key/value cache. The weights stay
    where they are: over several devices, what they send each other is part of the time. Call inside
    `jax.set_mesh` where the model is on a mesh.
    """
    length = TOKENS if model.config.position != "learned" else min(TOKENS, model.config.positions)
    tokens = np.random.default_rng(0).integers(0, model.config.vocab, (1, length), np.int32)
    mesh = jax.sharding.get_abstract_mesh()
    place = None if mesh.empty else jax.sharding.NamedSharding(jax.sharding.get_mesh(), jax.P())
    where = np.arange(length, dtype=np.int32)[None]
    tokens_BT, positions_BT = (jax.device_put(a, place) for a in (tokens, where))
    forward = jax.jit(_logits).lower(model, tokens_BT, positions_BT).compile()
    seconds: list[float] = []
    for _ in range(WARM_UP):
        jax.block_until_ready(forward(model, tokens_BT, positions_BT))
    while len(seconds) < LEAST or (len(seconds) < MOST and sum(seconds) < SECONDS):
        began = clock()
        jax.block_until_ready(forward(model, tokens_BT, positions_BT))
        seconds.append(clock() - began)
    p50, p95 = (float(np.percentile(seconds, share)) for share in (50, 95))
    return Latency(p50=p50, p95=p95, tokens=length, calls=len(seconds))


def _logits(model: Transformer, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """Without the plan's constraints on activations: a batch of one cannot be split over replicas."""
    execution = dataclasses.replace(model.execution, shard=Rules(), remat=())
    like: Any = jax.eval_shape(lambda key: Transformer(model.config, execution, key=key), jax.random.key(0))
    model = jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(model))
    return model.logits(model(jnp.asarray(tokens_BT), positions_BT))

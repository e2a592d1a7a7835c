"""What an exchange of codes costs on this machine: with its link, and what codecs alone compute of that."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.collectives.compressed import Compressed
from jaxlm.collectives.reduce import Exchanged

REPEATS = 3
Exchange = Callable[[jax.Array], Exchanged]
"""Of rows [H, n] of one worker, inside something that has the slow axis; see `jaxlm.collectives.reduce`."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one lossy step's exchange, the slowest worker's.

    Attributes:
        exchange: all buckets over the link, from gradient to gradient, with nothing beside it.
        codec: what of that is encoding and decoding on this device.
    """

    exchange: float
    codec: float

    @property
    def exposed(self) -> float:
        """Seconds in which the devices wait for the link: codes leave after the last gradient is there and the
        optimizer needs them all, so no compute hides any of it."""
        return max(self.exchange - self.codec, 0.0)


def cost(sync: Compressed) -> Cost | None:
    """Times the exchange of a sync alone, on zeros, on all processes at once; None where no codes are exchanged in
    flat buckets (PowerSGD, one worker). Every process must call it."""
    if sync.axes.workers == 1 or sync.scheme.kind == "powersgd":
        return None
    stages, mesh, codec = sync.stages, sync.mesh, 0.0
    moves = [stages.move(i) for i in range(len(sync.buckets))]
    sizes = [bucket.size for bucket in sync.buckets]
    devices = NamedSharding(mesh, P(mesh.axis_names))
    shapes = [(mesh.size * sync.axes.workers, size) for size in sizes]
    rows = jax.jit(lambda: [jnp.zeros(shape, jnp.float32) for shape in shapes], out_shardings=[devices] * len(sizes))()

    def exchange(given: list[jax.Array]) -> list[jax.Array]:
        return [move(x).mean for move, x in zip(moves, given, strict=True)]

    one = P(mesh.axis_names)
    whole = jax.jit(jax.shard_map(exchange, mesh=mesh, in_specs=([one] * len(sizes),), out_specs=one, check_vma=False))
    total = seconds(lambda: whole(rows))
    for move, size in zip(moves, sizes, strict=True):
        codec += codec_seconds(move, sync.axes.slow, sync.axes.workers, size)
    return Cost(total, min(codec, total))


def codec_seconds(move: Exchange, axis: str, workers: int, size: int) -> float:
    """What one worker computes in an exchange of rows [workers, size] over `axis`: all workers' codes are made and
    read on one device of this process, where collectives are copies, and their time is shared out."""
    with jax.set_mesh(Mesh(np.array(jax.local_devices()[:1]), ("one device",))):
        rows = jnp.zeros((workers, workers, size), jnp.float32)
        alone = jax.jit(jax.vmap(lambda x: move(x).mean, axis_name=axis))
        return seconds(lambda: alone(rows)) / workers


def seconds(call: Callable[[], object]) -> float:
    """The least of a few calls, after one that warms up."""
    jax.block_until_ready(call())
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return min(times)

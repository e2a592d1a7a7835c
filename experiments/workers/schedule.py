"""One of the processes whose steps `experiments.schedule_orders` measures; it starts them, with a JSON file each reads.

A step is synthetic: each layer's forward and backward pass is a small real matrix product, padded by sleep to a given
time, so that processes which share few cores do not slow each other down. Gradients are summed by real all-reduces in a
thread of their own, first in first out, as a communication stream would; or in the thread of the passes. Times are read
off the host's monotonic clock, which all its processes share.
"""

import json
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.runtime.distributed import Job, start
from planners.schedules.reductions import Replicas

WIDTH = 96
"""Side of the real matrix product of a pass: about a tenth of a millisecond of CPU time."""


class Worker:
    """Passes, sums, and whole steps of one process."""

    def __init__(self, task: dict[str, Any]):
        self.task = task
        mesh = Mesh(np.array(jax.devices()), ("data",))
        self.sharding = NamedSharding(mesh, P("data"))
        add = jax.shard_map(lambda x: lax.psum(x, "data"), mesh=mesh, in_specs=P("data"), out_specs=P())
        self.add = jax.jit(add)
        self.square = jax.device_put(jnp.ones((WIDTH, WIDTH)), jax.local_devices()[0])
        self.multiply = jax.jit(lambda x: x @ x * (1.0 / WIDTH))
        self.arrays: dict[int, jax.Array] = {}
        self.calls: queue.SimpleQueue[tuple[int, threading.Event] | None] = queue.SimpleQueue()
        self.stream = threading.Thread(target=self._stream, daemon=True)
        self.stream.start()

    def _stream(self) -> None:
        while (call := self.calls.get()) is not None:
            self.all_reduce(call[0])
            call[1].set()

    def all_reduce(self, size: int) -> None:
        """Sums `size` bytes of every process."""
        if size not in self.arrays:
            shape = (jax.device_count() * max(size // 4, 1),)
            zeros = np.zeros(shape[0] // jax.device_count(), np.float32)
            self.arrays[size] = jax.make_array_from_process_local_data(self.sharding, zeros, shape)
        jax.block_until_ready(self.add(self.arrays[size]))

    def launch(self, size: int) -> threading.Event:
        """Asks the stream to sum `size` bytes; the event says when it has."""
        done = threading.Event()
        self.calls.put((size, done))
        return done

    def barrier(self) -> None:
        self.all_reduce(4)

    def passing(self, seconds: float) -> None:
        """A small real product, and sleep for the rest of `seconds`."""
        began = time.perf_counter()
        jax.block_until_ready(self.multiply(self.square))
        time.sleep(max(seconds - (time.perf_counter() - began), 0.0))

    def step(self, order: Replicas) -> tuple[float, float]:
        """When this process began a step, after a barrier, and when it ended it."""
        t, layers = self.task, range(len(order.layers))
        sizes = order.sizes()
        self.barrier()
        began = time.perf_counter()
        waiting: list[threading.Event] = []
        for a in range(order.accumulation):
            for layer in layers:
                self.passing(t["forward"][layer])
            made: set[int] = set()
            sent = 0
            for layer in reversed(layers):
                self.passing(t["backward"][layer])
                made.add(layer)
                while (
                    (a + 1) % order.reduce_every == 0 and sent < len(order.buckets) and made >= set(order.buckets[sent])
                ):
                    if order.overlap:
                        waiting.append(self.launch(sizes[sent]))
                    else:
                        self.all_reduce(sizes[sent])
                    sent += 1
        for event in waiting:
            event.wait()
        self.passing(t["update"])
        return began, time.perf_counter()

    def part(self, kind: str) -> Callable[[], Any]:
        """One operation of the graph, alone."""
        name, _, which = kind.partition("/")
        if name == "all_reduce":
            return lambda: self.launch(int(which)).wait()
        if name == "launch":
            return lambda: self.launch(4)
        seconds = self.task[name] if name == "update" else self.task[name][int(which)]
        return lambda: self.passing(seconds)


def main(path: str, coordinator: str, process: str) -> None:
    task = json.loads(Path(path).read_text())
    start(Job(coordinator=coordinator, processes=task["processes"], process=int(process)), None)
    worker = Worker(task)
    orders = [Replicas(**raw | {"layers": tuple(raw["layers"])}) for raw in task["orders"]]
    parts: dict[str, list[tuple[float, float]]] = {kind: [] for kind in task["parts"]}
    steps: list[list[tuple[float, float]]] = [[] for _ in orders]
    for turn in range(task["rounds"] + 1):
        # The first turn compiles and connects. Parts and whole steps take turns, so both meet the same machine.
        for kind, times in parts.items():
            alone = worker.part(kind)
            for _ in range(task["samples"]):
                worker.barrier()
                began = time.perf_counter()
                alone()
                if turn:
                    times.append((began, time.perf_counter()))
        for order, times in zip(orders, steps, strict=True):
            taken = worker.step(order)
            if turn:
                times.append(taken)
    worker.calls.put(None)
    worker.stream.join()
    Path(f"{path}.{process}").write_text(json.dumps({"parts": parts, "steps": steps}))


if __name__ == "__main__":
    main(*sys.argv[1:])

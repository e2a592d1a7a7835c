"""Our side of a comparison: the step that `jaxlm train` would run on this device, under the plan it would choose."""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.throughput.kernels import Kernel, busiest
from experiments.throughput.pace import paced
from experiments.throughput.suite import Entry
from experiments.weight_gradient import RandomTokens
from jaxlm.session import Session, local_machine, numerics, resolve, workload_of
from jaxlm.tree import named_leaves
from planners.search import plan as search_plan


class Ours:
    """One entry's training step on the first device, with random tokens that stay the same.

    Args:
        entry: what is trained.
        layers: of the model, where not the entry's; 0: the entry's.
        first_moment: dtype of Adam's first moment.
        cache: folder of compiled programs; None: everything is compiled anew.
    """

    def __init__(self, entry: Entry, layers: int = 0, first_moment: str = "float32", cache: str | None = None):
        if cache is not None:
            jax.config.update("jax_compilation_cache_dir", cache)
        run = entry.run(layers=layers, first_moment=first_moment)
        model = resolve(run, run.model.vocab)
        how = numerics(run.model, jax.default_backend())
        self.workload = workload_of(run, model, how)
        machine = local_machine()
        self.plan = search_plan(self.workload, machine, run.plan)
        self.session = Session(run, model, how, self.plan)
        batch, source = self.plan.batch, RandomTokens(model.vocab, entry.sequence)
        with jax.set_mesh(self.session.mesh):
            self.tokens = self.session.feed(source, batch.accumulation, batch.microbatch)[0]
            began = time.perf_counter()
            self.step = self.session.compile_step(self.tokens)
            self.compiled = time.perf_counter() - began
            self.state: Any = self.session.fresh()
            self.first: Any = self.state.model if layers or entry.model.get("vocab", 10**9) <= 10_000 else None

    def facts(self) -> dict[str, Any]:
        """What is run, where, and what the planner expects of it."""
        predicted = self.plan.predicted
        return {
            "side": "ours",
            "plan": self.plan.summary(),
            "kernel": self.session.how.kernel,
            "dtype": self.session.how.dtype,
            "predicted_seconds": predicted.step_seconds if predicted else None,
            "predicted_bytes": predicted.memory_bytes if predicted else None,
            "flops": self.workload.step_flops(causal=False),
            "flops_causal": self.workload.step_flops(causal=True),
            "compile_seconds": self.compiled,
            "device": jax.devices()[0].device_kind,
            "versions": {name: __import__(name).__version__ for name in ("jax", "jaxlib", "flax", "optax")},
        }

    def batch(self) -> dict[str, np.ndarray]:
        """Tokens and targets of the step, [rows, sequence] int32."""
        return {name: np.asarray(self.tokens[name]).reshape(-1, self.tokens[name].shape[-1]) for name in NAMES}

    def weights(self) -> dict[str, np.ndarray]:
        """The weights as they are now, float32, by checkpoint name."""
        return {name: np.asarray(leaf) for name, leaf in named_leaves(self.state.model).items()}

    def steps(self, count: int) -> list[float]:
        """Seconds of each of `count` steps, one step in flight as in training."""
        with jax.set_mesh(self.session.mesh):
            self.state, seconds = paced(self.step, self.state, self.tokens, count)
        return seconds

    def losses(self, count: int) -> list[float]:
        """The loss of each of the next `count` steps, before its update; nats per token."""
        found = []
        with jax.set_mesh(self.session.mesh):
            for _ in range(count):
                self.state, metrics = self.step(self.state, self.tokens)
                found.append(float(metrics["loss"]))
        return found

    def memory(self) -> int | None:
        """Most bytes of the device in use so far; None where the device does not say."""
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    def kernels(self, folder: Path, count: int = 3) -> list[Kernel]:
        """The kernels that take most of a step, by a profile of `count` steps."""
        with jax.profiler.trace(str(folder), create_perfetto_trace=True):
            self.steps(count)
        return busiest(folder, count)


NAMES = ("tokens", "targets")


def ceilings(size: int) -> dict[str, float]:
    """What this device does at best: FLOP/s of a square matrix product in bfloat16 (float32 on CPU) of `size` rows,
    bytes/s of a copy (read and written)."""
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    multiply, copy = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1)
    flops = 2 * size**3 / _fastest(multiply, a)
    block = jnp.zeros((4 * size, size), dtype)
    return {"flops": flops, "bytes": 2 * block.nbytes / _fastest(copy, block), "size": float(size)}


def _fastest(call: Any, x: jax.Array, rounds: int = 5, inside: int = 10) -> float:
    y = call(x).block_until_ready()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(inside):
            y = call(x)
        y.block_until_ready()
        times.append((time.perf_counter() - began) / inside)
    return min(times)

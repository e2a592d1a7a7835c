"""One of the two processes of `experiments.benchmarks.time_to_loss`: trains all variants in turns, some steps each."""

import json
import math
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather, sync_global_devices
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from experiments.workers.compression import sent
from experiments.workers.seeds import session_of
from jaxlm.checkpoints.processes import meet
from jaxlm.collectives.local import LocalSteps
from jaxlm.collectives.sync import Objective, Synced, accumulated
from jaxlm.config import build
from jaxlm.data.corpus import Corpus
from jaxlm.data.progress import silent
from jaxlm.decode import read
from jaxlm.evaluation import Judge
from jaxlm.files import user_cache, write_whole
from jaxlm.runtime.distributed import Job, start
from jaxlm.sharding import replicated
from jaxlm.task import corpus_of, loader_of
from jaxlm.trainer.local import make_local_step
from jaxlm.trainer.step import make_train_step
from planners.plan import REPLICA_AXES

BASELINE = "sum in float16"
"""The honest 16-bit baseline on CPU, where XLA sends bfloat16 as float32."""
SCALE = 1024.0
"""What mean gradients are multiplied with in float16, whose smallest number is 6e-8."""


class HalfSum:
    """A `GradSync`: all gradients as one flat sum of float16 over the workers."""

    def __init__(self, mesh: Mesh):
        self.mesh = mesh

    def init(self, model: Any) -> tuple[()]:
        return ()

    def gradients(
        self, objective: Objective, model: Any, batch: Any, key: jax.Array, state: Any, step: jax.Array
    ) -> Synced:
        """As `GradSync` says."""

        def replica(model: Any, batch: Any, key: jax.Array) -> Any:
            sums, gradients = accumulated(objective, model, batch, key)
            sums = jax.lax.psum(sums, REPLICA_AXES)
            leaves, tree = jax.tree.flatten(gradients)
            flat = jnp.concatenate([leaf.reshape(-1) for leaf in leaves]) * (SCALE / jnp.maximum(sums["weight"], 1.0))
            flat = jax.lax.psum(flat.astype(jnp.float16), REPLICA_AXES).astype(jnp.float32) / SCALE
            ends = np.cumsum([leaf.size for leaf in leaves])[:-1].tolist()
            pieces = [piece.reshape(leaf.shape) for piece, leaf in zip(jnp.split(flat, ends), leaves, strict=True)]
            return sums, jax.tree.unflatten(tree, pieces)

        local = partial(jax.shard_map, mesh=self.mesh, axis_names=set(REPLICA_AXES), check_vma=False)
        sums, gradients = local(replica, in_specs=(P(), P(None, REPLICA_AXES), P()), out_specs=P())(model, batch, key)
        return Synced(sums, gradients, state)


class Variant:
    """One training: its state, its compiled step, its text, and what it has taken so far."""

    def __init__(self, file: Path, baseline: bool, corpus: Corpus):
        run = build(read(file), "run")
        self.session = session = session_of(run)
        plan, sync = session.plan, session.sync
        with jax.set_mesh(session.mesh):
            self.state = session.fresh()
            feed = session.feed(loader_of(run, corpus), plan.batch.accumulation, plan.batch.microbatch)
            self.batches: Iterator[Any] = feed.iterate(0, run.train.steps)
            if isinstance(sync, LocalSteps):
                step = make_local_step(session.objective, sync)
            else:
                step = make_train_step(session.objective, session.tx, HalfSum(session.mesh) if baseline else sync)
            out = (session.places, replicated(session.mesh))
            self.step = jax.jit(step, out_shardings=out, donate_argnums=0).lower(self.state, feed[0]).compile()
            self.judge = Judge(session, corpus)
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.bytes: list[int] = []

    def go(self, steps: int, name: str) -> None:
        """So many steps, both processes together, and the loss on held-out text after them, which no clock sees."""
        with jax.set_mesh(self.session.mesh):
            batches = [next(self.batches) for _ in range(steps)]
            sync_global_devices(name)
            before, began = sent(), time.perf_counter()
            for batch in batches:
                self.state, metrics = self.step(self.state, batch)
                jax.block_until_ready(metrics["loss"])
            jax.block_until_ready(self.state)
            took = time.perf_counter() - began
            self.seconds.append(float(np.asarray(process_allgather(np.array([took]))).max()))
            self.bytes.append(sent() - before)
            self.losses.append(self.judge(self.state.model, self.session.run.train.eval_batches).loss)


def main(arguments: list[str]) -> None:
    """`TASK.json PROCESS`: keys `coordinator`, `runs` (name -> YAML file, the first for the baseline too), `steps`,
    `turn` (steps) and `out`."""
    task, process = json.loads(Path(arguments[0]).read_text()), int(arguments[1])
    start(Job(coordinator=task["coordinator"], processes=2, process=process), user_cache("xla"))
    files = {name: Path(file) for name, file in task["runs"].items()}
    first = next(iter(files))
    corpus = corpus_of(build(read(files[first]), "run"), silent)
    assert isinstance(corpus, Corpus)
    variants = {BASELINE: Variant(files[first], True, corpus)}
    meet()
    for name, file in files.items():
        variants[name] = Variant(file, False, corpus)
        meet()  # the other process may take half a minute longer to compile
    turns = math.ceil(task["steps"] / task["turn"])
    for turn in range(turns):
        for name, variant in variants.items():
            variant.go(min(task["turn"], task["steps"] - turn * task["turn"]), f"{turn} {name}")
            if process == 0:
                print(f"{turn + 1}/{turns} {name}: {variant.losses[-1]:.4f}, {variant.seconds[-1]:.1f} s", flush=True)
    found = {
        name: {"seconds": each.seconds, "losses": each.losses, "bytes": each.bytes} for name, each in variants.items()
    }
    if process == 0:
        write_whole(Path(task["out"]), (json.dumps(found, indent=2) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1:])

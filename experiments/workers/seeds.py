"""Trains one variant of a run with several seeds side by side, in one process and one program.

Every seed has weights and an order of text of its own; the step is that of `jaxlm train`, mapped over the seeds. So a
variant is compiled once, and its seeds share every exchange between the (virtual) devices.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.collectives.local import LocalSteps
from jaxlm.config import Run, build
from jaxlm.data.corpus import Corpus
from jaxlm.data.progress import silent
from jaxlm.decode import read
from jaxlm.evaluation import Judge
from jaxlm.files import user_cache, write_whole
from jaxlm.planned import calibrated_plan
from jaxlm.runtime.distributed import Job, start
from jaxlm.session import Session, expected_vocab, local_machine, numerics, resolve, workload_of
from jaxlm.sharding import batch_sharding
from jaxlm.task import corpus_of, loader_of
from jaxlm.trainer.local import make_local_step
from jaxlm.trainer.step import make_train_step

CHUNK = 20
"""Steps of one call, whose batches are handed over together."""


def main(arguments: list[str]) -> None:
    """`RUN.yaml SEEDS OUT.json`: trains the run with seeds 0 to SEEDS - 1 and leaves losses, nats per token."""
    run, seeds, out = build(read(Path(arguments[0])), "run"), int(arguments[1]), Path(arguments[2])
    start(Job(), user_cache("xla") if run.train.compilation_cache else None)
    corpus = corpus_of(run, silent)
    assert isinstance(corpus, Corpus)
    session = session_of(run)
    with jax.set_mesh(session.mesh):
        found = train(session, corpus, seeds)
    write_whole(out, (json.dumps(found, indent=2) + "\n").encode())


def session_of(run: Run) -> Session:
    """The run on the devices of this process, under the plan that `jaxlm train` would follow."""
    how, model = numerics(run.model, jax.default_backend()), resolve(run, expected_vocab(run))
    workload, cluster = workload_of(run, model, how), local_machine()
    return Session(run, model, how, calibrated_plan(run, workload, cluster))


def train(session: Session, corpus: Corpus, seeds: int) -> dict[str, Any]:
    """Losses on the whole of the held-out text, or of its first `eval_batches` batches, of each seed after the last
    step; the mean training loss every CHUNK steps; and which seeds fell back to dense steps."""
    run, sync = session.run, session.sync
    steps = run.train.steps
    if isinstance(sync, LocalSteps):
        step = make_local_step(session.objective, sync)
    else:
        step = make_train_step(session.objective, session.tx, sync)
    many = lambda states, batches: jax.lax.scan(jax.vmap(_losses(step)), states, batches)
    lead = lambda place: NamedSharding(session.mesh, P(None, *place.spec))
    places = jax.tree.map(lead, session.places)
    advance = jax.jit(many, donate_argnums=0, out_shardings=(places, None))
    init = jax.vmap(lambda key: session._init(key))
    states = jax.jit(init, out_shardings=places)(jnp.stack([jax.random.key(seed) for seed in range(seeds)]))
    loaders = [loader_of(dataclasses.replace(run, seed=seed), corpus) for seed in range(seeds)]
    place = batch_sharding(session.mesh)
    cut = NamedSharding(session.mesh, P(None, None, *place.spec))
    rows = (session.plan.batch.accumulation, session.plan.batch.microbatch)
    curve, began = [], time.monotonic()
    for first in range(0, steps, CHUNK):
        batches = _batches(loaders, range(first, min(first + CHUNK, steps)), rows)
        states, losses = advance(states, jax.device_put(batches, cut))
        curve.append(np.asarray(losses).mean(0).tolist())
        if first % (10 * CHUNK) == 0:
            print(f"{first + CHUNK}/{steps} {np.mean(curve[-1]):.4f} {time.monotonic() - began:.0f} s", flush=True)
    judge = Judge(session, corpus)
    one = jax.jit(lambda tree, i: jax.tree.map(lambda a: a[i], tree), out_shardings=session.places.model)
    final = [judge(one(states.model, seed), run.train.eval_batches).loss for seed in range(seeds)]
    fallback = states.sync.get("fallback") if isinstance(states.sync, dict) else None
    return {
        "run": run.name,
        "losses": final,
        "curve": curve,
        "fallback": [] if fallback is None else np.asarray(fallback).tolist(),
        "seconds": time.monotonic() - began,
    }


def _losses(step: Any) -> Any:
    def one(state: Any, batch: Any) -> tuple[Any, jax.Array]:
        state, metrics = step(state, batch)
        return state, metrics["loss"]

    return one


def _batches(loaders: list[Any], steps: range, rows: tuple[int, int]) -> dict[str, np.ndarray]:
    """Arrays [steps, seeds, accumulation, sequences, tokens]."""
    fetched = [[loader.fetch(step) for loader in loaders] for step in steps]
    names = [name for name in fetched[0][0] if name != "segments"]
    stacked = {name: np.stack([[each[name] for each in row] for row in fetched]) for name in names}
    return {name: x.reshape(*x.shape[:2], *rows, *x.shape[3:]) for name, x in stacked.items()}


if __name__ == "__main__":
    main(sys.argv[1:])

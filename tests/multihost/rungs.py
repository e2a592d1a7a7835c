"""One of the processes of `test_compressed.py`: every rung on real processes, what came of it as lines of JSON."""

import dataclasses
import json
import sys
import zlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.collectives.replicas import checksums, require_identical
from jaxlm.collectives.schemes import Scheme, scheme
from jaxlm.sharding import replicated
from planners.plan import Communication
from tests.collectives.work import Toy, toy, toy_batch

KINDS = ("exact", "bf16", "int8", "fp8", "int8_shared", "int4", "sign", "topk", "topk8", "dgc", "powersgd")
STEPS, DECAY = 6, 0.9


def made(kind: str) -> Scheme:
    if kind == "exact":
        return Scheme(axis="zone", kind="exact")
    parameters = {"sign": {"warmup": 2.0}, "topk": {"warmup": 2.0}, "dgc": {"ramp": 0.0}, "powersgd": {"warmup": 0.0}}
    parameters["topk8"] = {"warmup": 2.0, "small": 1.0}
    said = Communication(axis="zone", scheme=kind.removesuffix("8") if kind == "topk8" else kind,  # pyright: ignore
                         parameters=parameters.get(kind, {}))  # fmt: skip
    return scheme(said, 2)


def main(coordinator: str, process: int) -> None:
    jax.distributed.initialize(coordinator, num_processes=2, process_id=process)
    for kind in KINDS:
        run = Toy(made(kind), 2, 2, tx=optax.sgd(1e-3), decay=DECAY)
        batch = toy_batch(0)
        want = run.exact(batch)
        with jax.set_mesh(run.mesh):
            got, _ = run.gradients(run.state, run.put(batch), jax.random.key(0))
            error = float(np.linalg.norm(np.asarray(got["w"]) - want["w"]) / np.linalg.norm(want["w"]))
            kept = conserved(run)
            losses = [float(run.train(0, 0, 1)[0]["loss"]) for _ in range(6)]
            require_identical(run.state.model, run.mesh, 6)
            sums = checksums(run.state.model, run.mesh).tolist()
        crc = zlib.crc32(np.asarray(run.state.model["w"]).tobytes())
        said = {"kind": kind, "error": error, **kept, "losses": losses, "crc": crc, "sums": sums}
        print(json.dumps(said), flush=True)


def conserved(run: Toy) -> dict[str, Any]:
    """Of steps at the same weights: which were `dense`; how far what arrived and what is owed after a step are from
    what was owed before it and was given in it, relative to that (`lost`: the worst lossy step, `rounded`: the worst
    dense one); and what is `owed` at the end, relative likewise. With feedback nothing is lost but rounding (rule S2).
    """
    scheme, whole = run.sync.scheme, jax.jit(lambda x: x, out_shardings=replicated(run.mesh))

    @partial(jax.jit, out_shardings=(replicated(run.mesh), run.places, replicated(run.mesh)))
    def step(state: Any, batch: Any, key: jax.Array) -> Any:
        synced = run.sync.gradients(toy, state.model, batch, key, state.sync, state.step)
        after = dataclasses.replace(state, sync=synced.state, step=state.step + 1)
        return synced.gradients["w"], after, synced.report.get("dense", jnp.zeros(()))

    def of(state: Any, kind: str) -> Any:
        return np.asarray(whole(state.sync[kind]["w"])) if kind in state.sync else np.zeros((1, 1))

    def owed(state: Any) -> Any:
        return (of(state, "error").mean(0) if "error" in state.sync else 0.0) + of(state, "owner")

    state, dense, far = run.first, [], {0.0: [0.0], 1.0: [0.0]}
    left = 0.0
    for at in range(STEPS):
        batch = toy_batch(0, at)
        given, before = run.exact(batch)["w"], state
        got, state, flag = step(state, run.put(batch), jax.random.key(at))
        dense.append(float(np.asarray(flag)))
        if scheme.momentum and not dense[-1]:
            given = DECAY * of(before, "momentum") + (1.0 - DECAY) * given
        if scheme.kind == "dgc":
            given = given + DECAY * of(before, "velocity").mean(0)
        want = owed(before) + given
        size = np.linalg.norm(want)
        far[dense[-1]].append(float(np.linalg.norm(np.asarray(got) + owed(state) - want) / size))
        left = float(np.linalg.norm(owed(state)) / size)
    return {"dense": dense, "lost": max(far[0.0]), "rounded": max(far[1.0]), "owed": left}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

"""One of the processes of `test_compressed.py`: every rung on real processes, what came of it as lines of JSON."""

import json
import sys
import zlib

import jax
import numpy as np
import optax

from jaxlm.collectives.replicas import checksums, require_identical
from jaxlm.collectives.schemes import Scheme, scheme
from planners.plan import Communication
from tests.collectives.work import Toy, toy_batch

KINDS = ("exact", "bf16", "int8", "fp8", "int8_shared", "int4", "sign", "topk", "topk8", "dgc", "powersgd")


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
        run = Toy(made(kind), 2, 2, tx=optax.sgd(1e-3), decay=0.9)
        batch = toy_batch(0)
        want = run.exact(batch)
        with jax.set_mesh(run.mesh):
            got, _ = run.gradients(run.state, run.put(batch), jax.random.key(0))
            error = float(np.linalg.norm(np.asarray(got["w"]) - want["w"]) / np.linalg.norm(want["w"]))
            losses = [float(run.train(0, 0, 1)[0]["loss"]) for _ in range(6)]
            require_identical(run.state.model, run.mesh, 6)
            sums = checksums(run.state.model, run.mesh).tolist()
        crc = zlib.crc32(np.asarray(run.state.model["w"]).tobytes())
        print(json.dumps({"kind": kind, "error": error, "losses": losses, "crc": crc, "sums": sums}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

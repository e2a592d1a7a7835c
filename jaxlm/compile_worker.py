"""A process that compiles the training step of one plan for devices that need not exist; started by `compiled`.

    python -m jaxlm.compile_worker REQUEST.json RESULT.json PROGRAM.hlo.gz

The request holds `run`, `vocab`, `plan`, `platform`, `kind` and `devices`. A platform, once JAX knows it, stays, and
what XLA says of a program goes to standard error: so every compilation has a process of its own, whose environment
`compiled` sets up.
"""

import gzip
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxlm.config import build
from jaxlm.runtime.aot import CHIPS, target
from jaxlm.session import Session, numerics, resolve
from planners.plan import Plan, structure


def session(request: dict[str, Any]) -> Session:
    """The session that would train on the machine that the request names."""
    run = build(request["run"], "the run to compile")
    plan = structure(request["plan"], Plan)
    gpu = request["platform"] == "gpu"
    capability = CHIPS[request["kind"]].capability if gpu else None
    how = numerics(run.model, request["platform"], elsewhere=True, capability=capability)
    devices = target(request["kind"], plan.devices) if gpu else jax.devices()
    return Session(run, resolve(run, request["vocab"]), how, plan, tuple(devices))


def compile_step(made: Session) -> jax.stages.Compiled:
    """The training step, compiled for the devices of the session, which may be absent."""
    _ = made.abstract  # drawn up on this machine: nothing can run on the mesh
    batch = made.abstract_batch
    with jax.set_mesh(made.mesh):
        return made.compile_step(batch)


def facts(made: Session, compiled: jax.stages.Compiled) -> dict[str, Any]:
    """What `planners.programs.compiled.Compiled` holds beside the program, the target and the versions."""
    memory = compiled.memory_analysis()
    if memory is None:
        raise RuntimeError("this jaxlib gives no memory analysis of a compiled program")
    return {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "constants": memory.generated_code_size_in_bytes,
        "peak": getattr(memory, "peak_memory_in_bytes", None) or None,
        "kernel": made.how.kernel,
    }


def main(arguments: Sequence[str]) -> None:
    request, result, program = map(Path, arguments)
    made = session(json.loads(request.read_text()))
    began = time.monotonic()
    compiled = compile_step(made)
    found = facts(made, compiled) | {"seconds": round(time.monotonic() - began, 1)}
    program.write_bytes(gzip.compress((compiled.as_text() or "").encode(), compresslevel=3))
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])

"""What does it save to write weight gradients in the order of the weight's own dimensions?

Question: `jaxlm.model.ops.project` has a gradient rule of its own, because JAX's computes the gradient of a weight
          transposed, which XLA's CPU backend turns round by copying. How long is a training step with and without it?
Cost:     about a minute on two cores.
Run:      python -m experiments.weight_gradient
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments.entry import main
from experiments.report import Report, Row
from jaxlm.config import Run
from jaxlm.model import ops
from jaxlm.session import Session, local_machine, numerics, resolve, workload_of
from planners.search import plan as search_plan


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Two forms of one training step, timed in turns.

    Attributes:
        rounds: timed steps of each form, one after the other in pairs.
        run: the training run whose step is timed, on random tokens; model.vocab must be set.
    """

    rounds: int = 10
    run: Run = dataclasses.field(default_factory=Run)


class RandomTokens:
    """Rows of random tokens, one document each."""

    def __init__(self, vocab: int, sequence: int):
        self.vocab, self.sequence = vocab, sequence

    def fetch(self, index: int, start: int, stop: int) -> dict[str, np.ndarray]:
        shape = (stop - start, self.sequence)
        tokens = np.random.default_rng(index).integers(0, self.vocab, shape, np.int32)
        places = np.broadcast_to(np.arange(self.sequence, dtype=np.int32), shape)
        ones = np.ones(shape, np.int32)
        return {"tokens": tokens, "targets": tokens, "segments": ones, "positions": places} | {
            "weights": ones.astype(np.float32)
        }


def execute(config: Config, out: Path) -> Report:
    """Compiles the step with our rule and with JAX's, and times them in pairs."""
    run = config.run
    model = resolve(run, run.model.vocab)
    how = numerics(run.model, jax.default_backend())
    workload = workload_of(run, model, how)
    plan = search_plan(workload, local_machine(), run.plan)
    ours = _prepared(Session(run, model, how, plan))
    with mock.patch.object(ops, "_multiply", jnp.einsum):
        theirs = _prepared(Session(run, model, how, plan))
    pairs = [(ours(), theirs()) for _ in range(config.rounds)]
    seconds = [statistics.median(side) for side in zip(*pairs, strict=True)]
    ratio = statistics.median(b / a for a, b in pairs)
    rate = lambda s: workload.step_flops(causal=False) / s / 1e9
    rows = [
        Row(what=name, quantity=quantity, measured=value(s))
        for name, s in zip(("our rule", "JAX's rule"), seconds, strict=True)
        for quantity, value in (("seconds per step", float), ("GFLOP/s", rate))
    ]
    rows.append(Row(what="JAX's over ours", quantity="ratio", measured=ratio, note="median of the pairs"))
    return Report(title="Weight gradients in the weight's own order", rows=rows, details={"pairs": pairs})


def _prepared(session: Session) -> Callable[[], float]:
    """A function that runs one step and says how long it took."""
    with jax.set_mesh(session.mesh):
        batch = session.plan.batch
        source = RandomTokens(session.model.vocab, session.run.data.sequence)
        tokens = session.feed(source, batch.accumulation, batch.microbatch)[0]
        step = session.compile_step(tokens)
        state: Any = jax.block_until_ready(step(session.fresh(), tokens)[0])

    def once() -> float:
        nonlocal state
        began = time.perf_counter()
        state = jax.block_until_ready(step(state, tokens)[0])
        return time.perf_counter() - began

    return once


if __name__ == "__main__":
    main("weight_gradient", __doc__, Config, execute)

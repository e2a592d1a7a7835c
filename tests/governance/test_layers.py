"""Norms of tensors inside the step: they are right, change nothing else, and make nobody copy the weights."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.trainer.state import TrainState
from jaxlm.trainer.step import update

SHAPES: dict[str, tuple[int, ...]] = {"a": (64, 32), "b": (32,)}
TX = optax.adam(1e-2)


def _state(step: int) -> TrainState[Any]:
    draw = np.random.default_rng(0)
    model = {name: jnp.asarray(draw.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}
    return TrainState(step=jnp.int32(step), finite=jnp.bool_(True), model=model, opt=TX.init(model), sync=())


def _gradients() -> Any:
    draw = np.random.default_rng(1)
    return {name: jnp.asarray(draw.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}


SUMS = {"loss": jnp.float32(2.0), "weight": jnp.float32(1.0)}


def _compiled(layers: int) -> Any:
    step = jax.jit(lambda state, gradients: update(state, TX, SUMS, gradients, (), layers=layers), donate_argnums=0)
    return step.lower(_state(0), _gradients()).compile()


@pytest.mark.parametrize(("step", "due"), [(3, True), (4, False)])
def test_they_are_the_norms_of_gradient_weight_and_update_when_due_and_zero_between(step: int, due: bool):
    plain, _ = _compiled(0)(_state(step), _gradients())
    before, gradients = _state(step), _gradients()
    change, _ = TX.update(gradients, before.opt, before.model)
    after, metrics = _compiled(4)(_state(step), gradients)
    norms = lambda tree: [float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(tree)]
    expected = (
        [norms(tree) for tree in (gradients, before.model, change)] if due else [norms(gradients), [0, 0], [0, 0]]
    )
    np.testing.assert_allclose(metrics["layers"], expected, rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), after.model, plain.model)
    assert bool(after.finite)


def test_a_step_that_logs_them_copies_no_weights():
    """A condition that gives back weights and moments makes XLA copy all of them, each step: 30% of a small one."""
    matrix = re.compile(r"= f32\[64,32\]\S* copy\(")
    plain, text = _compiled(0).as_text(), _compiled(4).as_text()
    assert len(matrix.findall(text)) <= len(matrix.findall(plain))
    given_back = [line.split(" conditional(")[0] for line in text.splitlines() if " conditional(" in line]
    assert given_back
    assert all("64,32" not in each for each in given_back), "norms are all that it gives back"


def test_a_gpu_reads_norms_off_the_update_it_makes_anyway():
    """XLA makes a choice between results of a condition on a GPU: a second update in each step, and all gradients of
    Llama 1B held for it, 2.6 GiB of 23 (`experiments.benchmarks.remat_memory`)."""
    step = jax.jit(lambda state, gradients: update(state, TX, SUMS, gradients, (), layers=4))
    traced = step.trace(_state(0), _gradients())
    cpu, gpu = (traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda"))
    roots = [text.count("stablehlo.sqrt %") for text in (cpu, gpu)]
    tensors = len(SHAPES)
    assert roots[0] - roots[1] == tensors, "the second Adam update, of a CPU alone, takes roots of its own"

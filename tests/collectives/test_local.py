"""Local steps: with an exchange at every step they are ordinary training; in between, workers are on their own."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.collectives.compressed import cut_leaves
from jaxlm.collectives.local import LocalSteps, shared
from jaxlm.collectives.schemes import scheme
from jaxlm.sharding import batch_sharding, make_mesh, replicated
from jaxlm.trainer.local import make_local_step
from jaxlm.trainer.state import init_state
from planners.plan import Communication
from tests.collectives.work import WIDTH, toy, toy_batch
from tests.laws.work import LLAMA, make_plan

RATE = 1e-3


class Apart:
    """The toy of the safety rules, trained by local steps."""

    def __init__(self, every: int, workers: int = 2, local: int = 2, *, steps: int = 1000, **parameters: float):
        plan = make_plan({"zone": workers, "data": local}, LLAMA)
        said = Communication(axis="zone", scheme="local_sgd", every=every, parameters=parameters)
        self.mesh = make_mesh(plan, jax.devices()[: plan.devices])
        model = {"w": jnp.zeros((WIDTH, WIDTH)), "gain": jnp.ones((WIDTH,))}
        made = scheme(said, workers)
        assert made.every == every
        with jax.set_mesh(self.mesh):
            leaves = cut_leaves(model, self.mesh, plan.rules.parameters, "zone")
            self.local = LocalSteps(made, self.mesh, leaves, steps, optax.sgd(RATE), plan.rules.optimizer)
            init = lambda: init_state(model, optax.identity(), self.local)
            places = jax.tree.map(lambda _: replicated(self.mesh), jax.eval_shape(init))
            places = dataclasses.replace(places, sync=self.local.places(model))
            self.state: Any = jax.jit(init, out_shardings=places)()
            self.step = jax.jit(make_local_step(toy, self.local), out_shardings=(places, replicated(self.mesh)))

    def train(self, seed: int, start: int, stop: int) -> list[Any]:
        seen = []
        with jax.set_mesh(self.mesh):
            for step in range(start, stop):
                batch = jax.device_put(toy_batch(seed, step), batch_sharding(self.mesh))
                self.state, metrics = self.step(self.state, batch)
                seen.append(jax.device_get(metrics))
        return seen


def plain(seed: int, rows: slice, steps: int) -> dict[str, np.ndarray]:
    """SGD on one device, on some rows of each batch."""
    model = {"w": jnp.zeros((WIDTH, WIDTH)), "gain": jnp.ones((WIDTH,))}
    gradient = jax.jit(jax.grad(lambda m, b: toy(m, b, None)[0]))
    for step in range(steps):
        batch = {name: jnp.asarray(x[0, rows]) for name, x in toy_batch(seed, step).items()}
        model = jax.tree.map(lambda p, g, n=batch["x"].shape[0]: p - RATE * g / n, model, gradient(model, batch))
    return jax.device_get(model)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_exchange_at_every_step_is_ordinary_training(seed):
    run = Apart(1, outer_rate=1.0, outer_momentum=0.0)
    run.train(seed, 0, 5)
    want = plain(seed, slice(None), 5)
    for name, expected in want.items():
        np.testing.assert_allclose(run.state.model[name], expected, rtol=1e-4, atol=1e-6)


def test_workers_train_apart_until_they_meet():
    run = Apart(4, outer_rate=1.0, outer_momentum=0.0)
    run.train(0, 0, 3)
    assert (np.asarray(run.state.model["w"]) == 0.0).all()
    halves = [plain(0, slice(0, 16), 3), plain(0, slice(16, 32), 3)]
    mine = np.asarray(run.state.sync["model"]["w"])
    for worker, half in enumerate(halves):
        np.testing.assert_allclose(mine[worker], half["w"], rtol=1e-4, atol=1e-6)
    run.train(0, 3, 4)
    ends = [plain(0, slice(0, 16), 4), plain(0, slice(16, 32), 4)]
    mean = (ends[0]["w"] + ends[1]["w"]) / 2
    np.testing.assert_allclose(run.state.model["w"], mean, rtol=1e-4, atol=1e-6)
    mine = np.asarray(run.state.sync["model"]["w"])
    np.testing.assert_array_equal(mine[0], mine[1])
    np.testing.assert_array_equal(mine[0], run.state.model["w"])


def test_the_last_step_exchanges_too():
    run = Apart(4, steps=6)
    run.train(0, 0, 6)
    mine = np.asarray(run.state.sync["model"]["w"])
    np.testing.assert_array_equal(mine[0], mine[1])


@pytest.mark.parametrize("bits", [4, 0])
def test_what_an_exchange_in_few_bits_did_not_say_is_owed(bits):
    run = Apart(2, outer_rate=1.0, outer_momentum=0.0, bits=float(bits))
    exact = Apart(2, outer_rate=1.0, outer_momentum=0.0)
    for each in (run, exact):
        each.train(0, 0, 2)
    owed = np.asarray(run.state.sync["error"]["w"]).mean(0)
    owed = owed + np.asarray(run.state.sync.get("owner", {"w": 0.0})["w"])
    error = np.asarray(run.state.model["w"]) - owed - np.asarray(exact.state.model["w"])
    size = np.linalg.norm(np.asarray(exact.state.model["w"]))
    assert np.linalg.norm(error) < 1e-5 * size
    assert np.linalg.norm(owed) > 1e-3 * size
    losses = [m["loss"] for m in run.train(0, 2, 60)]
    assert np.mean(losses[-8:]) < np.mean(losses[:8])


def test_other_workers_begin_from_the_mean():
    run, other = Apart(4), Apart(4, 4, 1)
    run.train(0, 0, 3)
    saved = {f"model/{name}": jnp.asarray(jax.device_get(x)) for name, x in run.state.sync["model"].items()}
    like = {f"model/{name}": x for name, x in other.state.sync["model"].items()}
    with jax.set_mesh(other.mesh):
        got = shared(saved, like)
    mean = np.asarray(saved["model/w"]).mean(0)
    for worker in np.asarray(got["model/w"]):
        np.testing.assert_allclose(worker, mean, rtol=1e-6)

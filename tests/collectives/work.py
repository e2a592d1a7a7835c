"""The tiny language model of the laws under a compressed slow axis: its gradients, and steps of a toy problem."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.collectives.compressed import Compressed, cut_leaves
from jaxlm.collectives.schemes import Scheme
from jaxlm.model.config import ModelConfig
from jaxlm.model.loss import next_token
from jaxlm.model.transformer import Execution, Transformer
from jaxlm.sharding import Rules, batch_sharding, make_mesh, replicated, shardings
from jaxlm.trainer.state import init_state
from jaxlm.trainer.step import make_train_step
from jaxlm.tree import from_named, named_leaves
from planners.plan import Plan
from tests.laws.work import LLAMA, make_plan, weights


def sync_for(model: Any, plan: Plan, scheme: Scheme, *, steps: int = 100, **more: Any) -> Compressed:
    mesh = jax.sharding.get_mesh()
    return Compressed(scheme, mesh, cut_leaves(model, mesh, plan.rules.parameters, scheme.axis), steps, **more)


def language_gradients(
    mesh: Mapping[str, int],
    config: ModelConfig,
    scheme: Scheme,
    batch: Mapping[str, np.ndarray],
    *,
    accumulation: int = 1,
    step: int = 0,
    **more: Any,
) -> tuple[float, dict[str, np.ndarray], dict[str, np.ndarray], str]:
    """Mean loss, gradient and state after one step by tensor name, and the optimised HLO."""
    plan = make_plan(mesh, config, accumulation=accumulation)
    with jax.set_mesh(make_mesh(plan, jax.devices()[: plan.devices])):
        execution = Execution(shard=Rules(plan.rules.activations), remat=plan.remat)
        like = jax.eval_shape(lambda: Transformer(config, execution, key=jax.random.key(0)))
        places = shardings(like, jax.sharding.get_mesh(), plan.rules.parameters)
        model = jax.device_put(from_named(like, weights(config)), places)
        cut = (plan.batch.accumulation, plan.batch.microbatch, -1)
        here = batch_sharding(jax.sharding.get_mesh())
        pieces = {name: jax.device_put(value.reshape(cut), here) for name, value in batch.items()}
        sync = sync_for(like, plan, scheme, **more)
        state = jax.jit(sync.init, out_shardings=sync.places())(model)

        def gradients(model: Any, pieces: Any, state: Any, step: jax.Array) -> Any:
            synced = sync.gradients(next_token, model, pieces, jax.random.key(0), state, step)
            return synced.sums["loss"] / synced.sums["weight"], synced.gradients, synced.state

        compiled = jax.jit(gradients, out_shardings=(None, places, sync.places())).lower(
            model, pieces, state, jnp.asarray(step, jnp.int32)
        )
        compiled = compiled.compile()
        loss, grads, after = compiled(model, pieces, state, jnp.asarray(step, jnp.int32))
    numbers = lambda tree: {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}
    return float(loss), numbers(grads), numbers(after), compiled.as_text() or ""


ROWS, WIDTH = 32, 64


def toy(model: Any, batch: Mapping[str, jax.Array], key: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The squared error of a linear map with gains, summed over rows."""
    with jax.default_matmul_precision("highest"):
        error = (batch["x"] @ model["w"]) * model["gain"][None] - batch["y"]
    return jnp.sum(jnp.square(error)), {"weight": jnp.asarray(error.shape[0], jnp.float32)}


def toy_batch(seed: int, step: int = 0, *, accumulation: int = 1, rare: int = 0) -> dict[str, np.ndarray]:
    """Rows of a noisy linear problem; its first `rare` inputs are zero at every step before 1000."""
    truth = np.random.default_rng(seed).normal(size=(WIDTH, WIDTH)) * np.logspace(0, -2, WIDTH)[:, None]
    random = np.random.default_rng([seed, step])
    x = random.normal(size=(ROWS, WIDTH))
    if step < 1000:
        x[:, :rare] = 0.0
    y = x @ truth + 0.1 * random.normal(size=(ROWS, WIDTH))
    cut = (accumulation, ROWS // accumulation, WIDTH)
    return {"x": x.reshape(cut).astype(np.float32), "y": y.reshape(cut).astype(np.float32)}


class Toy:
    """A few weights on `workers` devices, or twice as many with two replicas in each node."""

    def __init__(
        self, scheme: Scheme, workers: int = 2, local: int = 1, *, steps: int = 100, tx: Any = None, **more: Any
    ):
        self.plan = make_plan({"zone": workers, "data": local}, LLAMA)
        self.mesh = make_mesh(self.plan, jax.devices()[: self.plan.devices])
        self.tx = tx or optax.sgd(0.0)
        self.state: Any
        self.first: Any
        self.model = {"w": jnp.zeros((WIDTH, WIDTH)), "gain": jnp.ones((WIDTH,))}
        with jax.set_mesh(self.mesh):
            self.sync = sync_for(self.model, self.plan, scheme, steps=steps, **more)
            places = jax.tree.map(lambda _: replicated(self.mesh), jax.eval_shape(self._init))
            self.places = dataclasses.replace(places, sync=self.sync.places())
            self.state = self.first = jax.jit(self._init, out_shardings=self.places)()
            out = (self.places, replicated(self.mesh))
            self.step = jax.jit(make_train_step(toy, self.tx, self.sync), out_shardings=out)

            def gradients(state: Any, batch: Any, key: jax.Array) -> Any:
                synced = self.sync.gradients(toy, state.model, batch, key, state.sync, state.step)
                return synced.gradients, dataclasses.replace(state, sync=synced.state, step=state.step + 1)

            self.gradients = jax.jit(gradients, out_shardings=(replicated(self.mesh), self.places))

    def _init(self) -> Any:
        return init_state(self.model, self.tx, self.sync)

    def train(self, seed: int, start: int, stop: int, **how: Any) -> list[dict[str, Any]]:
        """Runs steps; the metrics of each."""
        seen = []
        with jax.set_mesh(self.mesh):
            for step in range(start, stop):
                self.state, metrics = self.step(self.state, self.put(toy_batch(seed, step, **how)))
                seen.append(jax.device_get(metrics))
        return seen

    def put(self, batch: Mapping[str, np.ndarray]) -> Any:
        here = batch_sharding(self.mesh)
        return {name: jax.make_array_from_callback(x.shape, here, lambda at, x=x: x[at]) for name, x in batch.items()}

    def exact(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The gradient of the mean loss, on one device."""
        flat = {name: jnp.asarray(x.reshape(-1, WIDTH)) for name, x in batch.items()}
        model = jax.device_get(self.state.model)
        return {k: np.asarray(g) / ROWS for k, g in jax.grad(lambda m: toy(m, flat, None)[0])(model).items()}

    def owed(self) -> np.ndarray:
        """What is owed to the mean of `w`."""
        sync = jax.device_get(self.state.sync)
        return sync["error"]["w"].mean(0) + (sync["owner"]["w"] if "owner" in sync else 0.0)

"""A training step in which workers train apart and meet every so many steps. Knows neither model nor loss."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.collectives.local import LocalSteps
from jaxlm.collectives.sync import Objective
from jaxlm.data.fingerprint import fingerprint
from jaxlm.optim import gradient_norms
from jaxlm.trainer.state import TrainState
from jaxlm.trainer.step import Metrics, Report, Step, step_key


def make_local_step(
    objective: Objective,
    local: LocalSteps,
    *,
    seed: int = 0,
    report: Report = lambda step: {},
    layers: bool = False,
) -> Step[Any]:
    """`step(state, batch) -> (state, metrics)` as `make_train_step` has it. The model of the state is what the workers
    have in common, as of their last exchange; the loss is that of their own weights, the norms are means over them.
    With `layers`, weights and updates are those of the common model, which stands still between exchanges."""

    def step(state: TrainState[Any], batch: Any) -> tuple[TrainState[Any], Metrics]:
        key = step_key(seed, state.step)
        sums, sync, norms = local.train(objective, state.sync, batch, key)
        norm = jnp.linalg.norm(norms)
        finite = state.finite & jnp.isfinite(sums["loss"]) & jnp.isfinite(norm)
        model, sync = local.exchange(state.model, sync, state.step + 1)
        keep = lambda new, old: jnp.where(finite, new, old)
        model, sync = jax.tree.map(keep, (model, sync), (state.model, state.sync))
        weight = jnp.maximum(sums["weight"], 1.0)
        means = {name: value / weight for name, value in sums.items() if name != "weight"}
        metrics = means | {"weight": sums["weight"], "grad_norm": norm, "norms": norms, "finite": finite}
        metrics |= {"batch": fingerprint(batch, jnp), **report(state.step)}
        if layers:
            moved = jax.tree.map(jnp.subtract, model, state.model)
            metrics["layers"] = jnp.stack([norms, gradient_norms(state.model), gradient_norms(moved)])
        done = state.step + finite.astype(jnp.int32)
        return TrainState(step=done, finite=finite, model=model, opt=state.opt, sync=sync), metrics

    return step

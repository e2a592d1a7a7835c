"""The tiny language model of the laws under a compressed slow axis: its gradients, and steps of a toy problem."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.collectives.compressed import Compressed, cut_leaves
from jaxlm.collectives.schemes import Scheme
from jaxlm.model.config import ModelConfig
from jaxlm.model.loss import next_token
from jaxlm.model.transformer import Execution, Transformer
from jaxlm.sharding import Rules, batch_sharding, make_mesh, shardings
from jaxlm.tree import from_named, named_leaves
from planners.plan import Plan
from tests.laws.work import make_plan, weights


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

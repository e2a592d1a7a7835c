"""One training step: gradients of the global batch, then the optimizer. Knows neither model nor loss."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from jaxlm.collectives.sync import GradSync, Objective
from jaxlm.data.fingerprint import fingerprint
from jaxlm.optim import gradient_norms
from jaxlm.trainer.state import TrainState

M = TypeVar("M")
Metrics = dict[str, jax.Array]
Step = Callable[[TrainState[M], Any], tuple[TrainState[M], Metrics]]
Report = Callable[[jax.Array], Mapping[str, Any]]
"""What a step reports beside its own metrics, from its number."""


def make_train_step(
    objective: Objective,
    tx: optax.GradientTransformation,
    sync: GradSync,
    *,
    seed: int = 0,
    report: Report = lambda step: {},
    layers: int = 0,
) -> Step[Any]:
    """Returns `step(state, batch) -> (state, metrics)`, ready for jit with the state donated.

    Metrics: those of `update`, what the exchange of gradients reports, `batch` (its hash, uint32 [2], see
    data/fingerprint.py), and what `report(step)` adds (learning rate). Randomness depends on the seed and the step
    alone, so a resumed run draws the same numbers.
    """

    def step(state: TrainState[Any], batch: Any) -> tuple[TrainState[Any], Metrics]:
        key = step_key(seed, state.step)
        synced = sync.gradients(objective, state.model, batch, key, state.sync, state.step)
        after, metrics = update(state, tx, synced.sums, synced.gradients, synced.state, layers=layers)
        return after, {**metrics, **synced.report, "batch": fingerprint(batch, jnp), **report(state.step)}

    return step


def step_key(seed: int, step: jax.Array) -> jax.Array:
    """The key of all randomness of one step."""
    return jax.random.fold_in(jax.random.key(seed), step)


def update(
    state: TrainState[M],
    tx: optax.GradientTransformation,
    sums: Metrics,
    gradients: M,
    sync_state: Any,
    *,
    layers: int = 0,
) -> tuple[TrainState[M], Metrics]:
    """The state after the optimizer has seen a gradient, and what there is to report.

    Metrics: `loss`, `weight`, every other sum of the objective divided by the weight, `grad_norm`, `norms` (one per
    gradient tensor, tree order), and `finite`; with `layers` also `layers`, float32 [3, tensors]: the norms of each
    tensor's gradient, weights before the update, and update, after each multiple of so many steps, and zeros between.
    """
    with jax.named_scope("optimizer"):
        norms = gradient_norms(gradients)
        norm = jnp.linalg.norm(norms)
        finite = state.finite & jnp.isfinite(sums["loss"]) & jnp.isfinite(norm)

        updates, opt = tx.update(gradients, state.opt, state.model)  # pyright: ignore[reportArgumentType]
        sizes: Metrics = {}
        if layers:
            due = (state.step + 1) % layers == 0
            found = _sizes(due, tx, gradients, state, updates)
            sizes = {"layers": jnp.concatenate([norms[None], found])}
            finite = _after(finite, found)
        model: Any = optax.apply_updates(state.model, updates)  # pyright: ignore[reportArgumentType]
        keep = lambda new, old: jnp.where(finite, new, old)
        model, opt = jax.tree.map(keep, (model, opt), (state.model, state.opt))
        sync_state = jax.tree.map(keep, sync_state, state.sync)
    weight = jnp.maximum(sums["weight"], 1.0)
    means = {name: value / weight for name, value in sums.items() if name != "weight"}
    metrics = means | sizes | {"weight": sums["weight"], "grad_norm": norm, "norms": norms, "finite": finite}
    step = state.step + finite.astype(jnp.int32)
    return TrainState(step=step, finite=finite, model=model, opt=opt, sync=sync_state), metrics


def _sizes(due: jax.Array, tx: optax.GradientTransformation, gradients: M, state: TrainState[M], updates: Any) -> Any:
    """Norms of weights and updates, float32 [2, tensors], in steps that are due, else zeros.

    On a CPU only those steps pay, 3% of a small one. Elsewhere XLA turns a condition into a choice between results, so
    that each step would pay for a second update; norms of the update that is made anyway are read along with it.
    """
    none = lambda norms: jnp.zeros_like(norms)

    def seldom(updates: Any) -> jax.Array:
        again = lambda: tx.update(gradients, state.opt, state.model)[0]  # pyright: ignore[reportArgumentType]
        measure = lambda: jnp.stack([gradient_norms(tree) for tree in (state.model, again())])
        return jax.lax.cond(due, measure, lambda: none(jax.eval_shape(measure)))

    def always(updates: Any) -> jax.Array:
        found = jnp.stack([gradient_norms(tree) for tree in (state.model, updates)])
        return jnp.where(due, found, none(found))

    return jax.lax.platform_dependent(updates, cpu=seldom, default=always)


def _after(finite: jax.Array, found: jax.Array) -> jax.Array:
    """The same, and on a CPU only once `found` is: what is measured is read before anything is written in its place,
    or else XLA copies all of it. A GPU would hold every gradient for that."""
    later = lambda finite, found: finite & ~(found[0, 0] < 0)
    return jax.lax.platform_dependent(finite, found, cpu=later, default=lambda finite, found: finite)

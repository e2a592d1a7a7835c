"""One training step with differential privacy (DP-SGD, https://arxiv.org/abs/1607.00133). Knows no model.

    gradient = (sum over the sample of clipped gradients + noise) / expected size of a sample

Beside the gradients a step adds up one number more, the losses, in units in which the bound of a loss is `loss_share`
of the clipping norm. It is one coordinate of the same Gaussian mechanism, so the loss that is reported is private like
the gradient, and nothing else that a step reports depends on the documents except through these sums: no count of
tokens, no hash of the batch, no flag that a document was not finite.

Two programs make a step, as the sample may need the first one twice: it is never cut. Noise comes from a key that is an
argument, never a constant, for compiled programs are kept on disk.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlm.data.fingerprint import LANES
from jaxlm.privacy.clipping import clipped_sums
from jaxlm.privacy.config import PrivacyConfig
from jaxlm.privacy.feed import Sampled
from jaxlm.trainer.state import TrainState
from jaxlm.trainer.step import Metrics, Report, step_key, update

Objective = Callable[[Any, Any, Any], tuple[jax.Array, dict[str, jax.Array]]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Sums:
    """Over the documents of a chunk: clipped gradients, and clipped losses (nats per token)."""

    gradients: Any
    loss: jax.Array


@dataclass(frozen=True, slots=True)
class Noise:
    """What a step adds.

    Attributes:
        config: clipping and the loss beside it.
        multiplier: standard deviation over the sensitivity.
        expected: documents of a sample on average.
        tokens: what the step reports as fed to the model, a constant.
    """

    config: PrivacyConfig
    multiplier: float
    expected: float
    tokens: float

    @property
    def deviation(self) -> float:
        """Of the noise on each coordinate."""
        return self.multiplier * self.config.sensitivity

    @property
    def loss_unit(self) -> float:
        """Nats per token that one unit of the sums stands for."""
        return self.config.loss_bound / (self.config.loss_share * self.config.clip_norm)


def make_private_programs(
    objective: Objective,
    tx: optax.GradientTransformation,
    noise: Noise,
    *,
    axes: tuple[str, ...] = (),
    place: Callable[[Any], Any] = lambda gradients: gradients,
    seed: int = 0,
    report: Report = lambda step: {},
    layers: int = 0,
) -> tuple[Callable[..., Sums], Callable[..., tuple[TrainState[Any], Metrics]]]:
    """The two halves of the step, ready for jit: `compute(model, step, chunk)` and `finish(state, sums, key)`, the
    state donated.

    Args:
        objective: sums of the loss over a row's tokens, and `weight`, their number.
        tx: sees the noisy gradient only, so it may do with it what it likes.
        noise: what is added.
        axes: mesh axes along which the rows of a chunk lie.
        place: constrains gradients to where their weights lie.
        seed: of dropout, which is no secret.
        report: as in `make_train_step`.
        layers: likewise.
    """

    def mean_loss(model: Any, row: Mapping[str, jax.Array]) -> jax.Array:
        row = dict(row)
        # By the document's own number: what dropout draws for it must not depend on who else is in the sample.
        key = jax.random.fold_in(step_key(seed, row.pop("step")[0]), row.pop("number")[0])
        total, sums = objective(model, row, key)
        return total / jnp.maximum(sums["weight"], 1.0)

    config = noise.config
    clipped = clipped_sums(mean_loss, config.clip_norm, config.loss_bound, axes)

    def compute(model: Any, step: jax.Array, chunk: Mapping[str, jax.Array]) -> Sums:
        rows = {name: leaf for name, leaf in chunk.items() if name != "real"}

        def add(carry: Sums, item: Any) -> tuple[Sums, None]:
            rows, real = item
            gradients, loss = clipped(model, rows | {"step": jnp.full(real.shape, step)}, real)
            return Sums(place(jax.tree.map(jnp.add, carry.gradients, gradients)), carry.loss + loss), None

        nothing = Sums(jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), model), jnp.zeros((), jnp.float32))
        return jax.lax.scan(add, nothing, (rows, chunk["real"]))[0]

    def finish(state: TrainState[Any], done: Sums, key: jax.Array) -> tuple[TrainState[Any], Metrics]:
        with jax.named_scope("noise"):
            noisy = with_noise(done, key, noise)
        mean = lambda g, w: (g / noise.expected).astype(w.dtype)
        gradients = jax.tree.map(mean, noisy.gradients, state.model)
        loss = noisy.loss / noise.expected
        tokens = jnp.asarray(noise.tokens, jnp.float32)
        sums = {"loss": loss * tokens, "weight": tokens}
        after, metrics = update(state, tx, sums, gradients, state.sync, layers=layers)
        return after, {**metrics, "batch": jnp.zeros(LANES, jnp.uint32), **report(state.step)}

    return compute, finish


def with_noise(done: Sums, key: jax.Array, noise: Noise) -> Sums:
    """The sums with noise from the key (uint32 [2]) on every coordinate; the loss in nats per token again."""
    leaves, tree = jax.tree.flatten(done.gradients)
    keys = jax.random.split(jax.random.wrap_key_data(key, impl="threefry2x32"), len(leaves) + 1)
    normal = lambda k, shape: noise.deviation * jax.random.normal(k, shape, jnp.float32)
    noisy = [leaf + normal(k, leaf.shape) for leaf, k in zip(leaves, keys[:-1], strict=True)]
    return Sums(jax.tree.unflatten(tree, noisy), done.loss + noise.loss_unit * normal(keys[-1], ()))


def uncharged(step: int) -> None:
    raise RuntimeError(f"step {step + 1} would read protected documents, and no ledger was asked")


class PrivateStep:
    """`step(state, sampled) -> (state, metrics)` for the training loop.

    Attributes:
        charge: called with the number of finished steps before anything of the sample is computed; raises BudgetSpent,
            which leaves the state as it is. Without a ledger every step is refused.
    """

    def __init__(self, compute: jax.stages.Compiled, finish: jax.stages.Compiled):
        self.compute, self.finish = compute, finish
        self.charge: Callable[[int], None] = uncharged
        self._add = jax.jit(lambda some, more: jax.tree.map(jnp.add, some, more), donate_argnums=(0,))

    def __call__(self, state: TrainState[Any], sampled: Sampled) -> tuple[TrainState[Any], Metrics]:
        self.charge(sampled.step)
        first, *rest = sampled.chunks
        done = self.compute(state.model, state.step, first)
        for chunk in rest:
            done = self._add(done, self.compute(state.model, state.step, chunk))
        return self.finish(state, done, sampled.key)

    def as_text(self) -> str:
        """The optimised HLO of both programs."""
        return "\n".join(program.as_text() or "" for program in (self.compute, self.finish))

    def memory_analysis(self) -> Any:
        """As of `BalancedStep`."""
        first, second = self.compute.memory_analysis(), self.finish.memory_analysis()
        if first is None or second is None:
            return None
        names = ("argument_size_in_bytes", "output_size_in_bytes", "alias_size_in_bytes")
        temporary = max(first.temp_size_in_bytes, second.temp_size_in_bytes)
        return SimpleNamespace(temp_size_in_bytes=temporary, **{name: getattr(second, name) for name in names})

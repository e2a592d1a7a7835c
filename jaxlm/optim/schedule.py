"""What every optimizer shares: learning-rate schedule, clipping and weight decay, with their keys and their checks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxlm.optim.weights import decayed

Rate = Callable[[Any], jax.Array]
Part = tuple[str, optax.GradientTransformation]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """The keys that all optimizers have.

    Attributes:
        kind: adamw, lion, adafactor, muon or sgd; the other keys of this section depend on it.
        lr: peak learning rate.
        warmup: steps of linear warm-up.
        schedule: after warm-up: `cosine` or `linear` down to final x lr at the end, `wsd` (stable, then decay over the
            last share `decay` of all steps, https://arxiv.org/abs/2404.06395), or `constant`.
        final: last learning rate as a share of lr; unused by `constant`.
        decay: share of all steps over which `wsd` falls to final x lr; unused by the others.
        decay_shape: how `wsd` falls: `linear`, or `sqrt` for 1 - sqrt(progress), https://arxiv.org/abs/2405.18392.
        weight_decay: decoupled weight decay, on matrices only (never on gains, biases).
        clip_norm: global gradient norm is clipped to this, the square root of delta in eq. 4; 0 turns it off.
    """

    kind: str
    lr: float = 1e-3
    warmup: int = 100
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    final: float = 0.1
    decay: float = 0.2
    decay_shape: Literal["linear", "sqrt"] = "linear"
    weight_decay: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.lr <= 0.0:
            raise ValueError(f"optim.lr={self.lr} must be positive")
        if self.warmup < 0 or self.weight_decay < 0.0 or self.clip_norm < 0.0:
            raise ValueError("optim.warmup, optim.weight_decay and optim.clip_norm must not be negative")
        if not 0.0 <= self.final <= 1.0:
            raise ValueError(f"optim.final={self.final} must be in [0, 1]")
        if not 0.0 < self.decay <= 1.0:
            raise ValueError(
                f"optim.decay={self.decay} must be in (0, 1]: the share of the steps over which schedule wsd falls"
            )

    def check_shares(self, *names: str) -> None:
        """Raises ValueError for a decay rate outside [0, 1)."""
        for name in names:
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"optim.{name}={getattr(self, name)} must be in [0, 1)")

    def rate(self, steps: int) -> Rate:
        """The learning rate by step (from 0), float32, for a run of `steps` steps.

        The first step already learns, rate(0) = lr / warmup; the final rate is that of step `steps`, the first one
        not taken, so that no step is wasted at a final rate of 0.
        """
        warmup = min(self.warmup, max(steps - 1, 0))
        rest = max(steps - warmup, 1)
        rise = optax.linear_schedule(self.lr / max(warmup, 1), self.lr, max(warmup - 1, 1))
        joined = optax.join_schedules([rise, self._after_warmup(rest, steps)], [warmup])
        return lambda step: jnp.asarray(joined(step))

    def _after_warmup(self, rest: int, steps: int) -> Callable[[Any], Any]:
        if self.schedule == "constant":
            return optax.constant_schedule(self.lr)
        if self.schedule == "cosine":
            return optax.cosine_decay_schedule(self.lr, rest, self.final)
        if self.schedule == "linear":
            return optax.linear_schedule(self.lr, self.lr * self.final, rest)
        falling = min(max(round(self.decay * steps), 1), rest)
        stable = rest - falling
        return lambda step: self._fall(jnp.clip((step - stable) / falling, 0.0, 1.0))

    def _fall(self, progress: jax.Array) -> jax.Array:
        gone = jnp.sqrt(progress) if self.decay_shape == "sqrt" else progress
        return self.lr * (1.0 - (1.0 - self.final) * gone)

    def chain(self, steps: int, *direction: Part) -> optax.GradientTransformation:
        """Clipping, then `direction`, weight decay and the rate. Parts are named, so that the state is called
        `adam/mu/...` whatever else is on."""
        return optax.named_chain(
            self.clipping(),
            *direction,
            self.decaying(),
            ("rate", optax.scale_by_learning_rate(self.rate(steps))),
        )

    def clipping(self) -> Part:
        return "clip", optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity()

    def decaying(self) -> Part:
        return "decay", optax.add_decayed_weights(self.weight_decay, mask=decayed)

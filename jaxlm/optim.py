"""Optimizers and learning-rate schedules, composed from optax."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxlm.tree import from_named, named_axes


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """AdamW with linear warm-up and cosine decay, https://arxiv.org/abs/1711.05101.

    Attributes:
        lr: peak learning rate.
        warmup: steps of linear warm-up.
        schedule: `cosine` down to final x lr at the last step, or `constant` after warm-up.
        final: last learning rate as a share of lr.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: term added to the denominator.
        weight_decay: decoupled weight decay, on matrices only (never on gains, biases).
        clip_norm: global gradient norm is clipped to this, the square root of delta in eq. 4; 0 turns it off.
        first_moment: dtype of the first moment; bfloat16 halves its memory.
    """

    lr: float = 1e-3
    warmup: int = 100
    schedule: Literal["cosine", "constant"] = "cosine"
    final: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    first_moment: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.lr <= 0.0:
            raise ValueError(f"optim.lr={self.lr} must be positive")
        if self.warmup < 0 or self.weight_decay < 0.0 or self.clip_norm < 0.0:
            raise ValueError("optim.warmup, optim.weight_decay and optim.clip_norm must not be negative")
        for name in ("b1", "b2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"optim.{name}={getattr(self, name)} must be in [0, 1)")
        if not 0.0 <= self.final <= 1.0:
            raise ValueError(f"optim.final={self.final} must be in [0, 1]")

    def rate(self, steps: int) -> Callable[[Any], jax.Array]:
        """The learning rate by step, for a run of `steps` steps."""
        warmup = min(self.warmup, max(steps - 1, 0))
        if self.schedule == "constant":
            rest = optax.constant_schedule(self.lr)
        else:
            rest = optax.cosine_decay_schedule(self.lr, max(steps - warmup, 1), self.final)
        # The first step already learns: rate(0) = lr / warmup.
        rise = optax.linear_schedule(self.lr / max(warmup, 1), self.lr, max(warmup - 1, 1))
        joined = optax.join_schedules([rise, rest], [warmup])
        return lambda step: jnp.asarray(joined(step))

    def build(self, steps: int) -> optax.GradientTransformation:
        """The transformation; its parts are named, so the state is called `adam/mu/...` whatever else is on."""
        adam = optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=jnp.dtype(self.first_moment))
        return optax.named_chain(
            ("clip", optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity()),
            ("adam", adam),
            ("decay", optax.add_decayed_weights(self.weight_decay, mask=decayed)),
            ("rate", optax.scale_by_learning_rate(self.rate(steps))),
        )


def decayed(parameters: Any) -> Any:
    """True for each weight that decays: those with two or more axes besides `layers` that are not biases or gains."""
    axes = named_axes(parameters)

    def is_matrix(name: str) -> bool:
        return len([a for a in axes[name] if a != "layers"]) >= 2 and not name.endswith("bias")

    return from_named(parameters, {name: is_matrix(name) for name in axes})


def gradient_norms(gradients: Any) -> jax.Array:
    """Euclidean norm of each gradient tensor, float32 [tensors] in tree order; not finite where the tensor is not."""
    return jnp.stack([jnp.linalg.norm(g.astype(jnp.float32).reshape(-1)) for g in jax.tree.leaves(gradients)])

"""Muon for the hidden matrices, AdamW for everything else."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jaxlm.optim.adamw import Adam
from jaxlm.optim.weights import hidden, hidden_sides, not_hidden
from jaxlm.tree import from_named, named_leaves

RMS = 0.2
"""Root mean square of an AdamW update that Muon's is scaled to, section 2.2 of https://arxiv.org/abs/2502.16982."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Muon(Adam):
    """Muon, https://kellerjordan.github.io/posts/muon: the momentum of each hidden matrix is orthogonalised by a
    Newton-Schulz iteration. Embeddings, head, gains and biases are trained by AdamW.

    Each layer's q, k, v, o and feed-forward weight is one matrix, its heads taken together. Its sides a <= b cost
    4 a^2 b + 2 a^3 FLOPs per iteration: five of them on a square matrix are 30 a^3 against the 6 a^2 x tokens of
    forward and backward, a share of 5 a / tokens of the step (1 % at a = 1024 and 0.5 M tokens). Replicas repeat
    this work; it is not counted in mfu or in the plan's predicted seconds.

    Attributes:
        momentum: decay of the momentum.
        nesterov: whether the gradient is added to the momentum once more.
        iterations: Newton-Schulz iterations.
        scale: `rms` multiplies the update by 0.2 sqrt(max(rows, columns)), which gives it the size of an AdamW update,
            so that lr and weight_decay are those of AdamW (https://arxiv.org/abs/2502.16982); `spectral` by
            sqrt(max(1, columns / rows)) of the original, whose lr is about 0.02.
        adam_lr: peak learning rate of the weights that AdamW trains; null means lr, and `spectral` needs a number.
    """

    kind: Literal["muon"] = "muon"
    momentum: float = 0.95
    nesterov: bool = True
    iterations: int = 5
    scale: Literal["rms", "spectral"] = "rms"
    adam_lr: float | None = None

    def __post_init__(self) -> None:
        Adam.__post_init__(self)
        self.check_shares("momentum")
        if self.iterations < 1:
            raise ValueError(f"optim.iterations={self.iterations} must be positive")
        if self.adam_lr is not None and self.adam_lr <= 0.0:
            raise ValueError(f"optim.adam_lr={self.adam_lr} must be positive, or null to use optim.lr")
        if self.adam_lr is None and self.scale == "spectral":
            raise ValueError(
                f"optim.scale=spectral needs optim.adam_lr: optim.lr={self.lr} is in Muon's own unit, "
                "which is not that of AdamW (3e-4 is a common value)"
            )

    def build(self, steps: int) -> optax.GradientTransformation:
        rate = self.rate(steps)
        share = 1.0 if self.adam_lr is None else self.adam_lr / self.lr
        muon = scale_by_muon(
            ns_steps=self.iterations,
            beta=self.momentum,
            eps=self.eps,
            mu_dtype=jnp.dtype(self.first_moment),
            nesterov=self.nesterov,
            weight_dimension_numbers=_dimensions,
        )
        return optax.named_chain(
            self.clipping(),
            ("muon", optax.masked(muon, hidden)),
            ("scale", optax.stateless(lambda updates, _: self._scaled(updates))),
            ("adam", optax.masked(self.moments(), not_hidden)),
            self.decaying(),
            ("rate", optax.masked(optax.scale_by_learning_rate(rate), hidden)),
            ("adam_rate", optax.masked(optax.scale_by_learning_rate(lambda step: share * rate(step)), not_hidden)),
        )

    def _scaled(self, updates: Any) -> Any:
        found, named = hidden_sides(updates), named_leaves(updates)

        def factor(name: str) -> float:
            if name not in found:
                return 1.0
            rows, columns = (math.prod(named[name].shape[i] for i in axes) for axes in found[name])
            return RMS * math.sqrt(max(rows, columns)) if self.scale == "rms" else math.sqrt(max(1.0, columns / rows))

        return from_named(updates, {name: leaf * factor(name) for name, leaf in named.items()})


def _dimensions(tree: Any) -> Any:
    """The sides of each matrix in the place of its array, as `scale_by_muon` asks for them."""
    found = hidden_sides(tree)
    sides = [MuonDimensionNumbers(*found[name]) for name in named_leaves(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), sides)

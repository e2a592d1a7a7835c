"""AdamW: the optimizer that works everywhere."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import optax

from jaxlm.optim.frozen import scale_by_frozen_adam
from jaxlm.optim.schedule import Shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam(Shared):
    """The moments of Adam, for whatever is trained by them.

    Attributes:
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: term added to the denominator.
        first_moment: dtype of the first moment (of Muon's momentum too); bfloat16 halves its memory.
    """

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    first_moment: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        Shared.__post_init__(self)
        self.check_shares("b1", "b2")

    def moments(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=jnp.dtype(self.first_moment))


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW(Adam):
    """AdamW, https://arxiv.org/abs/1711.05101."""

    kind: Literal["adamw"] = "adamw"

    def build(self, steps: int) -> optax.GradientTransformation:
        return self.chain(steps, ("adam", self.moments()))

    def frozen(self, steps: int, warm: int) -> optax.GradientTransformation:
        """The same without clipping, which takes the gradient for `warm` steps and then the momentum itself, over the
        variance as it is then. For gradients that travel compressed: their exchange clips."""
        dtype = jnp.dtype(self.first_moment)
        part = "adam", scale_by_frozen_adam(self.b1, self.b2, self.eps, warm, dtype)
        return dataclasses.replace(self, clip_norm=0.0).chain(steps, part)

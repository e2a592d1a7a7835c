"""Lion: the sign of a momentum, half of Adam's memory."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import optax

from jaxlm.optim.schedule import Shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Lion(Shared):
    """Lion, https://arxiv.org/abs/2302.06675: every weight moves by the rate, so it wants a 3 to 10 times smaller one
    than AdamW and a weight decay larger by as much; the defaults are 10 times.

    Attributes:
        b1: share of the momentum in the update, the rest is the gradient.
        b2: decay of the momentum.
        first_moment: dtype of the momentum; bfloat16 halves its memory.
    """

    kind: Literal["lion"] = "lion"
    lr: float = 1e-4
    weight_decay: float = 1.0
    b1: float = 0.9
    b2: float = 0.99
    first_moment: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        Shared.__post_init__(self)
        self.check_shares("b1", "b2")

    def build(self, steps: int) -> optax.GradientTransformation:
        return self.chain(steps, ("lion", optax.scale_by_lion(self.b1, self.b2, jnp.dtype(self.first_moment))))

"""SGD with momentum, the optimizer that deep gradient compression is made for."""

from dataclasses import dataclass
from typing import Literal

import optax

from jaxlm.optim.schedule import Shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Sgd(Shared):
    """Stochastic gradient descent; its rate is two or three orders above Adam's.

    Attributes:
        momentum: decay of the sum of gradients that is the direction; 0 takes the gradient itself.
    """

    kind: Literal["sgd"] = "sgd"
    lr: float = 0.1
    weight_decay: float = 0.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        Shared.__post_init__(self)
        self.check_shares("momentum")

    def build(self, steps: int) -> optax.GradientTransformation:
        return self.chain(steps, ("sgd", optax.trace(self.momentum) if self.momentum else optax.identity()))

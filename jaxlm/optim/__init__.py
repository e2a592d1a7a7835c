"""Optimizers and learning-rate schedules, composed from optax; `kind` in the configuration chooses one."""

from jaxlm.optim.adafactor import Adafactor
from jaxlm.optim.adamw import AdamW
from jaxlm.optim.lion import Lion
from jaxlm.optim.muon import Muon
from jaxlm.optim.sgd import Sgd
from jaxlm.optim.weights import decayed, gradient_norms

Optimizer = AdamW | Lion | Adafactor | Muon | Sgd

__all__ = ["Adafactor", "AdamW", "Lion", "Muon", "Optimizer", "Sgd", "decayed", "gradient_norms"]

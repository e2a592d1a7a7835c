"""Whether a run trains with differential privacy, how much of it, and with which noise."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyConfig:
    """DP-SGD (https://arxiv.org/abs/1607.00133) and its budget; needs the extra `privacy`.

    Protected is one document, a row of data.mode=truncate: whoever sees everything that the run releases learns little
    about whether any one document of the training split was there. A person with several documents has less, and the
    held-out split is evaluated exactly and not protected. What is released is the weights, checkpoints, and metrics.

    Attributes:
        enabled: train with differential privacy: `train.batch` is then the expected number of documents of a step.
        epsilon: the whole budget of the ledger.
        delta: chance that the promise of epsilon fails; must stay below 1 / documents.
        clip_norm: largest norm of the gradient of one document, whose loss is the mean over its tokens.
        noise_multiplier: standard deviation of the noise over the sensitivity; null takes the smallest that keeps
            train.steps within the budget when the run begins, and keeps it from then on.
        ledger: file of the budget; null is privacy.ledger in the run directory. Runs on the same documents share one,
            on a local disk, for their spending adds up.
        orders: Renyi orders by which the ledger enforces the budget, which share delta; empty takes the one at which
            this run costs least, best where nothing else is asked of the documents.
        loss_share: part of the sensitivity that is spent on reporting a noisy loss.
        loss_bound: a document's loss above this counts as this much, in nats per token.
        examples: the most documents whose gradients a device holds at once, of those in its microbatch; 0 takes what
            fits into 1 GiB.
    """

    enabled: bool = False
    epsilon: float = 8.0
    delta: float = 1e-6
    clip_norm: float = 1.0
    noise_multiplier: float | None = None
    ledger: str | None = None
    orders: tuple[float, ...] = ()
    loss_share: float = 0.1
    loss_bound: float = 12.0
    examples: int = 0

    def __post_init__(self) -> None:
        for name in ("epsilon", "clip_norm", "loss_bound", "loss_share"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"privacy.{name}={value} must be a finite number above 0")
        if not 0 < self.delta < 1:
            raise ValueError(f"privacy.delta={self.delta} must lie between 0 and 1")
        noise = self.noise_multiplier
        if noise is not None and not (math.isfinite(noise) and noise > 0):
            raise ValueError(f"privacy.noise_multiplier={noise} must be a finite number above 0, or null")
        if any(not order > 1 for order in self.orders) or len(set(self.orders)) != len(self.orders):
            raise ValueError(f"privacy.orders={list(self.orders)} must be different numbers above 1")
        if self.examples < 0:
            raise ValueError(f"privacy.examples={self.examples} must not be negative; 0 takes what fits")
        if self.ledger == "":
            raise ValueError("privacy.ledger='' must be a path, or null")

    @property
    def sensitivity(self) -> float:
        """Of what a step adds up, to one document: the clipped gradient, and beside it the loss in the same units."""
        return self.clip_norm * math.hypot(1.0, self.loss_share)

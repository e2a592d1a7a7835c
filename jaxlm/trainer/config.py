"""How long to train, on how much per step, and how often to report."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The training loop.

    Attributes:
        steps: optimizer steps of the whole run.
        batch: sequences per step, over all devices and microbatches; a plan never changes it.
        log_every: steps between lines of metrics.jsonl and of the log.
        eval_every: steps between evaluations on the held-out split; 0 evaluates at the end only.
        eval_batches: batches per evaluation during training; 0 means the whole split. The last one is always whole.
        eval_batch: sequences per evaluation batch; 0 means as many as one training microbatch.
        tensorboard: whether to write TensorBoard events into the run directory.
        wandb: project at Weights & Biases that the same records go to, with the extra `tracking`; null sends nothing.
        compilation_cache: whether compiled programs are kept on disk for the next start.
    """

    steps: int = 1000
    batch: int = 32
    log_every: int = 10
    eval_every: int = 0
    eval_batches: int = 0
    eval_batch: int = 0
    tensorboard: bool = True
    wandb: str | None = None
    compilation_cache: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)} must be positive")
        for name in ("eval_every", "eval_batches", "eval_batch"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name}={getattr(self, name)} must not be negative")
        if self.wandb == "":
            raise ValueError("train.wandb='' must be the name of a project, or null")

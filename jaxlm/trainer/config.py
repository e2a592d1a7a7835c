"""How long to train, on how much per step, and how often to report."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplanConfig:
    """The agent that tries other plans while a run trains, and changes to one that proves faster.

    Attributes:
        enabled: try other plans; `--replan` says so too. Tokens, losses and checkpoints stay what they are.
        plans: plans that are candidates: the one that was searched and the next best that fit.
        steps: steps of a probe that count.
        warm: steps after each change that do not count.
        gammas: sensitivities of alpha (eq. 6) that are tried where the plan moves its shares.
        hystereses: likewise its hysteresis.
    """

    enabled: bool = False
    plans: int = 4
    steps: int = 5
    warm: int = 2
    gammas: tuple[float, ...] = (0.5, 1.0)
    hystereses: tuple[float, ...] = (0.02, 0.1)

    def __post_init__(self) -> None:
        for name in ("plans", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.replan.{name}={getattr(self, name)} must be positive")
        if self.warm < 0 or min((*self.gammas, *self.hystereses), default=0.0) < 0:
            raise ValueError("train.replan.warm, gammas and hystereses must not be negative")


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
        replan: whether and how other plans are tried while the run trains.
        monitor: whether each host reports its steps, its waits and its hardware into `hosts/` of the run directory.
        check_replicas: steps between comparisons of the weights of all replicas, bit for bit; 0 makes none.
        compilation_cache: whether compiled programs are kept on disk for the next start (in the folder that
            JAX_COMPILATION_CACHE_DIR names, else in the user cache).
    """

    steps: int = 1000
    batch: int = 32
    log_every: int = 10
    eval_every: int = 0
    eval_batches: int = 0
    eval_batch: int = 0
    tensorboard: bool = True
    wandb: str | None = None
    replan: ReplanConfig = field(default_factory=ReplanConfig)
    monitor: bool = True
    check_replicas: int = 1000
    compilation_cache: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)} must be positive")
        for name in ("check_replicas", "eval_every", "eval_batches", "eval_batch"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name}={getattr(self, name)} must not be negative")
        if self.wandb == "":
            raise ValueError("train.wandb='' must be the name of a project, or null")

"""What a run writes into its audit trail, and when."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernanceConfig:
    """The audit trail of a run, in RUN/audit; see `jaxlm audit`.

    Attributes:
        enabled: sign checkpoints and log what happens; with false nothing is logged, signed or verified against a log.
        layers_every: steps between entries with the norms of each tensor's gradient, weights and update; 0: never.
        flush_seconds: how long an entry waits for others before it is made durable; checkpoints never wait.
        policy: a file of rules that alert, pause or halt training, or deny requests (configs/policies/); null: none.
        witnesses: a tlog-policy file with the logs' witnesses, their URLs and the quorum; null: no witness is asked.
        recipients: age public keys (age1...): each checkpoint is also written as one encrypted file that they can read,
            by the thread that saves it, as `jaxlm audit snapshot` does; empty: none is. Nothing deletes old ones.
        copies: the folder of these files, NAME-STEP.age; null: RUN/copies, which is worth little if the disk is lost.
    """

    enabled: bool = True
    layers_every: int = 50
    flush_seconds: float = 2.0
    policy: str | None = None
    witnesses: str | None = None
    recipients: tuple[str, ...] = ()
    copies: str | None = None

    def __post_init__(self) -> None:
        if self.layers_every < 0:
            raise ValueError(f"governance.layers_every={self.layers_every} must not be negative; 0 logs no layers")
        if self.flush_seconds <= 0:
            raise ValueError(f"governance.flush_seconds={self.flush_seconds} must be positive")
        if self.policy is not None and not self.enabled:
            raise ValueError(
                f"governance.policy={self.policy} needs the log that its verdicts go to: set governance.enabled to true"
            )
        if self.copies is not None and not self.recipients:
            raise ValueError(f"governance.copies={self.copies} needs governance.recipients: who can read the copies")
        if self.recipients and not self.enabled:
            raise ValueError("governance.recipients needs the log that names copies: set governance.enabled to true")

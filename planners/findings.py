"""What is found out about a plan: predicted by the cost model, read off its compiled step, and which plans lost."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the cost model expects of one step on the busiest device; never a measurement.

    `unrematerialised` are the bytes that the step would need if all layers kept everything, where some do not.
    `seconds` and `memory` (bytes) are split into named parts that add up to the totals; `link_bytes` are the bytes
    that one device sends over each mesh axis.
    """

    seconds: dict[str, float]
    memory: dict[str, float]
    link_bytes: dict[str, float] = field(default_factory=dict)
    mfu: float | None = None
    unrematerialised: float | None = None

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def memory_bytes(self) -> float:
        return sum(self.memory.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Collectives of one kind in a compiled step.

    `calls` per step; `size` bytes of one call's whole tensors; `sent` bytes that one device sends in all calls of a
    step; `beside` the heaviest work the compiler scheduled between their starts and their ends.
    """

    kind: str
    axes: str
    dtype: str
    calls: int
    size: float
    sent: float
    beside: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Compilation:
    """What XLA's compiler made of one step, read back; neither a prediction nor a measurement.

    Attributes:
        target: what it was compiled for.
        memory: bytes per device by part, without what runtime libraries keep outside the program.
        link_bytes: that one device sends over each mesh axis.
        hidden_bytes: those of them that travel beside matrix products.
        traffic: the collectives behind these sums, most bytes first.
        warnings: what the compiler complained of.
        versions: of the packages that compiled it.
        step_seconds: the predicted step time with the compiled bytes in place of the predicted ones.
    """

    target: str
    memory: dict[str, float]
    link_bytes: dict[str, float] = field(default_factory=dict)
    hidden_bytes: dict[str, float] = field(default_factory=dict)
    traffic: tuple[Traffic, ...] = ()
    warnings: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    step_seconds: float | None = None

    @property
    def memory_bytes(self) -> float:
        return sum(self.memory.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A plan that lost: what it was, what it would have cost, and the sentence that says why it lost."""

    summary: str
    step_seconds: float
    memory_bytes: float
    reason: str

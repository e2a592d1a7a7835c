"""What the user lets the planner choose, and what a planner is."""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from planners.balance import Balance
from planners.plan import MESH_AXES, Plan, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What the user lets the planner choose. An empty field means: the planner decides.

    Attributes:
        mesh: sizes of mesh axes that are fixed, e.g. {tensor: 2}; the others are searched.
        microbatch: sequences per microbatch over all devices.
        remat: `auto` (no rematerialisation if it fits, else the cheapest that does), `none` or `full`.
        loss_chunks: pieces in which the logits are computed; 0 lets the planner decide.
        shard_optimizer: split the optimizer state over the data axis too (ZeRO-1); None lets the planner decide.
        memory_fraction: share of each device's memory that a plan may use.
        unroll: layers per iteration of the layer scan.
        calibrate: price plans with what earlier runs on this kind of machine have taught (see `jaxlm doctor`).
        options: XLA options for the training step, passed through the plan.
        balance: whether replicas share the microbatches of a step by measured throughput: `never`, `always`, or `auto`,
            which does so on unequal devices where each replica has at least four.
        alpha: how the shares then follow it.
        schedule: who orders the gradient sums: the `compiler`, or the planner, by the smallest `simulated` time.
    """

    mesh: dict[str, int] = field(default_factory=dict)
    microbatch: int | None = None
    remat: Literal["auto", "none", "full"] = "auto"
    loss_chunks: int = 0
    shard_optimizer: bool | None = None
    memory_fraction: float = 0.9
    unroll: int = 1
    calibrate: bool = True
    options: dict[str, str | int | float | bool] = field(default_factory=dict)
    balance: Literal["auto", "always", "never"] = "auto"
    alpha: Balance = field(default_factory=Balance)
    schedule: Literal["compiler", "simulated"] = "compiler"

    def __post_init__(self) -> None:
        if unknown := set(self.mesh) - set(MESH_AXES):
            raise ValueError(f"plan.mesh: unknown axes {sorted(unknown)}; the axes are {', '.join(MESH_AXES)}")
        if not 0.0 < self.memory_fraction <= 1.0:
            raise ValueError(f"plan.memory_fraction={self.memory_fraction} must be in (0, 1]")
        if self.loss_chunks < 0 or self.unroll < 1:
            raise ValueError("plan.loss_chunks must be >= 0 and plan.unroll >= 1")


@runtime_checkable
class Planner(Protocol):
    """Anything that turns a description of work and machines into a Plan."""

    def __call__(self, workload: Workload, cluster: Any, search: Search) -> Plan: ...

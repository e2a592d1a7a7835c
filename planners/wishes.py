"""What the user lets the planner choose, and what a planner is."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from planners.balance import Balance
from planners.plan import MESH_AXES, Budget, Plan, Workload
from planners.suggestions import suggest

REMATS = ("auto", "dp", "greedy", "lagrangian", "learned", "static", "threshold", "full", "none")
"""Who may decide what is rematerialised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RematFeedback:
    """Measured step times and peaks correct what recomputing is taken to cost, and layers may change what they keep
    between epochs, within the same memory (eq. 13). Tokens, losses and checkpoints stay what they are.

    Attributes:
        every: steps of an epoch, at whose end that is decided; 0 never.
        horizon: steps over which a change must be expected to win back its compilation; 0: those that are left.
    """

    every: int = 0
    horizon: int = 0

    def __post_init__(self) -> None:
        for name in ("every", "horizon"):
            if getattr(self, name) < 0:
                raise ValueError(f"plan.remat_feedback.{name}={getattr(self, name)} must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Travel:
    """How gradients travel over one mesh axis.

    Attributes:
        scheme: what is sent: `none` (exact), `bf16`, `int8`, `int8_shared` or `fp8`; with error feedback `int4`,
            `sign`, `topk` and `powersgd`; `dgc` for optim.kind=sgd; `local_sgd` trains apart, and exchanges now and
            then; `auto` is the fastest by prediction that loses no more than `budget` allows, which may be none.
        parameters: of the scheme, e.g. {density: 0.01}; the others have their defaults. A wrong name lists them all.
        every: steps between exchanges, for local_sgd; None is its default, 30.
        budget: what `auto` may lose: nothing (`exact`), as much as `16-bit` or `8-bit` codes do, or anything that error
            `feedback` brings later.
    """

    scheme: Literal[
        "none", "auto", "bf16", "int8", "int8_shared", "fp8", "int4", "sign", "topk", "dgc", "powersgd", "local_sgd"
    ] = "none"
    parameters: dict[str, float] = field(default_factory=dict)
    every: int | None = None
    budget: Budget = "8-bit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What the user lets the planner choose. An empty field means: the planner decides.

    Attributes:
        mesh: sizes of mesh axes that are fixed, e.g. {tensor: 2}; the others are searched.
        microbatch: sequences per microbatch over all devices.
        remat: who decides what each layer keeps for its backward pass. `auto` keeps everything if it fits, else what
            costs least, layer by layer and value by value (`dp`, a dynamic program); `greedy`, `lagrangian`, `learned`,
            `static` and `threshold` are the other strategies of the paper; `none` and `full` are the same for all
            layers. Or the path of a YAML file with a list of segments: layers, save, offload, group.
        offload: let values wait in host memory too, where the link to it is known; compiled, not yet run on a GPU.
        remat_feedback: whether what layers keep is decided anew while a run trains, by what its steps took.
        loss_chunks: pieces in which the logits are computed; 0 lets the planner decide.
        shard_optimizer: split the optimizer state over the data axis too (ZeRO-1); None lets the planner decide.
        memory_fraction: share of each device's memory that a plan may use.
        memory_budget: bytes of each device that a plan may use, as `24GiB` or `80e9`, instead of a share.
        unroll: layers per iteration of the layer scan.
        calibrate: price plans with what earlier runs on this kind of machine have taught (see `jaxlm doctor`).
        options: XLA options for the training step, passed through the plan.
        balance: whether replicas share the microbatches of a step by measured throughput: `never`, `always`, or `auto`,
            which does so on unequal devices where each replica has at least four.
        alpha: how the shares then follow it.
        schedule: who orders the gradient sums: the `compiler`, or the planner, by the smallest `simulated` time.
        communication: how gradients travel over slow mesh axes, e.g. {zone: {scheme: int8}}; others stay exact.
        allow_unsafe: accept schemes that are known to spoil training, to measure it; `--allow-unsafe` says so too.
    """

    mesh: dict[str, int] = field(default_factory=dict)
    microbatch: int | None = None
    remat: str = "auto"
    offload: bool = False
    remat_feedback: RematFeedback = field(default_factory=RematFeedback)
    loss_chunks: int = 0
    shard_optimizer: bool | None = None
    memory_fraction: float = 0.9
    memory_budget: str | None = None
    unroll: int = 1
    calibrate: bool = True
    options: dict[str, str | int | float | bool] = field(default_factory=dict)
    balance: Literal["auto", "always", "never"] = "auto"
    alpha: Balance = field(default_factory=Balance)
    schedule: Literal["compiler", "simulated"] = "compiler"
    communication: dict[str, Travel] = field(default_factory=dict)
    allow_unsafe: bool = False

    def __post_init__(self) -> None:
        if unknown := set(self.mesh) - set(MESH_AXES):
            raise ValueError(f"plan.mesh: unknown axes {sorted(unknown)}; the axes are {', '.join(MESH_AXES)}")
        for axis in self.communication:
            if axis not in MESH_AXES:
                raise ValueError(
                    f"plan.communication.{axis}: there is no such axis{suggest(axis, MESH_AXES)}; the axes are "
                    f"{', '.join(MESH_AXES)}"
                )
        if not 0.0 < self.memory_fraction <= 1.0:
            raise ValueError(f"plan.memory_fraction={self.memory_fraction} must be in (0, 1]")
        if self.loss_chunks < 0 or self.unroll < 1:
            raise ValueError("plan.loss_chunks must be >= 0 and plan.unroll >= 1")
        if self.remat not in REMATS and not self.remat.endswith((".yaml", ".yml", ".json")):
            raise ValueError(
                f"plan.remat={self.remat!r} is not known{suggest(self.remat, REMATS)}; it is one of "
                f"{', '.join(REMATS)}, or a .yaml file of segments"
            )
        if self.memory_budget is not None:
            parse_bytes(self.memory_budget)

    def fraction(self, memory: float) -> float:
        """Share of a device with so many bytes that a plan may use."""
        return self.memory_fraction if self.memory_budget is None else parse_bytes(self.memory_budget) / memory


UNITS = {
    **{"": 1, "B": 1},
    **{f"{prefix}B": 1000**n for n, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}iB": 1024**n for n, prefix in enumerate("KMGT", 1)},
}
"""Bytes by unit."""


def parse_bytes(text: str) -> float:
    """Bytes of `24GiB`, `80 GB` or `8e10`. Raises ValueError for anything else, and unless it is positive."""
    found = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    size = float(found[1]) * UNITS[found[2]] if found and found[2] in UNITS else 0.0
    if not size > 0:
        raise ValueError(f"plan.memory_budget={text!r} is no number of bytes; write it as 24GiB, 80GB or 8e10")
    return size


@runtime_checkable
class Planner(Protocol):
    """Anything that turns a description of work and machines into a Plan."""

    def __call__(self, workload: Workload, cluster: Any, search: Search) -> Plan: ...

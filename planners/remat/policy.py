"""The rematerialisation problem of one pipeline stage: what a layer can do, what a mix of layers needs and costs.

In the paper's eqs. 8-10 z = 1 means *store*. Eq. 10 as printed adds bytes to seconds; here the extra seconds are
minimised and the bytes are limited (eqs. 8 and 9).

Memory follows the order in which the layers run. Runs are numbered forwards; run j has n_j layers, each of which keeps
m_j bytes for its backward pass, and needs tau_j bytes besides while one of its layers goes back. The layers of later
runs have gone back by then and left g bytes each (their gradients), and so has room been made for those of run j.
Under 1F1B another F - 1 microbatches wait with all that they keep. While run j goes back, the device holds

    sum over i <= j of n_i m_i + tau_j + g * sum over i >= j of n_i + (F - 1) * sum over all i of n_i m_i

and the peak is the largest of these. With F = 1 and g = 0 this is the max-prefix model, which XLA's temporary memory
follows for segments of a layer scan.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from planners.plan import PlanError, Segment

MOST_SEGMENTS = 4
"""Runs of one policy that the layers of a stage may have: each is a loop that has to be compiled."""

ROUNDING = 1e-12
"""Relative difference below which two sums of bytes or seconds count as equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What one layer does: which of its values it keeps (z = 1), and what that needs and costs on one device.

    Attributes:
        name: for tables and messages.
        save: names of the values kept on the device, as in planners.plan.Segment; None keeps all of them.
        offload: names of the values that wait in host memory.
        group: layers that are recomputed together; a run of this policy is a multiple of it.
        kept: bytes that one layer keeps on the device from its forward to its backward pass, per microbatch.
        transient: bytes needed besides while one layer (one group) goes back.
        seconds: extra seconds per layer and microbatch.
        flops: extra FLOPs per layer and microbatch.
        layer: false for what takes memory in its turn and is no layer, such as the loss: no segment of a Plan.
    """

    name: str
    save: tuple[str, ...] | None
    offload: tuple[str, ...] = ()
    group: int = 1
    kept: float
    transient: float
    seconds: float
    flops: float = 0.0
    layer: bool = True

    def __post_init__(self) -> None:
        if self.group < 1:
            raise PlanError(f"remat policy {self.name}: group={self.group} must be at least 1")
        if min(self.kept, self.transient, self.seconds) < 0:
            raise PlanError(
                f"remat policy {self.name}: kept={self.kept:g}, transient={self.transient:g} and "
                f"seconds={self.seconds:g} must not be negative"
            )

    def segment(self, layers: int) -> Segment:
        return Segment(layers=layers, save=self.save, offload=self.offload, group=self.group)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Consecutive equal layers of one stage.

    Attributes:
        count: of the layers.
        policies: what each of them may do.
        in_flight: microbatches whose activations are held at once, the one that goes back included; under 1F1B stage i
            of p holds min(microbatches, p - i).
        freed: bytes per layer that are held once the layer has gone back: its gradients.
    """

    count: int
    policies: tuple[Policy, ...]
    in_flight: int = 1
    freed: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1 or self.in_flight < 1 or self.freed < 0 or not self.policies:
            raise PlanError(
                f"remat: layers need count >= 1, in_flight >= 1, freed >= 0 and a policy; got count={self.count}, "
                f"in_flight={self.in_flight}, freed={self.freed:g}, {len(self.policies)} policies"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One stage: its layers in the order in which they run, and the bytes that activations and transients may use.

    Each stage of a pipeline is a problem of its own: the slowest stage sets the pace of the step, and the later a stage
    the fewer microbatches it holds.

    Attributes:
        classes: stretches of equal layers, in the order in which they run.
        budget: bytes.
        most_segments: runs of one policy that the stage may have: each is a loop that has to be compiled.
        shortest: turns of the loop of each run, at least: a loop of one turn is inlined and may lose its
            recomputation. A class with fewer layers than this is one run.
    """

    classes: tuple[Layers, ...]
    budget: float
    most_segments: int = MOST_SEGMENTS
    shortest: int = 2

    def __post_init__(self) -> None:
        if not self.classes or self.shortest < 1:
            raise PlanError(f"remat: a problem needs a class of layers and shortest >= 1, not {self.shortest}")
        if self.most_segments < len(self.classes):
            raise PlanError(
                f"remat: {len(self.classes)} classes of layers need most_segments >= {len(self.classes)}, "
                f"not {self.most_segments}"
            )

    def least(self, kind: int, policy: Policy) -> int:
        """Layers of the shortest run that class `kind` may have under `policy`; more than it has where there is
        none."""
        count = self.classes[kind].count
        if count < self.shortest:
            return count if count % policy.group == 0 else count + 1
        return self.shortest * policy.group

    def may_run(self, kind: int, policy: Policy) -> bool:
        """Whether all layers of class `kind` may be one run of `policy`."""
        count = self.classes[kind].count
        return self.least(kind, policy) <= count and count % policy.group == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What one stage holds besides what the policies of its layers say.

    Attributes:
        freed: bytes of one layer's gradients, as in Layers.
        loss: what the loss needs when its turn comes, after all forward passes; None where that is not known.
        update: bytes once all layers have gone back, whatever they keep.
    """

    freed: float = 0.0
    loss: Policy | None = None
    update: float = 0.0

    def problem(self, count: int, policies: Sequence[Policy], budget: float) -> Problem:
        """For `count` equal layers; the loss is a class of its own, behind them."""
        layers = Layers(count=count, policies=tuple(policies), freed=self.freed)
        last = () if self.loss is None else (Layers(count=1, policies=(self.loss,)),)
        return Problem(classes=(layers, *last), budget=budget, most_segments=MOST_SEGMENTS + len(last))

    def moments(self, runs: Sequence["Run"]) -> list[float]:
        """Bytes while each of these runs of layers goes back, and while the loss is computed."""
        of_layers = tuple(run for run in runs if run.policy.layer)
        problem = self.problem(sum(run.layers for run in of_layers), [run.policy for run in of_layers], 0.0)
        last = () if self.loss is None else (Run(1, self.loss, 1),)
        return moments((*of_layers, *last), problem.classes)


class Run(NamedTuple):
    """Consecutive layers of class `kind` under one policy."""

    kind: int
    policy: Policy
    layers: int


def moments(runs: Sequence[Run], classes: Sequence[Layers]) -> list[float]:
    """Bytes held while each run goes back; `runs` and the result in the order of the forward pass."""
    sizes = [run.layers * run.policy.kept for run in runs]
    waiting = sum((classes[run.kind].in_flight - 1) * size for run, size in zip(runs, sizes, strict=True))
    gradients = sum(classes[run.kind].freed * run.layers for run in runs)
    held, found = 0.0, []
    for run, size in zip(runs, sizes, strict=True):
        held += size
        found.append(waiting + held + run.policy.transient + gradients)
        gradients -= classes[run.kind].freed * run.layers
    return found


def peak(runs: Sequence[Run], classes: Sequence[Layers]) -> float:
    """Largest of the `moments`: bytes."""
    return max(moments(runs, classes))


def ordered(runs: Sequence[Run], classes: Sequence[Layers]) -> tuple[Run, ...]:
    """The runs of each class in the order of the lowest peak; the classes stay in theirs.

    Going over run j changes what is held by d = n_j (m_j - g) and reaches h = n_j m_j + tau_j above what was held
    before. This is sequencing for the least maximum of a running sum (Abdel-Wahab and Kameda, Operations Research 26,
    1978, for a set of jobs): first those with d < 0 by rising h, then the others by falling h - d. With g = 0 that is
    decreasing tau.
    """

    def key(run: Run) -> tuple[int, bool, float]:
        freed = classes[run.kind].freed
        falls = run.policy.kept < freed
        height = run.layers * run.policy.kept + run.policy.transient
        return run.kind, not falls, height if falls else -(run.policy.transient + freed * run.layers)

    return tuple(sorted(runs, key=key))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Policies of a stage's layers.

    Attributes:
        runs: in the order in which they run.
        seconds: extra, of all layers, per microbatch.
        peak: bytes.
        flops: extra, of all layers, per microbatch.
    """

    runs: tuple[Run, ...]
    seconds: float
    peak: float
    flops: float = field(default=0.0)

    @classmethod
    def of(cls, runs: Sequence[Run], classes: Sequence[Layers]) -> "Mix":
        """The mix of these runs, in the best order."""
        runs = ordered(runs, classes)
        return cls(
            runs=runs,
            seconds=sum(run.layers * run.policy.seconds for run in runs),
            peak=peak(runs, classes),
            flops=sum(run.layers * run.policy.flops for run in runs),
        )

    def segments(self) -> tuple[Segment, ...]:
        """As a Plan holds them."""
        return tuple(run.policy.segment(run.layers) for run in self.runs if run.policy.layer)

    def summary(self) -> str:
        return ", ".join(f"{run.policy.name} x{run.layers}" for run in self.runs)


class Solver(Protocol):
    """Anything that picks a mix. Raises PlanError where none that it may pick fits."""

    def __call__(self, problem: Problem) -> Mix: ...


def fits(mix: Mix, problem: Problem) -> bool:
    return mix.peak <= problem.budget * (1 + ROUNDING)

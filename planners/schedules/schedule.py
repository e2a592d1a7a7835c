"""The order of a step's operations: argmin over orders O of E[T_comp(O) + T_sync(O, P)] (paper, section 3.3, eq. 11).

Every order is followed on one simulator under the same draws of measured durations; compute and synchronisation are
nodes of one graph, so what overlaps is counted once. The winner travels in the Plan as a `Schedule`. When profiling
agents report that a device or a link has changed, `choose` is asked again with the order in use as incumbent.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from planners.plan import Schedule
from planners.schedules.dag import Graph, Order
from planners.schedules.pipelines import Shape
from planners.schedules.profiling import Profile
from planners.schedules.reductions import BUCKET_ORDERS, Replicas
from planners.schedules.simulate import run, search_order

DRAWS = 64
"""Draws of the durations per order: the standard error of an expected time is an eighth of its spread."""

HYSTERESIS = 0.01
"""Share of the step time that a new order must save: step times repeat to about 1 % (planners.md 5, rule 5)."""


@dataclass(frozen=True, eq=False)
class Option:
    """One order of one step, ready to be followed."""

    schedule: Schedule
    graph: Graph
    order: Order


@dataclass(frozen=True, slots=True)
class Judged:
    """An order and what it is predicted to take.

    Attributes:
        schedule: the order.
        seconds: expected time of the step.
        median: of the step time over the draws.
        std: spread of the step time over the draws.
        slower: expected seconds that it loses to the chosen order.
        slower_error: standard error of `slower`, from draws that both orders share.
    """

    schedule: Schedule
    seconds: float
    median: float
    std: float
    slower: float
    slower_error: float


@dataclass(frozen=True, slots=True)
class Chosen:
    """The order to follow and all that were considered, fastest first."""

    schedule: Schedule
    judged: tuple[Judged, ...]
    kept: bool = False

    @property
    def seconds(self) -> float:
        """Expected time of the step in the chosen order."""
        return next(j.seconds for j in self.judged if j.schedule == self.schedule)

    def lines(self) -> list[str]:
        """One line for each order: expected time, spread, and why it lost."""
        found = []
        for judged in self.judged:
            why = (
                "chosen" if judged.schedule == self.schedule else f"+{judged.slower:.4g} +- {judged.slower_error:.2g} s"
            )
            if judged.schedule == self.schedule and self.kept:
                why = "kept: no other order saves enough to change"
            found.append(f"{judged.schedule.summary()}: {judged.seconds:.4g} +- {judged.std:.2g} s per step; {why}")
        return found


def choose(
    options: Sequence[Option],
    profile: Profile,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    incumbent: Schedule | None = None,
    hysteresis: float = HYSTERESIS,
) -> Chosen:
    """The order of the smallest expected time (eq. 11).

    Args:
        options: orders to choose from, the simplest first: of equal ones the first wins.
        profile: distributions of the durations.
        incumbent: the order in use; it is kept unless another saves more than `hysteresis` of its time.
    """
    if not options:
        raise ValueError("there is no order to choose from")
    times = np.array([run(o.graph, o.order, profile.draw(o.graph, draws, seed)).makespan for o in options])
    means = times.mean(axis=1)
    best, kept = int(np.argmin(means)), False
    for i, option in enumerate(options):
        if option.schedule == incumbent and means[i] <= means[best] * (1.0 + hysteresis):
            best, kept = i, i != best
            break
    judged = [
        Judged(
            schedule=option.schedule,
            seconds=float(means[i]),
            median=float(np.median(times[i])),
            std=float(times[i].std()),
            slower=float(means[i] - means[best]),
            slower_error=float((times[i] - times[best]).std() / np.sqrt(draws)),
        )
        for i, option in enumerate(options)
    ]
    return Chosen(options[best].schedule, tuple(sorted(judged, key=lambda j: j.seconds)), kept)


def replica_options(
    devices: int, layers: Sequence[int], accumulation: int, *, overlap: bool, every: Sequence[int] | None = None
) -> Iterator[Option]:
    """Bucket and accumulation orders of a data-parallel step (see `Replicas`).

    Sizes from one bucket for everything down to one per layer, halving; sums after every `every` microbatches, by
    default after each, after all, and after every divisor between.
    """
    total = sum(layers)
    divisors = [n for n in range(accumulation, 0, -1) if accumulation % n == 0]
    limits = [total // 2**n for n in range(max(len(layers) - 1, 0).bit_length() + 1)]
    seen: set[tuple[int, tuple[tuple[int, ...], ...]]] = set()
    for reduce_every in every or divisors:
        for limit in limits:
            for order in BUCKET_ORDERS:
                step = Replicas(devices, tuple(layers), accumulation, limit, order, reduce_every, overlap)
                key = (reduce_every, step.buckets)
                if key not in seen:
                    seen.add(key)
                    chosen = Schedule(bucket_bytes=limit, bucket_order=order, reduce_every=reduce_every)
                    yield Option(chosen, step.graph, step.order)


def pipeline_options(
    shapes: Sequence[Shape], fits: Callable[[Shape, Sequence[int]], bool] = lambda shape, held: True
) -> Iterator[Option]:
    """Pipeline orders among `shapes`, without those whose activations do not fit.

    `fits` is told the most microbatches of one chunk that each device holds at once.
    """
    for shape in shapes:
        order = shape.order()
        if fits(shape, shape.in_flight(order)):
            yield Option(Schedule(pipeline=shape.pipeline, virtual=shape.virtual), shape.graph, order)


def listed(graph: Graph, profile: Profile) -> Order:
    """The order that list scheduling makes of any graph from the expected durations."""
    return search_order(graph, profile.expected(graph))

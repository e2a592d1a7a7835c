"""Tier II: how gradients travel over one mesh axis. Chooses the scheme and the size of its buckets.

A rung costs what its codec costs, and its collectives, each read off its own measurements (one bandwidth per link is
37 % wrong: on one link a library reaches twice the rate in one collective than in another). What compute hides is free,
so on a fast link the answer is `none`, which is as good an answer as any.

Eq. 7 of the paper adds bytes over bandwidth and a squared gradient norm. Seconds need bytes; the norm says which
gradients matter, so it sets what may be lost: minimise the seconds, subject to lost energy <= epsilon x all energy.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np

from planners.machines.link_table import Collective
from planners.machines.topology import Cluster, Device, Link
from planners.plan import Budget, Communication, Plan, PlanError, Scheme, Workload
from planners.prices.comm import group, link_seconds
from planners.suggestions import suggest
from planners.wishes import Travel

BUDGETS: tuple[Budget, ...] = get_args(Budget)
BLOCK, TOP_BLOCK = 256, 1024
WORTH = 0.05
"""Least gain over `none`, and over what is in use, for which anything is changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One way to travel.

    Attributes:
        scheme: its name in the Plan.
        budget: the first class of budgets that allows it.
        bits: of a value's code, scales and places included.
        lost: squared error of one exchange over the squared norm, of normal random numbers, by two workers.
        passes: times that encoding and decoding read or write the float32 gradient, where nothing was measured.
        most: most workers.
        optimizers: the kinds that bear it; empty for any.
    """

    scheme: Scheme
    budget: Budget
    bits: float
    lost: float
    passes: float
    most: int = 1 << 30
    optimizers: tuple[str, ...] = ()


RUNGS: tuple[Rung, ...] = (
    Rung(scheme="none", budget="exact", bits=32.0, lost=0.0, passes=0.0),
    Rung(scheme="bf16", budget="16-bit", bits=16.0, lost=6e-6, passes=4.0),
    Rung(scheme="int8", budget="8-bit", bits=8 + 16 / BLOCK, lost=1e-4, passes=8.0),
    Rung(scheme="int8_shared", budget="8-bit", bits=8 + 16 / BLOCK, lost=2.3e-4, passes=5.0, most=2),
    Rung(scheme="int4", budget="feedback", bits=4 + 16 / BLOCK, lost=0.033, passes=10.0),
    Rung(scheme="sign", budget="feedback", bits=1 + 16 / BLOCK, lost=0.68, passes=10.0,
         optimizers=("adamw",)),
    Rung(scheme="topk", budget="feedback", bits=32 * 10 / TOP_BLOCK, lost=0.92, passes=20.0, most=8,
         optimizers=("adamw",)),
)  # fmt: skip
"""Losses are the squares of the relative errors that `experiments.benchmarks.compression` measures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What the choice is made for.

    Attributes:
        name: the mesh axis.
        workers: its size.
        link: the slowest link that it crosses.
        elements: float32 gradient values of one device's shard.
        device: whose memory the codec works in.
        hidden: seconds of exchange that compute hides, of the exact sum, which the compiler can overlap; the exchange
            of codes waits for the whole gradient. 0 in every plan so far: nothing measures it for a run yet.
        codec: measured seconds per value of encoding and decoding, by scheme. Empty in every plan so far: `passes` over
            memory stand for it.
        optimizer: the kind of the optimizer that takes what arrives.
    """

    name: str
    workers: int
    link: Link
    elements: int
    device: Device
    hidden: float = 0.0
    codec: Mapping[str, float] = field(default_factory=dict)
    optimizer: str = "adamw"


@dataclass(frozen=True, slots=True)
class Priced:
    """A rung on an axis.

    Attributes:
        rung: which.
        seconds: of a step that the exchange adds: what nothing hides.
        parts: its codec and its collectives, before anything is hidden.
        bucket: values that travel at once.
    """

    rung: Rung
    seconds: float
    parts: Mapping[str, float]
    bucket: int


def calls(rung: Rung, workers: int, values: float) -> list[tuple[Collective, float]]:
    """The collectives that average so many values of each worker, with their bytes as `Timing` counts them."""
    size = values * rung.bits / 8
    if rung.scheme == "none":
        return [("all_reduce", size)]
    if rung.scheme == "int8_shared":
        return [("all_gather", workers * values / BLOCK * 2), ("all_reduce", values)]
    if rung.scheme == "topk":
        return [("all_gather", workers * size)]
    return [("all_to_all", size), ("all_gather", size)]


def price(rung: Rung, axis: Axis, bucket: int | None = None) -> Priced:
    """The seconds of one exchange in buckets of so many values (None: one bucket)."""
    bucket = min(bucket or axis.elements, axis.elements)
    count = -(-axis.elements // bucket)
    parts: dict[str, float] = {}
    for collective, size in calls(rung, axis.workers, bucket):
        one = float(np.asarray(link_seconds(axis.link, collective, np.asarray(axis.workers), size)))
        parts[collective] = parts.get(collective, 0.0) + count * one
    each = axis.codec.get(rung.scheme, rung.passes * 4.0 / axis.device.bandwidth)
    if each:
        parts["codec"] = each * axis.elements
    hidden = axis.hidden if rung.scheme == "none" else 0.0
    return Priced(rung, max(0.0, sum(parts.values()) - hidden), parts, bucket)


def allowed(axis: Axis, budget: Budget) -> tuple[Rung, ...]:
    """The rungs within a budget that so many workers can use, and the optimizer bears."""
    if budget not in BUDGETS:
        raise PlanError(f"communication: budget {budget!r} is unknown{suggest(budget, BUDGETS)}: {', '.join(BUDGETS)}")
    within = BUDGETS.index(budget)
    bears = lambda rung: not rung.optimizers or axis.optimizer in rung.optimizers
    return tuple(r for r in RUNGS if BUDGETS.index(r.budget) <= within and axis.workers <= r.most and bears(r))


def ranked(axis: Axis, budget: Budget) -> list[Priced]:
    """Every rung within the budget in its best bucket, fastest first; `none` before what is not worth it."""
    found = [_bucketed(rung, axis) for rung in allowed(axis, budget)]
    exact = next(each for each in found if each.rung.scheme == "none")
    worth = [each for each in found if each.seconds < exact.seconds * (1 - WORTH)]
    rest = [each for each in found if each not in worth and each is not exact]
    by_time = lambda each: (each.seconds, each.rung.lost)
    return [*sorted(worth, key=by_time), exact, *sorted(rest, key=by_time)]


def _bucketed(rung: Rung, axis: Axis) -> Priced:
    """The smallest bucket, which needs the least memory, that is within 2 % of the fastest."""
    sizes = [2**power for power in range(18, 29) if 2**power < axis.elements] or [axis.elements]
    tried = [price(rung, axis, size) for size in [*sizes, axis.elements]]
    best = min(each.seconds for each in tried)
    return next(each for each in tried if each.seconds <= best * 1.02 + 1e-12)


def choose(axis: Axis, budget: Budget, *, now: Scheme | None = None) -> Priced:
    """The way to travel within a budget. With `now`, what is in use stays unless another is faster by 5 % (hysteresis:
    a change is a new program); no run asks with `now` yet, a plan keeps the scheme it was made with."""
    order = ranked(axis, budget)
    current = [each for each in order if each.rung.scheme == now]
    if current and order[0].seconds >= current[0].seconds * (1 - WORTH):
        return current[0]
    return order[0]


def axis_of(
    cluster: Cluster,
    mesh: Mapping[str, int],
    name: str,
    parameters: int,
    *,
    hidden: float = 0.0,
    codec: Mapping[str, float] | None = None,
    optimizer: str = "adamw",
) -> Axis:
    """The axis of a mesh over which each device's shard of so many parameters travels."""
    rings = [(int(np.asarray(ranks).max()), link) for ranks, link in group(cluster, mesh, name).rings]
    crossed = [link for ranks, link in rings if ranks > 1] or [rings[-1][1]]
    split = math.prod(mesh.get(other, 1) for other in ("fsdp", "tensor", "stage"))
    replicas = math.prod(mesh.get(other, 1) for other in ("zone", "data") if other != name)
    shard = -(-parameters // (split * replicas))
    return Axis(name=name, workers=mesh[name], link=crossed[-1], elements=shard, device=cluster.device, hidden=hidden,
                codec=codec or {}, optimizer=optimizer)  # fmt: skip


def communication(priced: Priced, axis: Axis) -> Communication:
    """What the Plan then says."""
    if priced.rung.scheme == "none":
        return Communication(axis=axis.name)
    megabytes = max(1.0, round(4 * priced.bucket / 2**20, 3))
    return Communication(axis=axis.name, scheme=priced.rung.scheme, parameters={"bucket_mb": megabytes})


def travelling(
    plan: Plan, wishes: Mapping[str, Travel], workload: Workload, cluster: Cluster
) -> tuple[tuple[Communication, ...], dict[str, str]]:
    """How gradients travel over each axis of a plan, as wished or, for `auto`, as is fastest; and why, for its record.
    The same on every process, from the same inputs."""
    said: list[Communication] = []
    why: dict[str, str] = {}
    for name, wish in wishes.items():
        if wish.scheme != "auto":
            parameters = dict(wish.parameters)
            said.append(Communication(axis=name, scheme=wish.scheme, parameters=parameters, every=wish.every))
            continue
        if wish.parameters or wish.every is not None:
            raise PlanError(f"communication.{name}: auto chooses the parameters; name a scheme to set them yourself")
        if plan.mesh[name] == 1:
            why[f"communication {name}"] = "auto: one worker, nothing travels"
            continue
        axis = axis_of(cluster, plan.mesh, name, workload.parameter_count, optimizer=workload.trained_by)
        order = ranked(axis, wish.budget)
        said.append(communication(order[0], axis))
        listed = ", ".join(f"{each.rung.scheme} {each.seconds:.3g} s" for each in order)
        source = "measured" if axis.link.measured else "bandwidth and latency"
        why[f"communication {name}"] = f"auto within {wish.budget}, by {source} of {axis.link.name}: {listed}"
    return tuple(each for each in said if each.scheme != "none"), why


def frequency(axis: Axis, compute: float, share: float = 0.1, *, most: int = 500) -> int:
    """Local steps between exchanges of float32 differences for which the exchange takes at most `share` of the time.

    A calculation to be called by hand: no plan sets `every` by it.

    Raises PlanError where even `most` of them do not suffice.
    """
    exchange = price(RUNGS[0], axis).seconds
    steps = max(1, math.ceil(exchange * (1 - share) / (share * compute))) if exchange else 1
    if steps > most:
        raise PlanError(
            f"communication.{axis.name}: an exchange takes {exchange:.3g} s and a step {compute:.3g} s, so {steps} "
            f"local steps would be needed for {share:.0%}; the most that is known to train well is {most}"
        )
    return steps


def allocate(energy: Sequence[float], seconds: np.ndarray, lost: Sequence[float], epsilon: float) -> list[int]:
    """Eq. 7 with its norm as importance: a rung for each bucket, the least sum of seconds whose lost energy is at most
    `epsilon` of all energy.

    A calculation to be called by hand: a run sends all buckets of an axis by one scheme. A dynamic program
    over what is lost, in 1/2,000 of the budget, rounded up, so the budget always holds.

    Args:
        energy: squared gradient norm of each bucket.
        seconds: [buckets, rungs].
        lost: share of its energy that each rung loses.
        epsilon: what may be lost, of all energy.

    Returns:
        The rung of each bucket. Raises PlanError where no choice keeps to the budget.
    """
    total = float(sum(energy))
    grid = 2000
    unit = epsilon * total / grid
    costs = [
        [0 if e * q == 0 else (math.ceil(e * q / unit - 1e-9) if unit else grid + 1) for q in lost] for e in energy
    ]
    best = np.zeros(grid + 1)
    picks: list[np.ndarray] = []
    for row, cost in enumerate(costs):
        options = np.full((len(lost), grid + 1), np.inf)
        for rung, spent in enumerate(cost):
            if spent <= grid:
                options[rung, spent:] = best[: grid + 1 - spent] + seconds[row, rung]
        picks.append(np.argmin(options, axis=0))
        best = options.min(axis=0)
    if not np.isfinite(best[grid]):
        raise PlanError(f"communication: no way to travel loses at most {epsilon:.3g} of the gradient's energy")
    at, chosen = grid, []
    for row in reversed(range(len(costs))):
        rung = int(picks[row][at])
        chosen.append(rung)
        at -= costs[row][rung]
    return chosen[::-1]

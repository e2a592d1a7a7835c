"""Plans for clusters whose pools differ: replicas that do unequal shares of the batch, stages with unequal layers.

One SPMD program on unequal devices runs at the pace of the weakest. Two ways out are priced here for every candidate
at once, each device with the figures of its own pool:

- `shares`: replicas lie within a pool each, and a replica computes as many microbatches as its speed deserves;
- `layers`: the stages of the pipeline are dealt out to the pools, and a stage holds as many layers as its speed and its
  memory allow.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from planners.candidates import Candidates
from planners.machines.topology import Cluster
from planners.plan import Workload
from planners.prices.assumptions import Assumptions
from planners.prices.cost import Prices, price
from planners.space.uneven import pipeline_seconds, split_batch, split_layers

ONCE = ("gradient_sync", "optimizer", "weight_gather", "stragglers", "overhead", "pipeline_bubble")
"""Parts of a step's seconds that do not repeat with every microbatch."""

WHOLE = (
    "logits",
    "batch",
    "runtime",
    "head_gradient",
    "embedding_gradient",
    "block_transient",
    "attention_scratch",
    "update_excess",
)
"""Parts of a device's memory that do not grow with the layers it holds."""

EXACT = 64
"""Candidates, best by the bound that ignores whole layers and microbatches, that are split exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uneven:
    """One candidate with its split over unequal pools.

    Attributes:
        kind: what is split unevenly.
        row: position of the candidate.
        seconds: of one step with the uneven split, predicted.
        even: of the same candidate when every device does the same, predicted.
        pools: pool of each replica (`shares`) or of each stage (`layers`).
        counts: microbatches of each replica, or layers of each stage.
    """

    kind: Literal["shares", "layers"]
    row: int
    seconds: float
    even: float
    pools: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the batch of each replica, or of the layers of each stage; they add up to 1."""
        total = sum(self.counts)
        return tuple(count / total for count in self.counts)

    def describe(self, cluster: Cluster) -> str:
        """Half a line: what each pool does."""
        names = [pool.name for pool in cluster.parts]
        unit = "microbatches per replica" if self.kind == "shares" else "layers per stage"
        said = []
        for pool in dict.fromkeys(self.pools):
            own = sorted({count for count, at in zip(self.counts, self.pools, strict=True) if at == pool})
            said.append(f"{names[pool]} {' or '.join(map(str, own))}")
        return f"{unit}: {', '.join(said)}"


def uneven(
    workload: Workload,
    cluster: Cluster,
    candidates: Candidates,
    *,
    memory_fraction: float = 0.9,
    unroll: int = 1,
    assumptions: Assumptions,
    count: int = 8,
) -> list[Uneven]:
    """The fastest uneven splits that fit and beat every even plan that fits all devices, fastest first, at most
    `count`; empty for a cluster of equal devices."""
    if not cluster.unequal:
        return []
    prices = pool_prices(workload, cluster, candidates, unroll=unroll, assumptions=assumptions)
    budgets = np.array([pool.device.memory * memory_fraction for pool in cluster.parts])
    found = [
        *by_shares(workload, cluster, candidates, prices, budgets),
        *by_layers(workload, cluster, candidates, prices, budgets),
    ]
    fits = np.all([one.memory_bytes <= room for one, room in zip(prices, budgets, strict=True)], axis=0)
    beaten = np.min(_even(prices)[fits], initial=np.inf) * (1.0 - assumptions.tie)
    return sorted((one for one in found if one.seconds < min(beaten, one.even)), key=lambda one: one.seconds)[:count]


def pool_prices(
    workload: Workload, cluster: Cluster, candidates: Candidates, *, unroll: int = 1, assumptions: Assumptions
) -> list[Prices]:
    """What every candidate costs if all devices were those of one pool, pool by pool."""
    return [
        price(
            workload,
            dataclasses.replace(cluster, device=pool.device),
            candidates,
            unroll=unroll,
            assumptions=assumptions,
        )
        for pool in cluster.parts
    ]


def _columns(parts: Mapping[str, np.ndarray], names: tuple[str, ...], *, inside: bool) -> np.ndarray:
    chosen = [column for name, column in parts.items() if (name in names) is inside]
    return np.sum(chosen, axis=0)


def _even(prices: list[Prices]) -> np.ndarray:
    """Seconds of each candidate when every device does the same: the slowest pool's."""
    return np.max([one.step_seconds for one in prices], axis=0)


def by_shares(
    workload: Workload, cluster: Cluster, candidates: Candidates, prices: list[Prices], budgets: np.ndarray
) -> list[Uneven]:
    """Uneven shares of the batch, for the candidates whose replicas lie within a pool each and fit every device.

    `prices` and `budgets` (bytes that a device may use) have one entry per pool.
    """
    sizes = candidates.sizes
    inner = sizes["fsdp"] * sizes["stage"] * sizes["context"] * sizes["tensor"]
    counts = np.array([pool.count for pool in cluster.parts])
    replicas = counts[:, None] // inner[None, :]
    whole = np.all(counts[:, None] % inner[None, :] == 0, axis=0) & (candidates.devices == cluster.count)
    fits = np.all([one.memory_bytes <= room for one, room in zip(prices, budgets, strict=True)], axis=0)
    times = workload.batch // candidates.microbatch
    total = replicas.sum(axis=0)
    pace = np.array([_columns(one.seconds, ONCE, inside=False) for one in prices]) / times  # [pools, n], s/microbatch
    once = np.array([_columns(one.seconds, ONCE, inside=True) for one in prices])
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = times * total / np.sum(replicas / pace, axis=0) + once.min(axis=0)
    good = whole & fits & (total > 1) & (times > 1)
    even, found = _even(prices), []
    for row in np.flatnonzero(good)[np.argsort(bound[good], kind="stable")][:EXACT]:
        own = replicas[:, row]
        pools = np.repeat(np.arange(len(own)), own)
        each, after = pace[pools, row], once[pools, row]
        microbatches = split_batch(1.0 / each, int(times[row] * total[row]), fixed=after)
        found.append(
            Uneven(
                kind="shares",
                row=int(row),
                seconds=float(np.max(microbatches * each + after)),
                even=float(even[row]),
                pools=tuple(map(int, pools)),
                counts=tuple(map(int, microbatches)),
            )
        )
    return found


def by_layers(
    workload: Workload, cluster: Cluster, candidates: Candidates, prices: list[Prices], budgets: np.ndarray
) -> list[Uneven]:
    """Uneven layers, for the candidates whose stages can be dealt out to the pools by their devices.

    `prices` and `budgets` (bytes that a device may use) have one entry per pool.
    """
    stages = candidates.sizes["stage"]
    counts = np.array([pool.count for pool in cluster.parts])
    each = counts[:, None] * stages[None, :] / cluster.count  # stages of each pool
    good = (stages > 1) & np.all((each == np.round(each)) & (each >= 1), axis=0) & (candidates.virtual == 1)
    good &= (candidates.devices == cluster.count) & (stages <= workload.layers)
    times = workload.batch // candidates.microbatch
    held = np.ceil(workload.layers / stages)
    pace = np.array([_columns(one.seconds, ONCE, inside=False) for one in prices]) / times  # of `held` layers
    once = np.max(
        [
            _columns(one.seconds, ("gradient_sync", "optimizer", "weight_gather", "overhead"), inside=True)
            for one in prices
        ],
        0,
    )
    fixed = np.array([_columns(one.memory, WHOLE, inside=True) for one in prices])
    grows = np.array([_columns(one.memory, WHOLE, inside=False) for one in prices]) / held
    with np.errstate(divide="ignore", invalid="ignore"):
        most = np.floor((budgets[:, None] - fixed) / grows).astype(int)
        good &= np.all(most >= 1, axis=0) & (np.sum(each * most, axis=0) >= workload.layers)
        slowest = workload.layers / np.sum(each * held / pace, axis=0)
        bound = (times + stages - 1) * slowest + once
    even, found = _even(prices), []
    for row in np.flatnonzero(good)[np.argsort(bound[good], kind="stable")][:EXACT]:
        pools = np.repeat(np.arange(len(counts)), each[:, row].astype(int))
        one = pace[pools, row] / held[row]
        layers = split_layers(one, workload.layers, most=most[pools, row])
        if layers is None:
            continue
        found.append(
            Uneven(
                kind="layers",
                row=int(row),
                seconds=float(pipeline_seconds(layers * one, float(times[row])) + once[row]),
                even=float(even[row]),
                pools=tuple(map(int, pools)),
                counts=tuple(map(int, layers)),
            )
        )
    return found

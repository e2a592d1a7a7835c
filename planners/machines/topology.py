"""The machines a plan runs on: a graph of devices, and of the links between them in nested tiers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from planners.machines.device_table import Copy, Product
from planners.machines.link_table import COLLECTIVES, Timing
from planners.plan import PlanError
from planners.suggestions import suggest

GPU_OVERHEAD = 2 * 2**30
"""Bytes that CUDA, NCCL and cuDNN keep on each GPU: the low end of the 2-4 GB of planners.md 3.3."""

NOMINAL_DEVICE = 1.0e14
"""FLOP/s of an unknown accelerator, for ranking only: no measurement, never used for MFU."""

NOMINAL_BANDWIDTH = {"cpu": 2.0e10, "gpu": 1.0e12}
"""Memory bytes/s of a host and of an unknown accelerator, for ranking only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator, or one share of a CPU host.

    Attributes:
        kind: name of the device, as JAX reports it or as the preset calls it.
        memory: bytes.
        peak: dense FLOP/s by dtype; empty where unknown, and then no MFU is predicted.
        bandwidth: bytes/s of its memory.
        nominal: FLOP/s that rank plans when `peak` has no entry for the dtype.
        overhead: bytes that runtime libraries keep for themselves.
        source: where the figures come from.
        units: multiprocessors, among which a matrix product is cut up; 0 where unknown.
        products: measured matrix products by dtype; where there are none, a formula says how much of `peak` is reached.
        copies: measured copies in its memory; where there are none, a formula says how much of `bandwidth` is reached.
        host_bandwidth: bytes/s between its memory and the host's, one direction; 0 where unknown.
        emulated: dtypes whose matrix products are computed in another dtype, by that one.
    """

    kind: str
    memory: int
    peak: dict[str, float] = field(default_factory=dict)
    bandwidth: float = NOMINAL_BANDWIDTH["gpu"]
    nominal: float = NOMINAL_DEVICE
    overhead: int = GPU_OVERHEAD
    source: str = "unknown"
    units: int = 0
    products: dict[str, tuple[Product, ...]] = field(default_factory=dict)
    copies: tuple[Copy, ...] = ()
    host_bandwidth: float = 0.0
    emulated: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.memory <= 0 or self.bandwidth <= 0 or self.nominal <= 0:
            raise PlanError(f"device {self.kind}: memory, bandwidth and nominal must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One tier of the network: how the devices of a group reach each other.

    Attributes:
        name: what it is called.
        devices: devices that one group of this tier joins; the outermost tier joins all, whatever it says.
        bandwidth: bytes/s that one device reaches in one direction in a ring collective.
        latency: seconds of one collective call, however small.
        doubling: further seconds of a call for each doubling of the ranks.
        measured: measured calls of each collective; where there are none, `latency` and `bandwidth` say what one costs.
    """

    name: str
    devices: int
    bandwidth: float
    latency: float = 0.0
    doubling: float = 0.0
    measured: dict[str, tuple[Timing, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.devices < 1 or self.bandwidth <= 0:
            raise PlanError(f"link {self.name}: devices and bandwidth must be positive")
        for name in self.measured:
            if name not in COLLECTIVES:
                raise PlanError(f"link {self.name}: unknown collective {name!r}{suggest(name, COLLECTIVES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """A link between two given members of a tier that differs from the tier's other links.

    Attributes:
        tier: name of the tier.
        between: numbers of two members that it joins, counted from 0 over the whole cluster (a member of the
            innermost tier is a device, of the next one a node, and so on); one number stands for all links of
            that member.
        bandwidth: bytes/s of one device over it, in one direction.
        latency: seconds of one call; None takes the tier's.
    """

    tier: str
    between: tuple[int, ...]
    bandwidth: float
    latency: float | None = None

    def __post_init__(self) -> None:
        if len(set(self.between)) != len(self.between) or len(self.between) not in (1, 2) or min(self.between) < 0:
            raise PlanError(f"edge of {self.tier}: between={list(self.between)} must be one or two member numbers")
        if self.bandwidth <= 0:
            raise PlanError(f"edge of {self.tier} between {list(self.between)}: bandwidth must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Equal devices, numbered consecutively, of a cluster that mixes kinds or joins zones.

    Attributes:
        name: what it is called.
        device: each of its devices.
        count: how many.
        tiers: links inside the pool, innermost first.
    """

    name: str
    device: Device
    count: int
    tiers: tuple[Link, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Devices in nested groups, numbered so that neighbours in number are neighbours on the fastest link.

    In the simple case all devices are equal and `pools` is empty. Where pools differ, `device` and `tiers` are what
    every device can do: one SPMD program gives all of them the same work, so the weakest sets the pace and the
    limit. `join` makes them so.

    Attributes:
        name: what it is called in tables and messages.
        device: each of the devices.
        count: how many.
        tiers: links from the innermost (fastest) to the outermost; empty only for one device.
        shared: the devices are shares of the same cores and memory, as forced host devices are.
        pools: runs of equal devices, where they differ; their counts add up to `count`.
        edges: links that differ from their tier.
    """

    name: str
    device: Device
    count: int
    tiers: tuple[Link, ...] = ()
    shared: bool = False
    pools: tuple[Pool, ...] = ()
    edges: tuple[Edge, ...] = ()

    def __post_init__(self) -> None:
        if self.count < 1:
            raise PlanError(f"cluster {self.name}: count={self.count} must be at least 1")
        if self.count > 1 and not self.tiers:
            raise PlanError(f"cluster {self.name}: {self.count} devices need at least one tier of links")
        sizes = [tier.devices for tier in self.tiers]
        if sizes != sorted(sizes):
            raise PlanError(f"cluster {self.name}: tiers join {sizes} devices; list them innermost (smallest) first")
        if self.pools and sum(pool.count for pool in self.pools) != self.count:
            raise PlanError(
                f"cluster {self.name}: pools hold {[p.count for p in self.pools]}, not {self.count} devices"
            )
        names = [tier.name for tier in self.tiers]
        for edge in self.edges:
            if names.count(edge.tier) != 1:
                raise PlanError(f"cluster {self.name}: edge names tier {edge.tier!r}; the tiers are {', '.join(names)}")
            members = self.members(names.index(edge.tier))
            if max(edge.between) >= members:
                raise PlanError(
                    f"cluster {self.name}: edge of {edge.tier} between {list(edge.between)}, but it joins {members} "
                    f"members, numbered 0 to {members - 1}"
                )

    @property
    def node(self) -> int:
        """Devices of the innermost group."""
        return min(self.tiers[0].devices, self.count) if self.tiers else self.count

    @property
    def nodes(self) -> int:
        return -(-self.count // self.node)

    @property
    def parts(self) -> tuple[Pool, ...]:
        """The pools; one for a cluster of equal devices."""
        whole = Pool(name=self.name, device=self.device, count=self.count, tiers=self.tiers)
        return self.pools or (whole,)

    @property
    def unequal(self) -> bool:
        """Whether some devices differ from others."""
        return any(pool.device != self.parts[0].device for pool in self.parts)

    def members(self, tier: int) -> int:
        """How many members the tier of this index joins, over the whole cluster."""
        inside = self.tiers[tier - 1].devices if tier else 1
        return -(-self.count // inside)

    def peak(self, dtype: str) -> float | None:
        """Dense FLOP/s of all devices together; None where one of them is not known for the dtype."""
        rates = [(pool.count, pool.device.peak.get(dtype)) for pool in self.parts]
        return None if any(rate is None for _, rate in rates) else sum(count * (rate or 0.0) for count, rate in rates)

    def describe(self) -> str:
        """One line: how many devices of which kind, and how they are joined."""
        kinds = " + ".join(
            f"{pool.count} x {pool.device.kind} ({pool.device.memory / 2**30:.1f} GiB each)" for pool in self.parts
        )
        joined = "" if self.nodes == 1 else f", {self.nodes} nodes of {self.node}"
        slow = f", {len(self.edges)} links of their own" if self.edges else ""
        return kinds + joined + slow


def join(name: str, pools: Sequence[Pool], outer: Sequence[Link], edges: Sequence[Edge] = ()) -> Cluster:
    """One cluster out of pools, joined by the `outer` tiers (innermost first; the last joins all).

    Its `device` has of every figure the weakest (a dtype counts only where all know its peak), its inner tiers join
    as many devices as every pool's tiers do, at the slowest pool's figures. Raises PlanError for pools without links
    between them.
    """
    if not pools:
        raise PlanError(f"cluster {name}: there must be at least one pool")
    count = sum(pool.count for pool in pools)
    if len(pools) > 1 and not outer:
        raise PlanError(f"cluster {name}: {len(pools)} pools need a tier of links that joins them")
    for pool in pools:
        if pool.count > 1 and not pool.tiers:
            raise PlanError(f"cluster {name}: {pool.count} devices of pool {pool.name} need at least one tier of links")
    tiers = [*_common_tiers(pools), *outer]
    if outer:
        tiers[-1] = replace(tiers[-1], devices=max(count, tiers[-1].devices))
    return Cluster(
        name=name,
        device=_weakest([pool.device for pool in pools]),
        count=count,
        tiers=tuple(tiers),
        pools=tuple(pools),
        edges=tuple(edges),
    )


def _weakest(devices: Sequence[Device]) -> Device:
    first = devices[0]
    if all(device == first for device in devices):
        return first
    kinds = list(dict.fromkeys(device.kind for device in devices))
    known = set.intersection(*(set(device.peak) for device in devices))
    overhead = max(device.overhead for device in devices)
    return Device(
        kind=" + ".join(kinds),
        memory=min(device.memory - device.overhead for device in devices) + overhead,
        peak={dtype: min(device.peak[dtype] for device in devices) for dtype in sorted(known)},
        bandwidth=min(device.bandwidth for device in devices),
        nominal=min(device.nominal for device in devices),
        units=min(device.units for device in devices),
        emulated={dtype: by for device in devices for dtype, by in device.emulated.items()},
        overhead=overhead,
        source="the weakest of " + ", ".join(kinds),
    )


def _common_tiers(pools: Sequence[Pool]) -> list[Link]:
    """Tiers whose groups lie within a group of every pool, each as slow as the slowest pool's."""
    if all(pool.tiers == pools[0].tiers and pool.count == pools[0].count for pool in pools):
        return list(pools[0].tiers)
    reaches = [[min(link.devices, pool.count) for link in pool.tiers] or [1] for pool in pools]
    depths = range(max(map(len, reaches)))
    sizes = sorted({math.gcd(*(reach[min(depth, len(reach) - 1)] for reach in reaches)) for depth in depths})
    tiers: list[Link] = []
    for size in sizes:
        if size == 1:
            continue
        links = [next((link for link in pool.tiers if link.devices >= size), pool.tiers[-1]) for pool in pools]
        slowest = min(links, key=lambda link: link.bandwidth)
        tiers.append(
            Link(
                name=" or ".join(dict.fromkeys(link.name for link in links)),
                devices=size,
                bandwidth=slowest.bandwidth,
                latency=max(link.latency for link in links),
                doubling=max(link.doubling for link in links),
                measured=slowest.measured if all(link == slowest for link in links) else {},
            )
        )
    return tiers

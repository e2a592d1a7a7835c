"""Clusters that are known by name: nodes of eight GPUs from their datasheets, mixtures of them, and CPU hosts."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from planners.machines.topology import NOMINAL_BANDWIDTH, Cluster, Device, Edge, Link, Pool, join
from planners.plan import PlanError
from planners.suggestions import suggest

NODE = 8
"""Devices in one node of every preset."""

LARGEST = 4096
"""GPUs of the largest cluster that a preset describes; a larger one needs a file with its own tiers."""

CPU_OVERHEAD = 512 * 2**20
"""Bytes of one host process with Python, JAX and compiled programs: an idle process, rounded up."""

NOMINAL_CORE = 3.0e10
"""FLOP/s of one CPU core, for ranking only: no measurement, never used for MFU."""

FACTS = Path(__file__).parents[1] / "facts" / "devices.yaml"


@functools.cache
def facts() -> dict[str, dict[str, Any]]:
    """What `facts/devices.yaml` says of each device."""
    return yaml.safe_load(FACTS.read_text())


def device(name: str) -> Device:
    """A known device by its name in the facts. Raises PlanError with a suggestion for any other."""
    if name not in facts():
        raise PlanError(f"unknown device {name!r}{suggest(name, facts())}; known are {', '.join(facts())}")
    row = facts()[name]
    return Device(
        kind=name,
        memory=row["memory"],
        peak=row["peak"],
        bandwidth=row["bandwidth"],
        nominal=min(row["peak"].values()),
        source=row["source"],
        units=row["units"],
        host_bandwidth=row["host_bandwidth"],
        emulated=row.get("emulated", {}),
    )


def tiers(name: str, node: int, count: int) -> tuple[Link, ...]:
    """The links of `count` known devices in nodes of `node`: inside a node, and between nodes if there are several."""
    inner, outer = (
        Link(
            name=row["name"],
            devices=devices,
            bandwidth=row["bandwidth"] * row["efficiency"],
            latency=row["latency"],
            doubling=row["doubling"],
        )
        for row, devices in zip(facts()[name]["node"], (node, max(node, count)), strict=True)
    )
    return (inner, outer) if count > node else (inner,)


def nodes(name: str, count: int) -> Cluster:
    """`count` devices of a known kind (V100, A100-40, A100-80, H100, H200) in nodes of eight.

    Raises PlanError for an unknown device, and for more than one node that is not full.
    """
    known = device(name)
    if count > NODE and count % NODE:
        raise PlanError(f"{count} devices do not fill nodes of {NODE}; use {count // NODE * NODE} or describe a file")
    return Cluster(name=f"{name.lower()}x{count}", device=known, count=count, tiers=tiers(name, NODE, count))


def mixture(parts: Sequence[tuple[str, int]], edges: Sequence[Edge] = ()) -> Cluster:
    """Pools of known devices, (name, count) each, joined by the slowest of their networks.

    Raises PlanError for an unknown device and for nodes that are not full.
    """
    pools = []
    for name, count in parts:
        whole = nodes(name, count)
        pools.append(Pool(name=whole.name, device=whole.device, count=count, tiers=whole.tiers))
    total = sum(count for _, count in parts)
    networks = [tiers(name, NODE, 2 * NODE)[1] for name, _ in parts]
    slowest = min(networks, key=lambda link: link.bandwidth)
    outer = dataclasses.replace(slowest, name=f"{slowest.name}, between pools", devices=total)
    return join("+".join(pool.name for pool in pools), pools, [outer], edges)


def host(*, count: int, memory: int, cores: int, processes: int = 1) -> Cluster:
    """CPU devices that share cores and memory.

    Args:
        count: devices over all processes.
        memory: bytes that ONE device may use (memory of the host / its devices).
        cores: CPU cores of the host of one process.
        processes: JAX processes; each is taken for one host.
    """
    local = max(count // processes, 1)
    share = Device(
        kind="cpu",
        memory=memory,
        bandwidth=NOMINAL_BANDWIDTH["cpu"] / local,
        nominal=NOMINAL_CORE * cores / local,
        overhead=CPU_OVERHEAD // local,
        source=f"nominal: {cores} cores x {NOMINAL_CORE:g} FLOP/s shared by {local} devices, no peak known",
    )
    inner = Link(name="shared memory (nominal)", devices=local, bandwidth=5.0e9, latency=50e-6, doubling=25e-6)
    outer = Link(name="Ethernet (nominal)", devices=count, bandwidth=1.0e9, latency=200e-6, doubling=100e-6)
    links = (inner, outer) if processes > 1 else (inner,)
    return Cluster(name="cpu", device=share, count=count, tiers=links, shared=True)


def local_cluster(kind: str, count: int, memory: int | None, processes: int, cores: int) -> Cluster:
    """This machine or job, from what JAX reports.

    Args:
        kind: `jax.devices()[0].device_kind`.
        count: devices over all processes.
        memory: bytes that one device may use; None takes the datasheet's figure, or for `cpu` the memory of
            this host divided by its devices.
        processes: JAX processes. One process per device is taken for nodes of eight, else one process is one
            node.
        cores: CPU cores of this host.

    An unknown kind has no peak, so no MFU is predicted for it. Raises PlanError when its memory is not given
    either.
    """
    if count < 1 or processes < 1 or cores < 1:
        raise PlanError(f"count={count}, processes={processes} and cores={cores} must be at least 1")
    local = max(count // processes, 1)
    if kind.lower() == "cpu":
        return host(count=count, memory=memory or _host_memory() // local, cores=cores, processes=processes)
    known = next((name for name, row in facts().items() if kind in row["kinds"]), None)
    if known is None and memory is None:
        raise PlanError(f"memory of device {kind!r} is unknown; give a cluster file with its memory in bytes")
    node = NODE if processes == count else local
    if known is None:
        unknown = Device(kind=kind, memory=memory or 0, source=f"{kind!r} is not in {FACTS.name}; nominal rates only")
        links = (
            Link(name="unknown link", devices=node, bandwidth=2.0e10, latency=50e-6, doubling=25e-6),
            Link(
                name="unknown network",
                devices=max(node, count),
                bandwidth=2.0e9,
                latency=100e-6,
                doubling=50e-6,
            ),
        )
        return Cluster(name="local", device=unknown, count=count, tiers=links[: 2 if count > node else 1])
    found = dataclasses.replace(device(known), kind=kind)
    if memory is not None:
        found = dataclasses.replace(found, memory=memory)
    return Cluster(name="local", device=found, count=count, tiers=tiers(known, node, count))


def _host_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        raise PlanError("this host does not say how much memory it has; give the memory per device") from None

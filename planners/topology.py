"""The machines a plan runs on: devices, the links between them, and where their figures come from."""

import dataclasses
import difflib
import functools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from planners.device_table import Copy, Product
from planners.link_table import COLLECTIVES, Timing
from planners.plan import PlanError, structure

NODE = 8
"""Devices in one node of every preset."""

GPU_OVERHEAD = 2 * 2**30
"""Bytes that CUDA, NCCL and cuDNN keep on each GPU: the low end of the 2-4 GB of planners.md 3.3."""

CPU_OVERHEAD = 512 * 2**20
"""Bytes of one host process with Python, JAX and compiled programs: an idle process, rounded up."""

NOMINAL_CORE = 3.0e10
"""FLOP/s of one CPU core, for ranking only: no measurement, never used for MFU."""

NOMINAL_DEVICE = 1.0e14
"""FLOP/s of an unknown accelerator, for ranking only: no measurement, never used for MFU."""

NOMINAL_BANDWIDTH = {"cpu": 2.0e10, "gpu": 1.0e12}
"""Memory bytes/s of a host and of an unknown accelerator, for ranking only."""

FACTS = Path(__file__).parent / "facts" / "devices.yaml"


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
        products: measured matrix products by dtype; where there are none, a formula says how much of `peak` is reached.
        copies: measured copies in its memory; where there are none, a formula says how much of `bandwidth` is reached.
    """

    kind: str
    memory: int
    peak: dict[str, float] = field(default_factory=dict)
    bandwidth: float = NOMINAL_BANDWIDTH["gpu"]
    nominal: float = NOMINAL_DEVICE
    overhead: int = GPU_OVERHEAD
    source: str = "unknown"
    products: dict[str, tuple[Product, ...]] = field(default_factory=dict)
    copies: tuple[Copy, ...] = ()

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
                raise PlanError(f"link {self.name}: unknown collective {name!r}{_suggest(name, COLLECTIVES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Equal devices in nested groups, numbered so that neighbours in number are neighbours on the fastest
    link.

    Attributes:
        name: what it is called in tables and messages.
        device: each of the devices.
        count: how many.
        tiers: links from the innermost (fastest) to the outermost; empty only for one device.
        shared: the devices are shares of the same cores and memory, as forced host devices are.
    """

    name: str
    device: Device
    count: int
    tiers: tuple[Link, ...] = ()
    shared: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise PlanError(f"cluster {self.name}: count={self.count} must be at least 1")
        if self.count > 1 and not self.tiers:
            raise PlanError(f"cluster {self.name}: {self.count} devices need at least one tier of links")
        sizes = [tier.devices for tier in self.tiers]
        if sizes != sorted(sizes):
            raise PlanError(f"cluster {self.name}: tiers join {sizes} devices; list them innermost (smallest) first")

    @property
    def node(self) -> int:
        """Devices of the innermost group."""
        return min(self.tiers[0].devices, self.count) if self.tiers else self.count

    @property
    def nodes(self) -> int:
        return -(-self.count // self.node)

    def describe(self) -> str:
        """One line: how many devices of which kind, and how they are joined."""
        kind = f"{self.count} x {self.device.kind} ({self.device.memory / 2**30:.1f} GiB each)"
        return kind if self.nodes == 1 else f"{kind}, {self.nodes} nodes of {self.node}"


@functools.cache
def _facts() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(FACTS.read_text())


def _device(name: str) -> Device:
    row = _facts()[name]
    return Device(
        kind=name,
        memory=row["memory"],
        peak=row["peak"],
        bandwidth=row["bandwidth"],
        nominal=min(row["peak"].values()),
        source=row["source"],
    )


def _tiers(name: str, node: int, count: int) -> tuple[Link, ...]:
    inner, outer = (
        Link(
            name=row["name"],
            devices=devices,
            bandwidth=row["bandwidth"] * row["efficiency"],
            latency=row["latency"],
            doubling=row["doubling"],
        )
        for row, devices in zip(_facts()[name]["node"], (node, max(node, count)), strict=True)
    )
    return (inner, outer) if count > node else (inner,)


def nodes(device: str, count: int) -> Cluster:
    """`count` devices of a known kind (V100, A100-40, A100-80, H100, H200) in nodes of eight.

    Raises PlanError for an unknown device, and for more than one node that is not full.
    """
    if device not in _facts():
        raise PlanError(f"unknown device {device!r}{_suggest(device, _facts())}")
    if count > NODE and count % NODE:
        raise PlanError(f"{count} devices do not fill nodes of {NODE}; use {count // NODE * NODE} or describe a file")
    tiers = _tiers(device, NODE, count)
    return Cluster(name=f"{device.lower()}x{count}", device=_device(device), count=count, tiers=tiers)


def host(*, count: int, memory: int, cores: int, processes: int = 1) -> Cluster:
    """CPU devices that share cores and memory.

    Args:
        count: devices over all processes.
        memory: bytes that ONE device may use (memory of the host / its devices).
        cores: CPU cores of the host of one process.
        processes: JAX processes; each is taken for one host.
    """
    local = max(count // processes, 1)
    device = Device(
        kind="cpu",
        memory=memory,
        bandwidth=NOMINAL_BANDWIDTH["cpu"] / local,
        nominal=NOMINAL_CORE * cores / local,
        overhead=CPU_OVERHEAD // local,
        source=f"nominal: {cores} cores x {NOMINAL_CORE:g} FLOP/s shared by {local} devices, no peak known",
    )
    inner = Link(name="shared memory (nominal)", devices=local, bandwidth=5.0e9, latency=50e-6, doubling=25e-6)
    outer = Link(name="Ethernet (nominal)", devices=count, bandwidth=1.0e9, latency=200e-6, doubling=100e-6)
    tiers = (inner, outer) if processes > 1 else (inner,)
    return Cluster(name="cpu", device=device, count=count, tiers=tiers, shared=True)


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
    known = next((name for name, row in _facts().items() if kind in row["kinds"]), None)
    if known is None and memory is None:
        raise PlanError(f"memory of device {kind!r} is unknown; give a cluster file with its memory in bytes")
    node = NODE if processes == count else local
    if known is None:
        device = Device(kind=kind, memory=memory or 0, source=f"{kind!r} is not in {FACTS.name}; nominal rates only")
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
        return Cluster(name="local", device=device, count=count, tiers=links[: 2 if count > node else 1])
    device = dataclasses.replace(_device(known), kind=kind)
    if memory is not None:
        device = dataclasses.replace(device, memory=memory)
    return Cluster(name="local", device=device, count=count, tiers=_tiers(known, node, count))


def _host_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        raise PlanError("this host does not say how much memory it has; give the memory per device") from None


def load_cluster(name_or_path: str | Path) -> Cluster:
    """A preset such as `h100x8` or `a100-80x512`, this host as `cpux8` (eight forced devices), or a YAML
    file.

    A file holds `device` (a known name, or a mapping with the fields of `Device`), `count`, and where the
    device is no known name `tiers` (a list with the fields of `Link`). Raises PlanError with a suggestion for
    an unknown name, and naming each unknown key.
    """
    text = str(name_or_path)
    path = Path(text)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return _read(path)
    match = re.fullmatch(r"(.+?)x(\d+)", text.lower())
    by_name = {name.lower(): name for name in _facts()}
    if match and match[1] == "cpu" and int(match[2]) > 0:
        return local_cluster("cpu", int(match[2]), None, 1, os.cpu_count() or 1)
    if match and match[1] in by_name and int(match[2]) > 0:
        return nodes(by_name[match[1]], int(match[2]))
    presets = [f"{name}x{count}" for name in (*by_name, "cpu") for count in (1, 8, 16, 64, 512)]
    raise PlanError(
        f"unknown cluster {text!r}{_suggest(text.lower(), presets)}; it is DEVICExCOUNT with a device of "
        f"{', '.join(by_name)} or cpu, or a YAML file"
    )


def _read(path: Path) -> Cluster:
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise PlanError(f"cluster file {path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise PlanError(f"cluster file {path} cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise PlanError(f"cluster file {path} must hold a mapping with device, count and tiers")
    where = f"cluster file {path}"
    _check_keys(raw, Cluster, where)
    raw = {"name": path.stem, **raw}
    if missing := [key for key in ("device", "count") if key not in raw]:
        raise PlanError(f"{where}: {' and '.join(missing)} missing")
    if not isinstance(raw["count"], int) or raw["count"] < 1:
        raise PlanError(f"{where}: count={raw['count']!r} must be a positive whole number")
    device = raw["device"]
    if isinstance(device, str):
        if device not in _facts():
            raise PlanError(f"{where}: unknown device {device!r}{_suggest(device, _facts())}")
        raw = {"tiers": [dataclasses.asdict(tier) for tier in nodes(device, raw["count"]).tiers], **raw}
        raw["device"] = dataclasses.asdict(_device(device))
    elif isinstance(device, dict):
        _check_keys(device, Device, f"{where}, device")
    for index, tier in enumerate(raw.get("tiers") or ()):
        if isinstance(tier, dict):
            _check_keys(tier, Link, f"{where}, tiers[{index}]")
    try:
        return structure(raw, Cluster)
    except PlanError as error:
        raise PlanError(f"{where}: {error}") from None


def _check_keys(raw: Mapping[str, Any], kind: type, where: str) -> None:
    known = [item.name for item in dataclasses.fields(kind)]
    if unknown := [f"{key!r}{_suggest(str(key), known)}" for key in raw if key not in known]:
        raise PlanError(f"{where}: unknown key {', '.join(unknown)}; the keys are {', '.join(known)}")


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""

"""`jaxlm probe`: measures the devices and links of this machine or job and writes them as a cluster file."""

import dataclasses
import datetime
import functools
import importlib.metadata
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

import jax

from jaxlm.files import user_cache
from jaxlm.runtime.distributed import Job, start
from jaxlm.runtime.measure import (
    Level,
    Meter,
    Prepared,
    Program,
    Spread,
    agreed,
    bytes_of,
    collective,
    host_processes,
    levels,
    memory_pass,
    product,
)
from jaxlm.runtime.peers import Peers
from jaxlm.session import local_machine
from planners.machines.cluster_file import cluster_yaml, load_cluster
from planners.machines.comparison import Change, changes
from planners.machines.device_table import Copy, Product
from planners.machines.link_table import COLLECTIVES, Timing, fitted
from planners.machines.topology import Cluster, Device, Link
from planners.plan import PlanError

C = TypeVar("C")

DTYPES = ("float32", "bfloat16", "float16", "int8")
SIDES = tuple(2**n for n in range(6, 15))
"""Sides of the square matrices: 64 to 16,384."""

PASSES = tuple(2**n for n in range(18, 31, 2))
"""Bytes of a pass over memory: 256 KiB to 1 GiB."""

MESSAGES = tuple(2**n for n in range(10, 31))
"""Bytes of a collective, of which every second is measured: 1 KiB to 1 GiB."""

LEAST = 3
"""Sizes of a group that are measured even when the time budget is spent."""

SHARE = 1 / 16
"""Part of a device's memory that one array of a probe may take; a program holds up to three of them."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured.

    Attributes:
        seconds: time budget of the whole probe, compilation included; beyond it only the smallest sizes are measured.
        side: largest side of a matrix.
        message: most bytes of a collective or of a pass over memory.
        step: exponents of two between two sizes of a collective.
    """

    seconds: float
    side: int
    message: int
    step: int = 2


FULL = Extent(seconds=300.0, side=16384, message=2**30)
QUICK = Extent(seconds=60.0, side=1024, message=2**24, step=5)


class Progress:
    """Where a probe stands, on standard error of process 0."""

    def __init__(self, extent: Extent, stream: TextIO):
        self.extent, self.stream, self.began, self.told = extent, stream, time.monotonic(), 0.0

    @property
    def spent(self) -> float:
        return time.monotonic() - self.began

    def say(self, what: str, done: int, of: int) -> None:
        if jax.process_index() != 0 or time.monotonic() - self.told < (0.2 if self.stream.isatty() else 5.0):
            return
        self.told = time.monotonic()
        left = max(self.extent.seconds - self.spent, 0.0)
        line = f"probe: {what} {done}/{of}; {self.spent:.0f} s spent, about {left:.0f} s to go"
        print(f"\r\x1b[K{line}" if self.stream.isatty() else line, file=self.stream, flush=True, end=self.end)

    @property
    def end(self) -> str:
        return "" if self.stream.isatty() else "\n"


@dataclass(frozen=True)
class Measured:
    """What a probe found: the cluster, and what was left out, each with its reason."""

    cluster: Cluster
    left_out: tuple[str, ...]

    def text(self) -> str:
        """The cluster file, with where its figures come from on top."""
        when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        head = [
            f"# Measured by jaxlm probe on {when}: jax {jax.__version__}, jaxlm {importlib.metadata.version('jaxlm')},",
            f"# {jax.process_count()} process(es). Times are medians of turns taken by all programs of a group; noise",
            "# is half of the interquartile range over the median. Every device worked at the same time.",
            *(f"# Not measured: {line}" for line in self.left_out),
        ]
        return "\n".join(head) + "\n" + cluster_yaml(self.cluster)


def measure(extent: Extent, stream: TextIO = sys.stderr) -> Measured:
    """Measures every device and link of this job. Every process of it must call this."""
    return _Probe(extent, stream).run()


class _Probe:
    def __init__(self, extent: Extent, stream: TextIO):
        self.extent, self.progress = extent, Progress(extent, stream)
        self.known = local_machine()
        if self.known.shared:  # processes of one host share its memory
            alone = self.known.device
            device = dataclasses.replace(alone, memory=alone.memory // host_processes())
            self.known = dataclasses.replace(self.known, device=device)
        self.limit = int(min(extent.message, self.known.device.memory * SHARE))
        self.left_out: list[str] = []

    def run(self) -> Measured:
        joined = levels()
        groups = len(DTYPES) + 1 + len(COLLECTIVES) * sum(len(level.rank_counts()) for level in joined)
        self.groups = groups
        products = {dtype: rows for dtype in DTYPES if (rows := self._products(dtype))}
        if not products:
            raise PlanError("no matrix product runs here: " + "; ".join(self.left_out))
        copies = self._copies()
        tiers = tuple(self._tier(level) for level in joined)
        when = datetime.date.today().isoformat()
        peak = {dtype: max(row.flops / row.seconds for row in rows) for dtype, rows in products.items()}
        device: Device = dataclasses.replace(
            self.known.device,
            peak=peak,
            nominal=peak.get("float32", min(peak.values())),
            bandwidth=max(copies, key=lambda row: row.bytes).bytes / max(copies, key=lambda row: row.bytes).seconds,
            source=f"measured by jaxlm probe, {when}, all devices at work; peak is the best matrix product measured",
            products=products,
            copies=copies,
        )
        cluster = dataclasses.replace(self.known, name="probed", device=device, tiers=tiers)
        return Measured(cluster, tuple(self.left_out))

    def _group(
        self, what: str, cases: Sequence[tuple[int, Callable[[], Program]]], *, power: int = 1
    ) -> list[tuple[int, Spread]]:
        """Times a group of programs in its part of the time that is left: far apart first, then what lies between.

        At least `LEAST` sizes are measured whatever they take: one cannot tell a latency from a bandwidth. A program
        takes time in proportion to its size to the `power`, at most.
        """
        began = self.progress.spent
        budget = agreed(max(self.extent.seconds - began, 0.0) / self.groups)
        self.groups -= 1
        left = lambda: budget - (self.progress.spent - began)
        meter, kept = Meter(budget), dict[int, Prepared]()
        refused = math.inf
        # A product eight times as large as the last takes 512 times as long: those grow step by step.
        for key, build in far_apart(cases) if power == 1 else cases:
            largest = max(kept, default=0)
            if key > refused:
                continue
            if len(kept) >= LEAST:
                # What is larger than all before takes more by its size; anything else no more than the largest does.
                next_one = kept[largest].seconds * max(key / largest, 1.0) ** power
                turn = sum(one.seconds for one in kept.values()) + next_one
                if agreed(5 * turn - left()) > 0:  # five turns of all must fit
                    if key < largest:
                        break
                    refused = key
                    continue
            try:
                kept[key] = meter.prepare(build())
            except (jax.errors.JaxRuntimeError, TypeError, NotImplementedError) as error:
                reason = str(error).strip().splitlines()
                self.left_out.append(f"{what}, {key:,}: {reason[0][:160] if reason else type(error).__name__}")
                break
            self.progress.say(f"{what}: prepared", len(kept), len(cases))
        if not kept:
            return []
        if refused < math.inf:
            self.left_out.append(f"{what} beyond {max(kept):,}: the time budget")
        meter.budget = max(agreed(left()), 0.0)
        tick = lambda turn, turns: self.progress.say(f"{what}: turn", turn, turns)
        found = dict(zip(kept, meter.spreads(list(kept.values()), tick), strict=True))
        return sorted(found.items())

    def _products(self, dtype: str) -> tuple[Product, ...]:
        sides = [n for n in SIDES if n <= self.extent.side and 4 * n * n <= self.known.device.memory * SHARE]
        found = self._group(f"products {dtype}", [(n, functools.partial(product, n, dtype)) for n in sides], power=3)
        return tuple(Product(flops=2.0 * n**3, seconds=s.seconds, noise=round(s.noise, 4)) for n, s in found)

    def _copies(self) -> tuple[Copy, ...]:
        sizes = [size for size in PASSES if size <= max(self.limit, PASSES[0])]
        found = self._group("memory", [(size, functools.partial(memory_pass, size)) for size in sizes])
        return tuple(Copy(bytes=size, seconds=s.seconds, noise=round(s.noise, 4)) for size, s in found)

    def _tier(self, level: Level) -> Link:
        rows: dict[str, tuple[Timing, ...]] = {}
        sizes = [size for size in MESSAGES[:: self.extent.step] if size <= max(self.limit, MESSAGES[0])]
        for name in COLLECTIVES:
            timings: list[Timing] = []
            for ranks in level.rank_counts():
                groups = level.groups(ranks)
                cases = [(size, functools.partial(collective, name, groups, size)) for size in sizes]
                found = self._group(f"{name} over {ranks} {level.name}", cases)
                timings += [
                    Timing(ranks=ranks, bytes=bytes_of(ranks, size), seconds=s.seconds, noise=round(s.noise, 4))
                    for size, s in found
                ]
            if timings:
                rows[name] = tuple(timings)
        if "all_reduce" not in rows:
            raise PlanError(f"no all-reduce runs over {level.name}: " + "; ".join(self.left_out))
        latency, doubling, bandwidth = fitted(rows["all_reduce"], "all_reduce")
        return Link(
            name=level.name,
            devices=level.devices,
            bandwidth=bandwidth,
            latency=latency,
            doubling=doubling,
            measured=rows,
        )


def far_apart(cases: Sequence[C]) -> list[C]:
    """Every third of the cases, smallest first, then those between them."""
    return [*cases[::3], *(case for i, case in enumerate(cases) if i % 3)]


def probe(job: Job, extent: Extent, out: Path | None, compare: Path | None) -> tuple[str, dict[str, Any]]:
    """Joins the job, measures it, writes the cluster file and compares it: a text, and the same as one object."""
    before = None if compare is None else load_cluster(compare)
    if out is not None and not out.parent.is_dir():
        raise PlanError(f"--out {out}: folder {out.parent} does not exist")
    start(job, user_cache("xla"))
    with Peers(job):
        found = measure(extent)
    text = found.text()
    if out is not None and jax.process_index() == 0:
        out.write_text(text)
    lines = [summary(found.cluster), *(f"not measured: {line}" for line in found.left_out)]
    facts: dict[str, Any] = {"cluster": None if out is None else str(out), "left_out": list(found.left_out)}
    facts |= {"peak_flops": found.cluster.device.peak, "memory_bandwidth": found.cluster.device.bandwidth}
    facts["links"] = [
        {"name": t.name, "devices": t.devices, "bandwidth": t.bandwidth, "latency": t.latency, "doubling": t.doubling}
        for t in found.cluster.tiers
    ]
    if before is not None:
        moved, shared = changes(before, found.cluster)
        lines += drift_lines(compare, moved, shared)
        facts["drift"] = {"compared": shared, "changed": [dataclasses.asdict(change) for change in moved]}
    lines.append(text if out is None else f"saved {out}; plan with it: jaxlm plan CONFIG --cluster {out}")
    return "\n".join(lines), facts


def summary(cluster: Cluster) -> str:
    """What was measured, in a few lines."""
    device = cluster.device
    lines = [f"{cluster.count} x {device.kind}, measured with all of them at work:"]
    lines += [
        f"  {dtype:9} {rate / 1e9:12,.1f} GFLOP/s in the best matrix product" for dtype, rate in device.peak.items()
    ]
    lines.append(f"  memory    {device.bandwidth / 1e9:12,.1f} GB/s")
    for tier in cluster.tiers:
        rows = sum(map(len, tier.measured.values()))
        lines.append(
            f"  {tier.name} ({tier.devices} devices): {rows} collectives measured; a fit of all-reduce says "
            f"{tier.latency * 1e6:.0f} us + {tier.doubling * 1e6:.0f} us per doubling, {tier.bandwidth / 1e9:.2f} GB/s"
        )
    return "\n".join(lines)


def drift_lines(old: Path | None, moved: list[Change], shared: int) -> list[str]:
    """Each figure that changed by more than its noise, the largest change first."""
    if not shared:
        return [f"{old} holds no figure that was measured here"]
    head = f"against {old}: {len(moved)} of {shared} figures changed by more than their noise"
    return [head, *(f"  {change.line()}" for change in moved)]

"""How much better does a table of measured collectives predict other sizes than one bandwidth per link?

Question: every collective is measured at many sizes; every second size is left out and predicted from the others, by
          reading between the rows of the table as `jaxlm plan` does, by a fitted latency and bandwidth, and by one
          bandwidth alone (that of the largest size measured). On forced CPU devices of one process, and on several
          processes that talk over gloo.
Cost:     about four minutes on two cores.
Run:      python -m experiments.probe_links
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.entry import main
from experiments.processes import free_port, run_all
from experiments.report import Report, Row
from jaxlm.decode import ConfigError
from planners.machines.cluster_file import load_cluster
from planners.machines.link_table import Timing, collective_seconds, fitted, moved
from planners.machines.topology import Cluster


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Two probes.

    Attributes:
        devices: forced CPU devices of the one-process probe.
        processes: of the other probe, each with one device.
        seconds: time budget of each probe.
    """

    devices: int = 4
    processes: int = 4
    seconds: float = 110.0


def execute(config: Config, out: Path) -> Report:
    """Probes twice and judges three ways to predict the sizes that were left out."""
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    details = {}
    everything: dict[str, list[float]] = {}
    for name, devices, processes in (
        (f"{config.devices} devices of one process", config.devices, 1),
        (f"{config.processes} processes over gloo", 1, config.processes),
    ):
        cluster = probe(out / f"{processes}x{devices}.yaml", devices, processes, config.seconds)
        (tier,) = cluster.tiers
        for collective, table in tier.measured.items():
            if len({row.bytes for row in table}) < 3:
                continue  # nothing can be left out
            errors = held_out(collective, table)
            details[f"{name}: {collective}"] = {way: list(map(float, e)) for way, e in errors.items()}
            for way, found in errors.items():
                everything.setdefault(way, []).extend(found)
                rows.append(
                    Row(
                        what=f"{name}, {collective}",
                        quantity=f"mean error of {way}, %",
                        predicted=100 * float(np.mean(found)),
                        note=f"largest {np.max(found):.0%}, {len(found)} held-out figures",
                    )
                )
    if not everything:
        raise ConfigError(f"seconds={config.seconds:g} were too few for three sizes of any collective")
    words = [
        f"{way} {np.mean(e):.1%} mean, {np.median(e):.1%} median, {np.max(e):.0%} largest"
        for way, e in everything.items()
    ]
    count = len(everything["the table"])
    remark = f"Predicted against measured, {count} held-out times of all collectives: {'; '.join(words)}."
    return Report(title="One bandwidth, and a table", rows=rows, remarks=[remark], details=details)


def held_out(collective: str, table: Sequence[Timing]) -> dict[str, np.ndarray]:
    """Relative errors at every second size, by three ways that saw the other sizes only."""
    sizes = sorted({row.bytes for row in table})
    left = set(sizes[1:-1:2])
    seen = [row for row in table if row.bytes not in left]
    judged = [row for row in table if row.bytes in left]
    latency, doubling, bandwidth = fitted(seen, collective)
    largest = max(seen, key=lambda row: (row.bytes, row.ranks))
    alone = moved(collective, largest.ranks) * largest.bytes / largest.seconds
    ways = {
        "the table": [float(collective_seconds(seen, collective, r.ranks, r.bytes)) for r in judged],
        "latency and bandwidth": [
            latency + doubling * np.log2(r.ranks) + moved(collective, r.ranks) * r.bytes / bandwidth for r in judged
        ],
        "one bandwidth": [moved(collective, r.ranks) * r.bytes / alone for r in judged],
    }
    truth = np.array([row.seconds for row in judged])
    return {way: np.abs(np.array(found) / truth - 1.0) for way, found in ways.items()}


def probe(path: Path, devices: int, processes: int, seconds: float) -> Cluster:
    """`jaxlm probe` in processes of its own."""
    command = [sys.executable, "-m", "jaxlm", "probe", "--seconds", str(seconds), "--out", str(path)]
    if processes > 1:
        command += ["--coordinator", f"localhost:{free_port()}", "--processes", str(processes)]
    places = [["--process", str(i)] if processes > 1 else [] for i in range(processes)]
    run_all([[*command, *place] for place in places], devices=devices)
    return load_cluster(path)


if __name__ == "__main__":
    main("probe_links", __doc__, Config, execute)

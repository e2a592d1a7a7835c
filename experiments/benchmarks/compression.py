"""What do compressed exchanges of a gradient save on a slow link between two hosts?

Question: one flat gradient of random numbers is averaged over two hosts in every way that jaxlm has, in turns. Seconds
          and bytes on the wire against the sum in float32, and against the honest 16-bit baseline. Random numbers are
          the worst case for the error of a single exchange; what training loses is another question.
Cost:     two to four minutes for 25 M numbers at 100 Mbit/s; root, for the hosts are network namespaces.
Run:      python -m experiments.benchmarks.compression [--rate 100mbit] [--milliseconds 10] [--elements 25000000]
          Hosts of several processes, which add up inside the host first:
          python -m experiments.benchmarks.compression configs/experiments/compression_hosts.yaml
"""

import dataclasses
import json
import statistics
from pathlib import Path

from experiments.benchmarks.delayed import two_hosts
from experiments.benchmarks.shaped_link import Link, run_on_hosts
from experiments.entry import main
from experiments.processes import free_port
from experiments.report import Report, Row
from experiments.workers.compression import FLAT
from jaxlm.decode import ConfigError
from jaxlm.drills.network import NoNetworks

TARGETS = {"int8_shared": 3.5, "topk 1%": 10.0}
"""Least speed-up over the sum in float32 that we ask for, on the link of the default configuration."""
LAB = {"fp16 sum": 1.8, "bf16": 1.2, "int8": 2.3, "fp8": 2.2, "int8_shared": 3.9, "int4": 3.9, "sign": 8.9,
       "topk 1%": 11.0, "topk 1% int8": 7.2}  # fmt: skip
"""Speed-ups of a laboratory with the same collectives at 100 Mbit/s and 20 ms round trip, for comparison."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What is sent over which link.

    Attributes:
        rate: of what each host sends, as tc writes it: 100mbit, 1gbit.
        milliseconds: one-way latency; 10 is a round trip of 20.
        elements: numbers of the gradient.
        processes: of each host, with one CPU device each.
        rounds: in each, every way takes its turn once.
        ways: what is compared; the first must be `fp32 sum`, then `fp16 sum`; of several processes also
            `fp32 flat ring`.
    """

    rate: str = "100mbit"
    milliseconds: float = 10.0
    elements: int = 25_000_000
    processes: int = 1
    rounds: int = 2
    ways: tuple[str, ...] = ("fp32 sum", "fp16 sum", *(way for way in LAB if way != "fp16 sum"))

    def __post_init__(self) -> None:
        known = {"fp32 sum", *LAB, *([FLAT] if self.processes > 1 else [])}
        if self.ways[:2] != ("fp32 sum", "fp16 sum") or set(self.ways) - known:
            raise ValueError(f"ways must be 'fp32 sum', 'fp16 sum', then some of {', '.join(sorted(known))}")


def execute(config: Config, out: Path) -> Report:
    """Runs both hosts and reports."""
    out.mkdir(parents=True, exist_ok=True)
    link = Link(rate=config.rate, hosts=2, processes=config.processes)
    try:
        with two_hosts(config.rate, config.milliseconds) as net:
            task = {"coordinator": f"{net.address(0)}:{free_port()}", "hosts": 2, "out": str(out.absolute())}
            file = out.absolute() / "task.json"
            file.write_text(json.dumps(task | dataclasses.asdict(config)))
            commands = [["experiments.workers.compression", str(file), str(i)] for i in range(2 * config.processes)]
            run_on_hosts(net, link, commands, out / "process")
    except NoNetworks as error:
        raise ConfigError(f"two hosts with a slow link cannot be made here: {error}") from None
    return report(config, json.loads((out / "times0.json").read_text()))


def report(config: Config, found: dict) -> Report:
    """Seconds, bytes and errors of each way, from what host 0 measured."""
    seconds = {name: statistics.median(each) for name, each in found["seconds"].items()}
    rows: list[Row] = []
    measured_there = (config.rate, config.milliseconds, config.elements, config.processes)
    standard = measured_there == ("100mbit", 10.0, 25_000_000, 1)
    for name, each in found["seconds"].items():
        faster = seconds["fp32 sum"] / seconds[name]
        note = f"{seconds['fp16 sum'] / seconds[name]:.2f}x the 16-bit sum"
        if name in TARGETS and standard:
            note += f"; target >= {TARGETS[name]}: {'met' if faster >= TARGETS[name] else 'MISSED'}"
        spread = (max(each) - min(each)) / seconds[name]
        rows += [
            Row(what=name, quantity="s", measured=round(seconds[name], 3), note=f"range {spread:.0%} of the median"),
            Row(what=name, quantity="MB on the wire", measured=round(statistics.median(found["bytes"][name]) / 1e6, 2)),
            Row(what=name, quantity="relative error", measured=round(found["errors"][name], 5)),
        ]
        if name != "fp32 sum":
            published = LAB.get(name) if standard else None
            rows.append(Row(what=name, quantity="x fp32", measured=round(faster, 2), published=published, note=note))
    if FLAT in found["bytes"]:
        share = statistics.median(found["bytes"]["fp32 sum"]) / statistics.median(found["bytes"][FLAT])
        rows.append(Row(what="fp32 sum", quantity="of the flat ring's bytes", measured=round(share, 3), note=(
            f"by count {_share(2, config.processes):.3f}: (H - 1) / H against (P - 1) / P of H hosts and P processes; "
            f"target <= 0.5: {'met' if share <= 0.5 else 'MISSED'}")))  # fmt: skip
    remarks = [
        f"{found['elements']:,} numbers, two hosts of {config.processes} process(es) and one CPU device each, "
        f"{config.rate} out of each host and {config.milliseconds:g} ms one way, {config.rounds} rounds in turns, "
        "medians; bytes by the interface's counter of host 0. Published: a laboratory with the same collectives at "
        "100 Mbit/s and 20 ms round trip.",
        "gloo is half-duplex for large point-to-point transfers, so two-legged exchanges gain less here than their "
        "bytes say.",
    ]
    return Report(title="Compressed exchanges over a slow link", rows=rows, remarks=remarks, details=found)


def _share(hosts: int, processes: int) -> float:
    """Bytes that a host sends where its processes add up first, over those of one ring around all of them, which
    crosses each link between neighbours once."""
    whole = hosts * processes
    return ((hosts - 1) / hosts) / ((whole - 1) / whole)


if __name__ == "__main__":
    main("benchmarks.compression", __doc__, Config, execute, default="compression")

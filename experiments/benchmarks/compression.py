"""What do compressed exchanges of a gradient save on a slow link between two hosts?

Question: one flat gradient of random numbers is averaged over two hosts in every way that jaxlm has, in turns. Seconds
          and bytes on the wire against the sum in float32, and against the honest 16-bit baseline. Random numbers are
          the worst case for the error of a single exchange; what training loses is another question.
Cost:     two to four minutes for 25 M numbers at 100 Mbit/s; root, for the hosts are network namespaces.
Run:      python -m experiments.benchmarks.compression [--rate 100mbit] [--elements 25000000]
"""

import dataclasses
import json
import statistics
from pathlib import Path

from experiments.benchmarks.shaped_link import Link, run_on_hosts
from experiments.entry import main
from experiments.processes import free_port
from experiments.report import Report, Row
from jaxlm.decode import ConfigError
from jaxlm.drills.network import NoNetworks, network

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
        elements: numbers of the gradient.
        rounds: in each, every way takes its turn once.
        ways: what is compared; the first must be `fp32 sum`, then `fp16 sum`.
    """

    rate: str = "100mbit"
    elements: int = 25_000_000
    rounds: int = 2
    ways: tuple[str, ...] = ("fp32 sum", "fp16 sum", *(way for way in LAB if way != "fp16 sum"))

    def __post_init__(self) -> None:
        if self.ways[:2] != ("fp32 sum", "fp16 sum") or set(self.ways) - {"fp32 sum", *LAB}:
            raise ValueError(f"ways must be 'fp32 sum', 'fp16 sum', then some of {', '.join(LAB)}")


def execute(config: Config, out: Path) -> Report:
    """Runs both hosts and reports."""
    out.mkdir(parents=True, exist_ok=True)
    link = Link(rate=config.rate, hosts=2, processes=1)
    try:
        with network(2) as net:
            net.shape(config.rate)
            task = {"coordinator": f"{net.address(0)}:{free_port()}", "processes": 2, "out": str(out.absolute())}
            file = out.absolute() / "task.json"
            file.write_text(json.dumps(task | dataclasses.asdict(config)))
            commands = [["experiments.workers.compression", str(file), str(i)] for i in range(2)]
            run_on_hosts(net, link, commands, out / "process")
    except NoNetworks as error:
        raise ConfigError(f"two hosts with a slow link cannot be made here: {error}") from None
    return report(config, json.loads((out / "times0.json").read_text()))


def report(config: Config, found: dict) -> Report:
    """Seconds, bytes and errors of each way, from what host 0 measured."""
    seconds = {name: statistics.median(each) for name, each in found["seconds"].items()}
    rows: list[Row] = []
    standard = config.rate == "100mbit" and config.elements == 25_000_000
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
            note += f"; laboratory: {LAB[name]}" if standard else ""
            rows.append(Row(what=name, quantity="x fp32", measured=round(faster, 2), note=note))
    remarks = [
        f"{found['elements']:,} numbers, two hosts of one process and one CPU device each, {config.rate} out of each "
        f"host and no added latency, {config.rounds} rounds in turns, medians; bytes by the interface's counter of "
        "host 0. The laboratory measured the same collectives at 100 Mbit/s with 20 ms round trip.",
        "gloo is half-duplex for large point-to-point transfers, so two-legged exchanges gain less here than their "
        "bytes say.",
    ]
    return Report(title="Compressed exchanges over a slow link", rows=rows, remarks=remarks, details=found)


if __name__ == "__main__":
    main("benchmarks.compression", __doc__, Config, execute, default="compression")

"""Is what the scheduler chooses the fastest way for gradients to travel that its error budget allows?

Question: over a grid of links and sizes, and for each class of error budgets, how much slower is the chosen rung than
          the best fixed one of the class? The best is picked in one set of rounds; the two are judged in fresh ones,
          in turns.
Cost:     one to eight minutes for each cell of the grid, by its rate; root, for the hosts are network namespaces.
Run:      python -m experiments.benchmarks.scheduler [--full true] [--rates [100mbit]] [--elements [1000000]]
          A cell that is finished is not measured again, so a run that was stopped goes on where it was.
Leaves:   cells/RATE-LATENCY-SIZE.json.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.delayed import two_hosts
from experiments.benchmarks.shaped_link import Link, run_on_hosts
from experiments.compression_quality import interval
from experiments.entry import main
from experiments.processes import free_port
from experiments.report import Report, Row
from jaxlm.decode import ConfigError
from jaxlm.drills.network import NoNetworks

TARGET = 5.0
"""Most that the chosen rung may be slower than the best one, %."""
UNSHAPED = "unshaped"
LARGE = 124_000_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The grid.

    Attributes:
        rates: of what each host sends, as tc writes it, or `unshaped`.
        milliseconds: one-way latencies; 10 is a round trip of 20.
        elements: numbers of the gradient.
        full: also 124 M numbers, at 100 Mbit/s too.
        rounds: in which all rungs are timed, to find the best.
        judging: in which the chosen and the best one are timed, where they differ.
        seconds: for measuring the link, of each cell.
    """

    rates: tuple[str, ...] = ("100mbit", "1gbit", UNSHAPED)
    milliseconds: tuple[float, ...] = (0.0, 10.0)
    elements: tuple[int, ...] = (1_000_000, 25_000_000)
    full: bool = False
    rounds: int = 3
    judging: int = 8
    seconds: float = 30.0


def execute(config: Config, out: Path) -> Report:
    """Measures what is not measured yet, and reports."""
    cells = out / "cells"
    cells.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    sizes = (*config.elements, LARGE) if config.full else config.elements
    for elements in sizes:
        for rate in config.rates:
            for latency in config.milliseconds:
                name = f"{rate}-{latency:g}ms-{elements // 10**6}M"
                file = cells / f"{name}.json"
                if not file.exists():
                    print(f"measuring {name}; load {os.getloadavg()[0]:.1f}", flush=True)
                    measure(config, rate, latency, elements, file)
                found[name] = json.loads(file.read_text())
    return report(found)


def measure(config: Config, rate: str, latency: float, elements: int, out: Path) -> None:
    """Runs both hosts for one cell."""
    try:
        with two_hosts(None if rate == UNSHAPED else rate, latency) as net:
            task = {"coordinator": f"{net.address(0)}:{free_port()}", "elements": elements, "rounds": config.rounds}
            task |= {"judging": config.judging, "seconds": config.seconds, "out": str(out.absolute())}
            file = out.absolute().with_suffix(".task")
            file.write_text(json.dumps(task))
            commands = [["experiments.workers.rungs", str(file), str(i)] for i in range(2)]
            run_on_hosts(net, Link(rate=rate, processes=1), commands, out.absolute().with_suffix(".log"))
    except NoNetworks as error:
        raise ConfigError(f"two hosts with a slow link cannot be made here: {error}") from None


def report(found: dict[str, Any]) -> Report:
    """By cell and class: what was chosen, the best one, and how far apart they are."""
    rows, counts = [], {"met": 0, "not distinguishable": 0, "MISSED": 0}
    for name, cell in found.items():
        median = {rung: float(np.median(times)) for rung, times in cell["picking"].items()}
        for budget, (chosen, best) in cell["pairs"].items():
            gap, verdict, note = judged(cell, chosen, best)
            counts[verdict] += 1
            what = f"{name} {budget}"
            rows.append(Row(what=what, quantity="% slower than the best", measured=gap, note=f"{verdict}: {note}"))
            rows.append(Row(what=what, quantity="s, chosen", measured=round(median[chosen], 4),
                            predicted=round(cell["predicted"][chosen], 4), note=chosen))  # fmt: skip
    remarks = [
        f"At most {TARGET:g} % slower: {counts['met']}; not distinguishable (the 95 % interval holds 0): "
        f"{counts['not distinguishable']}; slower: {counts['MISSED']}, of {sum(counts.values())}.",
        "Two hosts of one process and one CPU device; the scheduler knew the times of collectives by size, measured on "
        "the same link just before, and the time of each codec. Every rung travels in the bucket that the scheduler "
        "gives it.",
    ]
    return Report(title="The scheduler against the best fixed rung", rows=rows, remarks=remarks, details=found)


def judged(cell: dict[str, Any], chosen: str, best: str) -> tuple[float, str, str]:
    """How much slower the chosen rung was than the best, %, the verdict, and what it rests on."""
    if chosen == best:
        return 0.0, "met", f"{chosen} is the best of the class"
    slow, fast = np.array(cell["judging"][chosen]), np.array(cell["judging"][best])
    mean, half = interval(100.0 * (slow - fast) / np.median(fast))
    note = f"{chosen} against {best}, 95 % interval {mean - half:+.1f} to {mean + half:+.1f}"
    if mean + half <= TARGET:
        return round(mean, 2), "met", note
    return round(mean, 2), "not distinguishable" if abs(mean) <= half else "MISSED", note


if __name__ == "__main__":
    main("benchmarks.scheduler", __doc__, Config, execute, default="scheduler")

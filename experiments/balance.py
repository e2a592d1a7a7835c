"""Does a replica that slows down get less work, soon, without changing what is learned? (eqs. 5 and 6, alpha(t))

Question: of four real processes one is slowed down and recovers; how many steps until its share is proportional to its
          speed, how much of the ideal throughput is left, and does the loss stay that of a run that nothing disturbed?
How:      each replica's microbatches are padded by sleep, since the processes share this machine's cores; the same run
          three times: undisturbed, with shares that follow eq. 6, and with even shares (gamma = 0).
Targets:  within one microbatch of proportional in at most 10 steps; at least 0.9 of ideal tokens/s; loss equal to 1e-6;
          shares that were left are not taken again while the speeds stay; padded to at least 5 times the CPU time.
Run:      python -m experiments.balance
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.entry import main
from experiments.processes import free_port
from experiments.report import Report, Row
from experiments.runs import Sections, merged, run_of
from experiments.workers.balance import launch
from jaxlm.decode import ConfigError, dump
from jaxlm.files import write_whole
from jaxlm.trainer.metrics import Record, read_jsonl
from planners.balance import Balance, quotas, whole

STEPS, IDEAL, LOSS, PADDED = 10, 0.9, 1e-6, 5.0
"""The targets: at most, at least, at most, at least."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Which processes, how slow, and what they train.

    Attributes:
        processes: real processes, one replica each.
        microbatches: of each replica in a step, while shares are even; one sequence each.
        seconds: that a microbatch takes, padded by sleep.
        factor: how many times as long it takes on the replica that is slowed down, which is the last one.
        first: the first step that is slow.
        last: the last one.
        steps: of the run.
        run: sections of a run, as `jaxlm train` takes them.
    """

    processes: int = 4
    microbatches: int = 16
    seconds: float = 0.04
    factor: float = 2.0
    first: int = 8
    last: int = 27
    steps: int = 40
    run: Sections = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 < self.first <= self.last < self.steps:
            raise ValueError(f"first={self.first} and last={self.last} must be steps within 2..{self.steps - 1}")


def execute(config: Config, out: Path) -> Report:
    undisturbed = trained(config, out, "undisturbed", slow=-1)
    followed = trained(config, out, "followed", slow=config.processes - 1)
    even = trained(config, out, "even", slow=config.processes - 1, gamma=0.0)
    return judge(config, undisturbed, followed, even, padding(out, ("undisturbed", "followed", "even")))


def trained(config: Config, out: Path, name: str, *, slow: int, gamma: float = 1.0) -> list[Record]:
    """The metrics of each step of one run, trained here and now by all its processes."""
    batch = config.processes * config.microbatches
    fixed = {
        "plan": {
            "mesh": {"data": config.processes},
            "microbatch": config.processes,
            "balance": "always",
            "alpha": {"gamma": gamma},
        },
        "train": {"steps": config.steps, "batch": batch, "log_every": 1, "tensorboard": False},
        "checkpoint": {"enabled": False},
        "data": {"cache": str(out / "cache")},
    }
    run = run_of(merged(config.run, fixed), {}, name, "run")
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    metrics = folder / "run" / "metrics.jsonl"
    if metrics.exists():
        raise ConfigError(f"{folder} holds a run already; choose another --out, or remove {out}")
    write_whole(folder / "run.yaml", dump(run).encode())
    task = {
        "config": str(folder / "run.yaml"),
        "overrides": [],
        "run": str(folder / "run"),
        "processes": config.processes,
        "coordinator": f"localhost:{free_port()}",
        "slow": slow,
        **{key: getattr(config, key) for key in ("seconds", "factor", "first", "last")},
    }
    print(f"training {folder} on {config.processes} processes", flush=True)
    processes = launch(task, folder)
    outputs = [process.communicate()[0] for process in processes]
    for number, (process, output) in enumerate(zip(processes, outputs, strict=True)):
        (folder / f"output-{number}.txt").write_text(output)
        if process.returncode:
            raise RuntimeError(f"process {number} of {folder} ended with code {process.returncode}:\n{output[-2000:]}")
    return read_jsonl(metrics)


def padding(out: Path, names: Sequence[str]) -> float:
    """The least that a step's microbatches were padded to, as a multiple of the CPU time that their process used in
    that step for everything; of the median step of each process of each run."""
    files = [file for name in names for file in sorted((out / name).glob("pace-*.jsonl"))]
    lines = [[json.loads(line) for line in file.read_text().splitlines()[1:]] for file in files]
    return min(float(np.median([line["padded"] / line["cpu"] for line in each])) for each in lines)


def judge(
    config: Config, undisturbed: list[Record], followed: list[Record], even: list[Record], padded: float
) -> Report:
    """What the records say of the targets."""
    speeds = np.array([1.0] * (config.processes - 1) + [1.0 / config.factor])
    total = config.processes * config.microbatches
    balance = Balance()
    quota = quotas(np.log(speeds / speeds.sum()), total, *balance.bounds(config.processes, total))
    best = total / speeds.sum() / max(np.array(whole(quota, total)) / speeds)
    there = {r["step"]: bool(np.abs(np.array(r["shares"]) - quota).max() <= 1.0) for r in followed}
    slow = range(config.first, config.last + 1)
    arrived = next((step for step in slow if all(there[later] for later in range(step, config.last + 1))), None)
    settled = range(arrived, config.last + 1) if arrived is not None else range(0)
    loss = max(abs(a["loss"] / b["loss"] - 1.0) for a, b in zip(followed, undisturbed, strict=True))
    same = all(a["batches"] == b["batches"] for a, b in zip(followed, undisturbed, strict=True))
    kept, returned = moves(followed, config)
    rows = [
        row("steps until shares are within one microbatch of proportional", "steps", None if arrived is None else
            arrived - config.first, STEPS, at_most=True),
        row("tokens/s of ideal, shares by eq. 6", "ratio", of_ideal(followed, settled), IDEAL, predicted=best),
        Row(what="tokens/s of ideal, even shares", quantity="ratio", measured=of_ideal(even, slow),
            predicted=1.0 / (config.factor * speeds.mean()), note="what is lost otherwise"),
        row("largest difference in loss from the undisturbed run", "relative", loss, LOSS, at_most=True),
        row("shares taken again that were left at the same speeds", "times", returned, 0, at_most=True),
        row("padded time of a step over CPU time of its process", "ratio", padded, PADDED),
        Row(what="moves", quantity="times", measured=kept, note="one down and one back up are needed"),
        Row(what="batches equal those of the undisturbed run", quantity="hashes", measured="all" if same else "NO"),
    ]  # fmt: skip
    timeline = [
        f"step {now['step']:>3}: {' '.join(map(str, now['shares']))} microbatches, alpha "
        + " ".join(f"{share:.3f}" for share in now["alpha"])
        for before, now in zip([None, *followed], followed, strict=False)
        if before is None or before["shares"] != now["shares"]
    ]
    remarks = [
        f"Replica {config.processes - 1} takes {config.factor:g} times as long from step {config.first} to "
        f"{config.last}. Shares as they were computed:\n\n" + "\n".join(timeline),
        "Ideal is the sum of what the replicas were measured to do while they computed; predicted is what whole "
        "microbatches allow. Speeds are those of padded processes on one machine, not of a cluster.",
    ]
    details = {"undisturbed": undisturbed, "followed": followed, "even": even}
    return Report(title="alpha(t): shares that follow measured throughput", rows=rows, remarks=remarks, details=details)


def row(
    what: str, quantity: str, value: Any, target: float, *, at_most: bool = False, predicted: float | None = None
) -> Row:
    """One quantity beside its target."""
    met = value is not None and (value <= target if at_most else value >= target)
    note = f"target {'<=' if at_most else '>='} {target:g}: {'met' if met else 'MISSED'}"
    return Row(
        what=what, quantity=quantity, measured="never" if value is None else value, predicted=predicted, note=note
    )


def of_ideal(records: list[Record], steps: range) -> float | None:
    """Microbatches per second of whole steps, over the sum of what each replica does while it computes; of a run of
    steps. None where there is no step."""
    chosen = [r for r in records if r["step"] in steps]
    if not chosen:
        return None
    done = sum(sum(r["shares"]) for r in chosen) / sum(r["step_seconds"] for r in chosen)
    rates = [np.sum(np.array(r["shares"]) / np.array(r["replica_seconds"])) for r in chosen]
    return done / float(np.mean(rates))


def moves(records: list[Record], config: Config) -> tuple[int, int]:
    """How often the shares moved, and how often to shares that had been left while the speeds were as they are."""
    moved = returned = 0
    left: set[tuple[int, ...]] = set()
    for before, now in itertools.pairwise(records):
        if now["step"] in (config.first, config.last + 1):
            left = set()
        if now["shares"] != before["shares"]:
            moved += 1
            returned += tuple(now["shares"]) in left
            left.add(tuple(before["shares"]))
    return moved, returned


if __name__ == "__main__":
    main("balance", __doc__, Config, execute)

"""Table 10: how much energy does an epoch take?

Question: watt-hours of one pass over C4 en on 512 A100 by the plan that we choose and by rules of thumb, predicted,
          beside the paper's figures; and what a small run takes here, where this machine tells its energy.
Cost:     a minute; the small run trains.
Run:      python -m experiments.table10_energy
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.entry import main
from experiments.report import Report, Row
from experiments.runs import run_of, sections, trained
from jaxlm.config import Run
from jaxlm.inspect import numerics_of
from jaxlm.runtime.monitor import read_reports
from jaxlm.session import resolve, workload_of
from planners.machines.cluster_file import load_cluster
from planners.plan import PlanError
from planners.search import EXECUTABLE
from planners.search import plan as search_plan
from planners.space.rivals import compare

PAPER = {"Megatron-LM": 1_204_000.0, "FairScale": 1_055_000.0, "ours": 711_000.0}
"""Wh per epoch, table 10."""

C4_EN = 364_868_892
"""Documents of C4 en, the paper's table 2: one sample each."""

COMPUTING = ("compute", "elementwise", "recompute", "loss_recompute", "optimizer")
"""Parts of a predicted step in which a GPU's units work; in all others it waits for bytes."""

RIVALS = {"Megatron-style": "Megatron-LM", "data parallel only": None, "simple rule": None}
"""Rules of thumb, and the trainer of the paper that follows such a rule; FairScale's is not among them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What is predicted, and what is run here.

    Attributes:
        run: the training run whose step is priced; model.vocab must be set.
        device: the GPU, a name in planners/facts/devices.yaml.
        gpus: how many.
        samples: of one epoch.
        busy_watts: of one GPU whose units work: its datasheet's most.
        waiting_watts: of one that waits for bytes.
        small: a run for this machine: a YAML file for `jaxlm train`, or its sections; null runs none.
        small_steps: of it.
    """

    run: Run = dataclasses.field(default_factory=Run)
    device: str = "A100-80"
    gpus: int = 512
    samples: int = C4_EN
    busy_watts: float = 400.0
    waiting_watts: float = 100.0
    small: Any = "configs/quickstart.yaml"
    small_steps: int = 60

    def __post_init__(self) -> None:
        if not 0 < self.waiting_watts <= self.busy_watts:
            raise ValueError(
                f"waiting_watts={self.waiting_watts} must be positive, at most busy_watts={self.busy_watts}"
            )
        if self.samples < 1 or self.gpus < 1 or self.small_steps < 20:
            raise ValueError("samples and gpus must be positive, small_steps at least 20")


def watt_hours(
    parts: Mapping[str, float], batch: int, samples: int, gpus: int, busy: float, waiting: float
) -> tuple[float, float]:
    """Of one epoch: as its parts say, and at full power all the time (the most that the GPUs can take).

    Args:
        parts: predicted seconds of one step by what they are spent on.
        batch: samples of one step.
        samples: of the epoch.
        gpus: how many.
        busy: watts of a GPU that computes.
        waiting: watts of one that waits.
    """
    steps, total = samples / batch, sum(parts.values())
    computing = sum(parts.get(name, 0.0) for name in COMPUTING)
    joules = steps * gpus * (computing * busy + (total - computing) * waiting)
    return joules / 3600, steps * gpus * total * busy / 3600


def measure(config: Config, out: Path) -> Report:
    """Predicted rows, then measured ones."""
    rows, details = _predicted(config)
    if config.small is not None:
        found, facts = _measured(config, out)
        rows, details = rows + found, details | {"measured": facts}
    ours, megatron = PAPER["ours"], PAPER["Megatron-LM"]
    remarks = [
        f"Predicted: {config.gpus} {config.device}, one pass over {config.samples:,} samples of "
        f"{config.run.data.sequence} tokens, step times by our cost model, GPUs alone (no hosts, network, cooling). "
        f"A GPU that computes takes {config.busy_watts:g} W, the most that its datasheet allows; one that waits for "
        f"bytes {config.waiting_watts:g} W, an assumption that nothing here measures. No such cluster was used.",
        f"The paper's figures differ by {1 - ours / megatron:.0%} (ours against Megatron-LM) and "
        f"{1 - ours / PAPER['FairScale']:.0%} (against FairScale), but by trainer, model and epoch that it does not "
        "give: only the difference between rows is comparable. At its 18,901 samples/s, one pass would be "
        f"{ours / (C4_EN / 18_901 / 3600) / 512:.0f} W per GPU.",
    ]
    return Report(title="Table 10: energy of one epoch", rows=rows, remarks=remarks, details=details)


def _predicted(config: Config) -> tuple[list[Row], dict[str, Any]]:
    run = config.run
    if not run.model.vocab:
        raise PlanError("run.model.vocab must be set: no tokenizer is trained here")
    cluster = load_cluster(f"{config.device.lower()}x{config.gpus}")
    workload = workload_of(run, resolve(run, run.model.vocab), numerics_of(run, cluster))
    plan = search_plan(workload, cluster, run.plan)
    assert plan.predicted is not None
    found = {"ours": (plan.summary(), plan.predicted.seconds)}
    comparison = compare(plan, workload, cluster, run.plan, EXECUTABLE)
    for name, row in comparison.baselines().items():
        if name in RIVALS and row is not None:
            choice = comparison.choices[row]
            found[name] = (f"mesh {choice.mesh}, microbatch {choice.microbatch}", choice.predicted.seconds)
    rows, details = [], {}
    first: float | None = None
    for name, (summary, parts) in found.items():
        likely, most = watt_hours(
            parts, run.train.batch, config.samples, config.gpus, config.busy_watts, config.waiting_watts
        )
        first = first or likely
        paper = PAPER.get(name if name == "ours" else RIVALS[name] or "")
        note = summary if name == "ours" else f"{likely / first - 1:+.1%} against ours"
        rows.append(Row(what=name, quantity="Wh per epoch, GPUs", paper=paper, predicted=likely, note=note))
        rows.append(Row(what=name, quantity="Wh per epoch at full power, at most", predicted=most))
        details[name] = {"summary": summary, "seconds": dict(parts)}
    rows.append(
        Row(what="FairScale", quantity="Wh per epoch, GPUs", paper=PAPER["FairScale"], note="no rule of thumb is its")
    )
    return rows, details


def _measured(config: Config, out: Path) -> tuple[list[Row], dict[str, Any]]:
    base = sections(config.small, "small", config.small_steps)
    changes = {"train": {"monitor": True, "log_every": 5}, "sample": {"prompt": None}}
    run = run_of(base, changes, "energy", "small")
    folder = trained(run, out / "run", apart=True)
    summary = json.loads(folder.summary.read_text())
    records = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    (report,) = read_reports(folder.hosts)
    each = [record["joules_per_step"] for record in records if "joules_per_step" in record]
    steps = max(record["step"] for record in records)
    cpu = report["cpu_seconds"]
    source = report["hardware"]["source"]
    tokens = run.train.batch * run.data.sequence
    what = f"{summary['parameters']:,} parameters here"
    if each:
        mean = sum(each) / len(each)
        rows = [
            Row(
                what=what, quantity="J per step", measured=mean, note=f"read from {source}, mean of {len(each)} records"
            ),
            Row(what=what, quantity="Wh per 1,000,000 tokens", measured=mean / tokens * 1e6 / 3600),
        ]
    else:
        note = f"not measured: this machine tells no energy (asked: {source})"
        rows = [Row(what=what, quantity="J per step", note=note)]
    rows.append(Row(what=what, quantity="processor seconds per step", measured=cpu["median"], note=f"{steps} steps"))
    rows.append(Row(what=what, quantity="seconds per step", measured=report["step_seconds"]["median"]))
    return rows, {"hardware": report["hardware"], "joules_per_step": each, "step_seconds": report["step_seconds"]}


if __name__ == "__main__":
    main("table10_energy", __doc__, Config, measure)

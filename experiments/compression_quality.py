"""What does training lose when gradients travel compressed, and what when they travel in an unsafe way?

Question: the same model, text, steps and seeds under each way to travel between two zones: how far is the loss on
          held-out text from that of exact gradients, in pairs of equal seeds?
Cost:     one short training per variant and seed, half a minute each on two cores.
Run:      python -m experiments.compression_quality [--seeds 5] [--steps 1000]
Leaves:   the runs themselves in runs/.

A small model and a short run: read directions, not sizes. Top-1 % delays a weight by about a hundred steps, which is a
good part of this run.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from experiments.entry import main
from experiments.report import Report, Row
from experiments.runs import Sections, merged, run_of, sections, trained

TARGETS = {"int8": 0.3, "int4": 0.5, "sign": 0.5}
"""Most that the loss may be above that of exact gradients, %, by the upper end of the 95 % interval."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Variants of one training run.

    Attributes:
        run: a file for `jaxlm train`, or its sections written here: what all variants have in common.
        variants: name -> what it changes in `run`; the first one is what the others are compared with.
        steps: training steps, in place of those of `run`.
        seeds: seeds of each variant, from 0.
        devices: CPU devices of each run.
    """

    run: Any = dataclasses.field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    steps: int | None = None
    seeds: int = 3
    devices: int = 2


def execute(config: Config, out: Path) -> Report:
    """Trains what is not trained yet, and compares."""
    base = sections(config.run, "run", config.steps)
    losses: dict[str, list[float]] = {}
    for seed in range(config.seeds):
        for name, changes in config.variants.items():
            losses.setdefault(name, []).append(_loss(base, changes, name, seed, out, config.devices))
    return report(losses)


def _loss(base: Sections, changes: Sections, name: str, seed: int, out: Path, devices: int) -> float:
    """Loss on the held-out text of a variant's run with that seed, nats per token."""
    run = run_of(base, merged(changes, {"seed": seed}), f"{name}-{seed}", f"variants.{name}")
    folder = trained(run, out / "runs" / f"{name}-{seed}", apart=True, devices=devices)
    return float(json.loads(folder.summary.read_text())["loss"])


def report(losses: dict[str, list[float]]) -> Report:
    """Held-out losses, and the gaps to the first variant in pairs of equal seeds, with their 95 % intervals."""
    first = next(iter(losses))
    base, rows = np.array(losses[first]), []
    for name, each in losses.items():
        rows.append(Row(what=name, quantity="loss, nats", measured=round(float(np.mean(each)), 4), note=_list(each)))
        if name == first:
            continue
        gaps = 100.0 * (np.array(each) - base) / base
        half = (
            float(stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / len(gaps) ** 0.5) if len(gaps) > 1 else np.inf
        )
        upper = float(gaps.mean()) + half
        note = f"95 % interval +-{half:.2f}" if len(gaps) > 1 else "one seed, no interval"
        if name in TARGETS and len(gaps) > 1:
            note += f"; target <= {TARGETS[name]}: {'met' if upper <= TARGETS[name] else 'MISSED'}"
        rows.append(Row(what=name, quantity=f"% above {first}", measured=round(float(gaps.mean()), 3), note=note))
    remarks = [f"{len(base)} seeds of each, the same text in the same order; a gap below zero is better than exact."]
    return Report(title="Loss under compressed gradients", rows=rows, remarks=remarks, details={"losses": losses})


def _list(values: list[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)


if __name__ == "__main__":
    main("compression_quality", __doc__, Config, execute)

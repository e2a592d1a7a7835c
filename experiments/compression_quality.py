"""What does training lose when gradients travel compressed, and what when they travel in an unsafe way?

Question: the same model, text, steps and seeds under each way to travel between two zones: how far is the loss on
          held-out text from that of exact gradients, and from that of the same optimizer without codes, in pairs of
          equal seeds?
Cost:     two to three minutes of one core for each variant, all its seeds side by side.
Run:      python -m experiments.compression_quality [--run.data.path FOLDER] [--seeds 5] [--steps 800]
          A variant that is finished is not trained again, so a run that was stopped goes on where it was.
Leaves:   seeds/VARIANT.json with the losses of each seed, seeds/VARIANT.yaml with what was trained.

A small model and a short run: read directions, not sizes. Top-1 % delays a weight by about a hundred steps, which is a
good part of this run.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from experiments.entry import main
from experiments.processes import run_all
from experiments.report import Report, Row
from experiments.runs import Sections, run_of, sections
from jaxlm.decode import ConfigError, dump
from jaxlm.files import write_whole

TARGETS = {"int8": 0.3, "int4": 0.5, "sign": 0.5}
"""Most that the loss may be above that of exact gradients, %, by the upper end of the 95 % interval."""
CONTROLS = {"sign": "frozen", "topk": "frozen"}
"""What a variant is compared with beside exact gradients: its optimizer without its codes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Variants of one training run.

    Attributes:
        run: a file for `jaxlm train`, or its sections written here: what all variants have in common.
        variants: name -> what it changes in `run`; the first one is what the others are compared with.
        steps: training steps, in place of those of `run`.
        seeds: seeds of each variant, from 0.
        devices: CPU devices of each run.
        only: variants to train and compare now; none means all. Two shells may so share the work.
    """

    run: Any = dataclasses.field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    steps: int | None = None
    seeds: int = 3
    devices: int = 2
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := set(self.only) - set(self.variants):
            raise ValueError(f"only={sorted(unknown)} are not among the variants {', '.join(self.variants)}")


def execute(config: Config, out: Path) -> Report:
    """Trains what is not trained yet, and compares."""
    base = sections(config.run, "run", config.steps)
    wanted = {name: changes for name, changes in config.variants.items() if not config.only or name in config.only}
    found = {name: _trained(base, changes, name, out / "seeds", config) for name, changes in wanted.items()}
    return report(found)


def _trained(base: Sections, changes: Sections, name: str, folder: Path, config: Config) -> dict[str, Any]:
    """What `experiments.workers.seeds` says of a variant. Raises ConfigError where the folder holds another run."""
    text = dump(run_of(base, changes, name, f"variants.{name}"))
    file, result = folder / f"{name}.yaml", folder / f"{name}.json"
    if result.exists():
        found = json.loads(result.read_text())
        if file.read_text() != text or len(found["losses"]) != config.seeds:
            raise ConfigError(f"{result} is of another run; choose another --out, or remove it")
        return found
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(file, text.encode())
    print(f"training {name} with {config.seeds} seeds", flush=True)
    worker = [sys.executable, "-m", "experiments.workers.seeds", str(file), str(config.seeds), str(result)]
    run_all([worker], devices=config.devices)
    return json.loads(result.read_text())


def report(found: Mapping[str, Mapping[str, Any]]) -> Report:
    """Held-out losses, and the gaps in pairs of equal seeds with their 95 % intervals."""
    first = next(iter(found))
    losses = {name: np.array(each["losses"]) for name, each in found.items()}
    rows: list[Row] = []
    for name, each in losses.items():
        fallen = sum(found[name].get("fallback") or [])
        note = " ".join(f"{loss:.4f}" for loss in each) + (f"; {fallen} fell back to dense steps" if fallen else "")
        rows.append(Row(what=name, quantity="loss, nats", measured=round(float(each.mean()), 4), note=note))
        against = [other for other in (first, CONTROLS.get(name)) if other in losses and other != name]
        rows += [_gap(name, each, str(other), losses[str(other)]) for other in against]
    remarks = [
        f"{len(losses[first])} seeds of each, the same text in the same order; a gap below zero is better. `frozen` is "
        "the control of sign and topk: their warm-up, momentum and frozen variance without their codes. A target is "
        "met where the upper end of the interval is below it, against exact gradients and against the control."
    ]
    return Report(title="Loss under compressed gradients", rows=rows, remarks=remarks, details={"found": dict(found)})


def _gap(name: str, losses: np.ndarray, other: str, base: np.ndarray) -> Row:
    mean, half = interval(100.0 * (losses - base) / base)
    note = f"95 % interval {mean - half:+.2f} to {mean + half:+.2f}" if len(losses) > 1 else "one seed, no interval"
    if name in TARGETS and len(losses) > 1:
        note += f"; target < {TARGETS[name]}: {'met' if mean + half < TARGETS[name] else 'MISSED'}"
    return Row(what=name, quantity=f"% above {other}", measured=round(mean, 3), note=note)


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t (infinite for one value)."""
    each = np.asarray(values)
    if len(each) < 2:
        return float(each.mean()), float("inf")
    half = stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / len(each) ** 0.5
    return float(each.mean()), float(half)


if __name__ == "__main__":
    main("compression_quality", __doc__, Config, execute)

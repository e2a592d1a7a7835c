"""Figure 8: how does the loss fall, by tokens and by seconds, under different plans, optimizers and batches?

Question: the same model and text, trained under each variant of the configuration: which reaches the same loss soonest,
          and what do its steps cost? A plan must change the seconds and the memory, and no loss.
Cost:     five short trainings of a 2-layer model on Python's sources: about two minutes on two cores.
Run:      python -m experiments.figure8_convergence
          python -m experiments.figure8_convergence --runs runs/a,runs/b     runs that exist, finished or under way
Leaves:   by_tokens.png and by_seconds.png beside the report, and the runs themselves in runs/.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.entry import main
from experiments.report import Report, Row
from experiments.runs import Sections, run_of, sections, trained
from jaxlm.decode import ConfigError
from jaxlm.folder import Folder, open_run
from jaxlm.trainer.plot import Curve, names, plot_runs, read_curve, smoothed
from planners.findings import Prediction
from planners.plan import Plan

DOCUMENTS = 364_868_892
"""Documents of C4 en, by the paper's table 2."""

OURS = "the paper's framework"
PAPER = {
    "Megatron-LM": (12_345, 48.2),
    "DeepSpeed": (13_721, 45.5),
    "FairScale": (14_012, 42.7),
    OURS: (18_901, 29.8),
}
"""Table 3: samples per second and hours to converge, C4 en on 512 A100."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Variants of one training run.

    Attributes:
        run: a file for `jaxlm train`, or its sections written here: what all variants have in common.
        variants: name -> what it changes in `run`, in the same sections.
        steps: training steps of `run`, in place of its own; a variant that sets train.steps keeps its own.
        runs: directories of runs, separated by commas; where given, they are compared and nothing is trained.
        smooth: weight of the past in the moving average of the training loss, from 0 to below 1.
        apart: whether each run is trained in a process of its own, so that its memory is its own.
    """

    run: Any = dataclasses.field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    steps: int | None = None
    runs: str = ""
    smooth: float = 0.8
    apart: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.smooth < 1.0:
            raise ValueError(f"smooth={self.smooth} must be at least 0 and below 1")

    def base(self) -> Sections:
        return sections(self.run, "run", self.steps)


@dataclass(frozen=True, slots=True)
class Found:
    """A run as it lies on disk: its curve, what its plan predicted, and its final evaluation if it has one."""

    curve: Curve
    loss: np.ndarray
    predicted: Prediction | None
    summary: dict[str, Any]
    same: tuple[Any, ...]

    @property
    def on_cpu(self) -> bool:
        return "cpu" in str(self.summary.get("devices", ""))


def measure(config: Config, out: Path) -> Report:
    """Trains each variant, or reads the runs named; draws and compares them."""
    runs = [Path(part.strip()) for part in config.runs.split(",") if part.strip()]
    if not runs:
        runs = [folder.path for folder in _train(config, out)]
    labels = names(runs)
    found = [_read(path, label, config.smooth) for path, label in zip(runs, labels, strict=True)]
    pictures = [out / "by_tokens.png", out / "by_seconds.png"]
    for picture, by in zip(pictures, ("tokens", "seconds"), strict=True):
        plot_runs(runs, picture, by=by, smooth=config.smooth)
    return report(found, pictures, one_process=not config.runs and not config.apart)


def _train(config: Config, out: Path) -> list[Folder]:
    if not config.variants:
        raise ConfigError("nothing to compare: name variants in the configuration, or give --runs A,B")
    base = config.base()
    runs = {name: run_of(base, changes, name, f"variants.{name}") for name, changes in config.variants.items()}
    return [trained(run, out / "runs" / name, apart=config.apart) for name, run in runs.items()]


def _read(path: Path, label: str, smooth: float) -> Found:
    folder, run = open_run(path)
    curve = read_curve(path, name=label)
    plan = Plan.load(folder.plan) if folder.plan.exists() else None
    summary = json.loads(folder.summary.read_text()) if folder.summary.exists() else {}
    same = (run.data, run.model, run.optim, run.seed, run.train.batch, run.train.steps)
    return Found(curve, smoothed(curve.loss, smooth), plan.predicted if plan else None, summary, same)


def report(found: list[Found], pictures: list[Path], *, one_process: bool) -> Report:
    """Losses where all runs have seen the same tokens, and the time that each needs to a loss that all reach."""
    tokens = min(float(run.curve.tokens[-1]) for run in found)
    target = max(float(run.loss[-1]) for run in found)
    rows = [row for run in found for row in _rows(run, tokens, target, one_process=one_process)]
    rows += _same_loss(found)
    rows += _paper()
    return Report(
        title=f"Figure 8: loss of {len(found)} runs over tokens and seconds",
        rows=rows,
        remarks=[
            f"Training losses are moving averages. {target:.3f} bits per byte is the highest of the final ones: a "
            "loss that every run reaches. Seconds are those of the steps, without compilation, evaluation and saving.",
            "Predicted seconds are the measured number of steps times the step time that the plan predicted. Predicted "
            "memory is that of the device; on a CPU the measured one is the whole process, the Python in it included.",
            "Runs that differ in their plan alone compute the same sums in another order: they begin equal to "
            "rounding, and training lets the rounding grow.",
            "The paper's figure 8 has 30 epochs on its axis, while the rates and hours of its table 3 are about six "
            "passes over C4 en (notes in the table). Both cannot be; we read an epoch as one pass and the axis as 30 "
            "logging intervals. The paper gives no loss value to compare with.",
            "Curves: " + ", ".join(map(str, pictures)),
        ],
        details={"tokens": tokens, "target_bits_per_byte": target, "runs": [run.curve.name for run in found]},
    )


def _rows(run: Found, tokens: float, target: float, *, one_process: bool) -> list[Row]:
    curve, plan, what = run.curve, run.predicted, run.curve.name
    reached = int(np.argmax(run.loss <= target))
    held_out = run.summary.get("bits_per_byte")
    # The first step also warms up caches and clocks: it is left out where there are others.
    seconds = float(np.median(curve.step_seconds[1:] if len(curve.step) > 1 else curve.step_seconds))
    memory = "of one process for all runs" if one_process else "resident size of the process" if run.on_cpu else ""
    return [
        Row(
            what=what,
            quantity=f"training bits per byte at {tokens:,.0f} tokens",
            measured=float(np.interp(tokens, curve.tokens, run.loss)),
        ),
        Row(
            what=what,
            quantity="held-out bits per byte at the end",
            measured=held_out,
            note="not finished" if held_out is None else f"after {curve.tokens[-1]:,.0f} tokens",
        ),
        Row(
            what=what,
            quantity=f"seconds to {target:.3f} bits per byte",
            measured=float(curve.seconds[reached]),
            predicted=float(curve.step[reached]) * plan.step_seconds if plan else None,
            note=f"{curve.step[reached]:.0f} steps",
        ),
        Row(
            what=what,
            quantity="steps per second",
            measured=1 / seconds,
            predicted=1 / plan.step_seconds if plan else None,
        ),
        Row(
            what=what,
            quantity="memory, GiB",
            measured=float(curve.memory.max()) / 2**30,
            predicted=plan.memory_bytes / 2**30 if plan else None,
            note=memory,
        ),
    ]


def _same_loss(found: list[Found]) -> list[Row]:
    """How far apart the losses are of runs that differ in nothing but their plan."""
    rows, first = [], dict[int, Found]()
    for number, run in enumerate(found):
        twin = next((other for other in first.values() if other.same == run.same), None)
        if twin is None:
            first[number] = run
            continue
        steps, mine, theirs = np.intersect1d(run.curve.step, twin.curve.step, return_indices=True)
        if not len(steps):
            continue  # they were not reported at the same steps
        apart = np.abs(run.curve.loss[mine] - twin.curve.loss[theirs])
        rows.append(
            Row(
                what=f"{twin.curve.name}, {run.curve.name}",
                quantity="largest difference in training bits per byte",
                measured=float(apart.max()),
                note=f"the same but for the plan; {apart[0]:.1g} at step {steps[0]:.0f}",
            )
        )
    return rows


def _paper() -> list[Row]:
    """The paper's own claims: hours, and how many passes over its data they come to."""
    rows, (_, ours) = [], PAPER[OURS]
    for name, (rate, hours) in PAPER.items():
        passes = rate * hours * 3600 / DOCUMENTS
        note = f"{rate:,} samples/s x {hours} h = {passes:.2f} passes over {DOCUMENTS:,} documents"
        note += "" if name == OURS else f"; {OURS} takes {1 - ours / hours:.1%} less"
        rows.append(Row(what=name, quantity="hours to converge (512 A100, table 3)", paper=hours, note=note))
    return rows


if __name__ == "__main__":
    main("figure8_convergence", __doc__, Config, measure)

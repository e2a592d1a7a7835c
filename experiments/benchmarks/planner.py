"""How well does the planner predict and choose, against published measurements and the other ways to choose?

Question: how far is the predicted step time from the published one, and how much slower than the best measured plan is
          the plan that the planner chooses? Beside it, on the same rows: a closed form, rules of thumb and chance.
Cost:     a few minutes on one core; nothing is trained or compiled.
Run:      python -m experiments.benchmarks.planner [--calibrate-on DIR] [--groundtruth DIR] [--json]

Rows are judged in `groundtruth`; coefficients are fitted on rows of `calibrate-on`. Where only one is given it serves
as both, and without either JAXLM_SHARED/groundtruth does; then rows are split by whole models. Files that are missing
are skipped and named. Leagues are kept apart by what a predictor was allowed to see.
"""

import dataclasses
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.benchmarks.published.judge import STATISTICS, Verdict, interval, statistic
from experiments.benchmarks.published.tables import Source
from experiments.entry import main
from experiments.report import Report, Row
from jaxlm.decode import ConfigError

SECTIONS = ("vtrain", "megatron", "alephalpha", "jax_gpu", "sailor", "agent")
"""Modules of experiments.benchmarks.published that judge one family of files each, by `verdicts(source, seed)`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What is judged on what.

    Attributes:
        groundtruth: folder of the rows that are judged; by itself JAXLM_SHARED/groundtruth.
        calibrate_on: folder of the rows that coefficients are fitted on; by itself the same.
        sections: which families of files, separated by commas; empty takes all.
        samples: bootstrap samples of every interval.
        seed: of every random draw.
    """

    groundtruth: str = ""
    calibrate_on: str = ""
    sections: str = ""
    samples: int = 1000
    seed: int = 0


def execute(config: Config, out: Path) -> Report:
    """Judges every section and lays the verdicts side by side."""
    source = _source(config)
    wanted = [name.strip() for name in config.sections.split(",") if name.strip()] or list(SECTIONS)
    if unknown := set(wanted) - set(SECTIONS):
        raise ConfigError(f"unknown section {', '.join(sorted(unknown))}; the sections are {', '.join(SECTIONS)}")
    found: list[Verdict] = []
    for name in wanted:
        module = f"experiments.benchmarks.published.{name}"
        if importlib.util.find_spec(module) is not None:
            found += importlib.import_module(module).verdicts(source, config.seed)
    report = report_of(found, source, samples=config.samples, seed=config.seed)
    if pictures := plot(found, out):
        report = dataclasses.replace(report, remarks=[*report.remarks, f"Drawn: {', '.join(map(str, pictures))}."])
    return report


def _source(config: Config) -> Source:
    shared = os.environ.get("JAXLM_SHARED")
    default = str(Path(shared) / "groundtruth") if shared else ""
    judged = config.groundtruth or config.calibrate_on or default
    fitted = config.calibrate_on or judged
    if not judged:
        raise ConfigError("groundtruth: no folder; give --groundtruth DIR or set JAXLM_SHARED")
    for name, folder in (("groundtruth", judged), ("calibrate_on", fitted)):
        if not Path(folder).is_dir():
            raise ConfigError(f"{name}: {folder} is no folder")
    return Source(Path(judged), Path(fitted))


def report_of(verdicts: Sequence[Verdict], source: Source, *, samples: int, seed: int) -> Report:
    """One row per predictor, ours above the baselines of the same rows; misses are called misses."""
    rows: list[Row] = []
    misses: list[str] = []
    for verdict in verdicts:
        what = f"{verdict.what}, {verdict.league}"
        quantity = f"{verdict.quantity}: {' / '.join(verdict.shown)}"
        low, high = interval("mean", verdict.ours, samples=samples, seed=seed)
        note = f"OURS, {len(verdict.ours)} values, 95 % of the mean: {low:.3g} to {high:.3g}"
        rows.append(Row(what=what, quantity=quantity, predicted=_summary(verdict, verdict.ours), note=note))
        for name in verdict.targets:
            low, high = interval(name, verdict.ours, samples=samples, seed=seed)
            value = statistic(name, verdict.ours)
            target = f"target {'>=' if verdict.larger else '<='} {verdict.targets[name]:g}"
            rows.append(
                Row(
                    what=what,
                    quantity=f"{verdict.quantity}, {name}",
                    predicted=f"{value:.4g} (95 %: {low:.3g} to {high:.3g})",
                    note=f"{target}: {'met' if verdict.met(name) else 'MISSED'}",
                )
            )
            if not verdict.met(name):
                misses.append(f"{what}, {verdict.quantity}, {name}: {value:.3g} ({target})")
        rows += [
            Row(what=what, quantity=quantity, predicted=_summary(verdict, values), note=f"baseline: {other}")
            for other, values in verdict.baselines.items()
        ]
        for other, figures in verdict.published.items():
            text = ", ".join(f"{name} {value:g}" for name, value in figures.items())
            rows.append(Row(what=what, quantity=verdict.quantity, published=text, note=f"{other}, not rerun"))
    remarks = [
        "Every value is a summary over rows whose step times others measured and published. "
        "Constants: " + "; ".join(dict.fromkeys(f"{v.what}, {v.league}: {v.constants}" for v in verdicts)) + ".",
        "Missed targets: " + ("; ".join(misses) if misses else "none") + ".",
    ]
    if source.missing:
        remarks.append("Skipped, because missing: " + ", ".join(source.missing) + ".")
    details = {"verdicts": [_details(verdict, samples, seed) for verdict in verdicts], "missing": list(source.missing)}
    return Report(title="The planner on published measurements", rows=rows, remarks=remarks, details=details)


def _summary(verdict: Verdict, values: np.ndarray) -> str:
    return " / ".join(f"{statistic(name, np.asarray(values)):.4g}" for name in verdict.shown)


def plot(verdicts: Sequence[Verdict], out: Path) -> list[Path]:
    """Predicted against measured step times of every verdict that brings them, one panel each."""
    shown = [verdict for verdict in verdicts if "predicted" in verdict.details and len(verdict.details["measured"])]
    if not shown:
        return []
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(shown), 3)
    height = -(-len(shown) // columns)
    figure = Figure(figsize=(4.2 * columns, 4.0 * height), layout="constrained")
    FigureCanvasAgg(figure)
    for place, verdict in enumerate(shown, start=1):
        axes = figure.add_subplot(height, columns, place)
        measured, predicted = (np.array(verdict.details[name]) for name in ("measured", "predicted"))
        ends = [min(measured.min(), predicted.min()), max(measured.max(), predicted.max())]
        axes.loglog(measured, predicted, ".", markersize=3)
        axes.loglog(ends, ends, linewidth=0.8, color="black")
        axes.set_title(f"{verdict.what}\n{verdict.league}", fontsize=8)
        axes.set_xlabel("published seconds per step")
        axes.set_ylabel("predicted")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "predicted_against_published.png"
    figure.savefig(path, dpi=120)
    return [path]


def _details(verdict: Verdict, samples: int, seed: int) -> dict[str, object]:
    summary = lambda values: {name: statistic(name, np.asarray(values)) for name in STATISTICS}
    return {
        "what": verdict.what,
        "league": verdict.league,
        "quantity": verdict.quantity,
        "ours": summary(verdict.ours),
        "intervals": {name: interval(name, verdict.ours, samples=samples, seed=seed) for name in STATISTICS},
        "baselines": {name: summary(values) for name, values in verdict.baselines.items()},
        "published": verdict.published,
        "targets": verdict.targets,
        "met": {name: verdict.met(name) for name in verdict.targets},
        "constants": verdict.constants,
        "rows_fitted": len(verdict.fitted),
        "rows_judged": len(verdict.judged) or sum(len(judged) for _, judged in verdict.folds),
        "folds": [{"fitted": len(fitted), "judged": len(judged)} for fitted, judged in verdict.folds],
        **verdict.details,
    }


def _underscored(arguments: list[str]) -> list[str]:
    """`--calibrate-on` is how the command is documented; configuration keys have underscores."""
    return [argument.replace("--calibrate-on", "--calibrate_on", 1) for argument in arguments]


if __name__ == "__main__":
    sys.argv[1:] = _underscored(sys.argv[1:])
    main("benchmarks.planner", __doc__, Config, execute, default="planner")

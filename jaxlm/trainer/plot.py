"""Pictures of runs: loss, throughput and memory over steps, tokens or seconds, from their metrics.jsonl."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from jaxlm.decode import ConfigError
from jaxlm.trainer.metrics import Record, read_jsonl

if TYPE_CHECKING:
    from matplotlib.figure import Figure

By: TypeAlias = Literal["step", "tokens", "seconds"]
LossUnit: TypeAlias = Literal["bits_per_byte", "loss"]

ENDINGS = (".png", ".svg", ".pdf")
AXES = {"step": "step", "tokens": "tokens", "seconds": "seconds of training"}
UNITS = {"bits_per_byte": "bits per byte", "loss": "loss (nats per token or row)"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What one run has reported so far, one entry per record: float64 [records].

    `tokens` are those fed to the model up to each step; `seconds` add up the mean step times, so they hold no
    compilation, evaluation or checkpoint, and go on over a restart. `held_out` are (step, loss) of its evaluations.
    """

    name: str
    step: np.ndarray
    tokens: np.ndarray
    seconds: np.ndarray
    step_seconds: np.ndarray
    loss: np.ndarray
    rate: np.ndarray
    memory: np.ndarray
    held_out: tuple[tuple[float, float], ...]


def read_curve(run: Path, unit: LossUnit = "bits_per_byte", name: str | None = None) -> Curve:
    """The records of a run directory, finished, resumed or still under way.

    Raises ConfigError where there is no run, no record yet, or a record without what is to be drawn.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        what = "has no metrics.jsonl: it is no run directory, or its run has not begun" if run.is_dir() else "is absent"
        raise ConfigError(f"{run} {what}")
    records = read_jsonl(path)
    if not records:
        raise ConfigError(f"{path} holds no record yet; a run writes one after its first step")
    column = lambda key: np.array([_value(r, key, path) for r in records], np.float64)
    step, seconds, rate = column("step"), column("step_seconds"), column("tokens_per_second")
    since = np.diff(step, prepend=0.0)  # steps that each record stands for
    evaluations = run / "evaluations.jsonl"
    held_out = read_jsonl(evaluations) if evaluations.exists() else []
    return Curve(
        name=name or run.name,
        step=step,
        tokens=np.cumsum(rate * seconds * since),
        seconds=np.cumsum(seconds * since),
        step_seconds=seconds,
        loss=column(unit),
        rate=rate,
        memory=column("memory_bytes"),
        held_out=tuple((_value(r, "step", evaluations), _value(r, unit, evaluations)) for r in held_out),
    )


def _value(record: Record, key: str, path: Path) -> float:
    value: Any = record.get(key)
    if not isinstance(value, (int, float)):
        found = "is missing" if value is None else f"is {value!r}, no number,"
        raise ConfigError(
            f"{path}: {key} {found} in the record of step {record.get('step')} (it has {', '.join(record)})"
        )
    return float(value)


def smoothed(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average: each value counts `weight` times as much as the one after it. Without bias towards
    the first value; 0 leaves everything as it is."""
    sums, total, result = 0.0, 0.0, np.empty_like(values)
    for i, value in enumerate(values):
        sums, total = weight * sums + value, weight * total + 1.0
        result[i] = sums / total
    return result


def draw(runs: Sequence[Path], *, by: By = "step", unit: LossUnit = "bits_per_byte", smooth: float = 0.0) -> "Figure":
    """A figure with loss, throughput and memory of any set of run directories, for files and notebooks.

    Training losses are lines (with `smooth` above 0 their moving average, the values themselves faint behind it),
    held-out ones points. Raises ConfigError naming the run that cannot be drawn.
    """
    from matplotlib.figure import Figure

    if not runs:
        raise ConfigError("no run to draw: give at least one run directory")
    if not 0.0 <= smooth < 1.0:
        raise ConfigError(f"smooth={smooth} must be at least 0 and below 1")
    curves = [read_curve(run, unit, name) for run, name in zip(runs, names(runs), strict=True)]
    figure = Figure(figsize=(12, 3.6 + 0.22 * ((len(curves) + 2) // 3)), layout="constrained")
    loss, rate, memory = figure.subplots(1, 3)
    for curve in curves:
        x: np.ndarray = getattr(curve, by)
        mark = "." if len(x) == 1 else None
        (line,) = loss.plot(x, smoothed(curve.loss, smooth), label=curve.name, marker=mark)
        color = line.get_color()
        if smooth:
            loss.plot(x, curve.loss, color=color, alpha=0.25, linewidth=0.8)
        if curve.held_out:
            steps, values = np.array(curve.held_out).T
            loss.plot(np.interp(steps, curve.step, x), values, "o", color=color, markeredgecolor="black")
        rate.plot(x, curve.rate, color=color, marker=mark)
        memory.plot(x, curve.memory / 2**30, color=color, marker=mark)
    for axes, title in ((loss, UNITS[unit]), (rate, "tokens per second"), (memory, "memory (GiB)")):
        axes.set_xlabel(AXES[by])
        axes.set_title(title)
        axes.grid(alpha=0.3)
    if any(curve.held_out for curve in curves):
        loss.plot([], [], "o", color="white", markeredgecolor="black", label="held-out text")
    rate.set_ylim(bottom=0)
    memory.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return figure


def plot_runs(
    runs: Sequence[Path], out: Path, *, by: By = "step", unit: LossUnit = "bits_per_byte", smooth: float = 0.0
) -> None:
    """As `draw`, into a PNG, SVG or PDF by the ending of `out`; its folder is made where there is none."""
    if out.suffix.lower() not in ENDINGS:
        raise ConfigError(f"{out}: a picture's name must end in {', '.join(ENDINGS)}")
    figure = draw(runs, by=by, unit=unit, smooth=smooth)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=110)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}") from None


def names(runs: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as few as tell them apart."""
    parts = [Path(os.path.abspath(run)).parts for run in runs]
    for length in range(1, max((len(p) for p in parts), default=0)):
        short = ["/".join(p[-length:]) for p in parts]
        if len(set(short)) == len({tuple(p) for p in parts}):
            return short
    return [str(run) for run in runs]

"""Figure 2: which layers recompute in which epoch, when measured costs decide?

Question: a small model trains within a memory budget, and at the end of each epoch the dynamic program is solved again
          at the costs as measured so far (eq. 13): which layers toggle, does it settle, and does the loss stay?
Cost:     one training of the model in `run`, and with `control` another without any recomputation: four minutes on two
          cores.
Run:      python -m experiments.figure2_toggles
Leaves:   figure2_toggles.png, drawn from runs/feedback/remat.jsonl, and the runs, beside the report.

The paper shows 30 epochs; here an epoch is `steps_per_epoch` steps, as that axis counts logging intervals.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.entry import main
from experiments.remat_quality import but_for_remat
from experiments.report import Report, Row
from experiments.runs import Sections, merged, run_of, sections, trained
from jaxlm.folder import Folder
from jaxlm.trainer.metrics import read_jsonl
from jaxlm.trainer.plot import read_curve
from planners.plan import Segment, describe, structure

PAPER_EPOCHS = 30
MIB = 2.0**20

ROUNDING = 1e-5
"""Relative difference of two losses that adding up in another order explains at once; training lets it grow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A training whose layers may toggle.

    Attributes:
        run: a file for `jaxlm train`, or its sections written here: the model and its training.
        epochs: epochs of the training.
        steps_per_epoch: steps of each; at the end of an epoch layers may go over to another policy.
        memory: what may be used, from 0 (what full rematerialisation is predicted to need) to 1 (none).
        horizon: steps over which a change must be expected to win back its compilation: a run of minutes could win
            back none. 0: those that are left.
        control: also train without recomputation, and compare the losses.
        apart: whether each training has a process of its own.
    """

    run: Any = dataclasses.field(default_factory=dict)
    epochs: int = PAPER_EPOCHS
    steps_per_epoch: int = 12
    memory: float = 0.3
    horizon: int = 100_000
    control: bool = True
    apart: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 2 or self.steps_per_epoch < 1:
            raise ValueError(
                f"epochs={self.epochs} must be at least 2, steps_per_epoch={self.steps_per_epoch} at least 1"
            )
        if not 0.0 <= self.memory < 1.0:
            raise ValueError(f"memory={self.memory} must be from 0 (as full) to below 1 (where nothing is recomputed)")


@dataclass(frozen=True, slots=True)
class Epochs:
    """The record of a run, by epoch.

    Attributes:
        ran: segments of the layers.
        kept: share of a layer's values that it keeps, from 0 (its input alone) to 1 (all): float64 [layers, epochs].
        policy: name of each layer's policy: [epochs][layers].
        seconds: median of the measured steps: float64 [epochs].
        peak: bytes of the compiled step, or of the device where that tells more: float64 [epochs]; NaN where unknown.
        kinds: what was decided at the end of each epoch but the last.
        refused: mixes that the compiler counted above the budget.
        budget: bytes.
    """

    ran: list[tuple[Segment, ...]]
    kept: np.ndarray
    policy: list[list[str]]
    seconds: np.ndarray
    peak: np.ndarray
    kinds: list[str]
    refused: int
    budget: float

    @property
    def toggles(self) -> np.ndarray:
        """Layers that begin each epoch under another policy: int64 [epochs]."""
        pairs = zip(self.policy[1:], self.policy[:-1], strict=True)
        return np.array([0, *(sum(a != b for a, b in zip(now, before, strict=True)) for now, before in pairs)])


def read_epochs(path: Path) -> Epochs:
    """What a run with `plan.remat_feedback` left in its remat.jsonl."""
    records = read_jsonl(path)
    epochs = [each for each in records if each["event"] != "remat.refuse"]
    ran = [tuple(structure(part, Segment) for part in each["segments"]) for each in epochs]
    costs = next(each["costs"] for each in reversed(epochs) if "costs" in each)
    sizes = {each["policy"]: each["predicted_kept_bytes"] for each in costs}
    least, most = min(sizes.values()), sizes["none"]
    policy = [[_name(part) for part in segments for _ in range(part.layers)] for segments in ran]
    share = {name: (size - least) / (most - least) for name, size in sizes.items()}
    return Epochs(
        ran=ran,
        kept=np.array([[share[name] for name in names] for names in policy]).T,
        policy=policy,
        seconds=np.array([each["measured_seconds"] for each in epochs], float),
        peak=np.array([np.nan if each["peak_bytes"] is None else each["peak_bytes"] for each in epochs], float),
        kinds=[each["event"].removeprefix("remat.") for each in epochs if "next" in each],
        refused=len(records) - len(epochs),
        budget=float(epochs[0]["budget_bytes"]),
    )


def _name(segment: Segment) -> str:
    """As the record of the costs names the policy of a segment."""
    if segment.save is None:
        return "none"
    plain = "+".join(segment.offload or segment.save) or "full"
    return f"host: {plain}" if segment.offload else plain


def measure(config: Config, out: Path) -> Report:
    """Trains, reads the record back, draws."""
    steps = config.epochs * config.steps_per_epoch
    base = merged(sections(config.run, "run", steps), {"sample": {"prompt": None}})
    fixed, least, most = but_for_remat(base)
    feedback = {"every": config.steps_per_epoch, "horizon": config.horizon}
    budget = f"{least + config.memory * (most - least):.0f}"
    changes: Sections = {**fixed, "remat": "dp", "memory_budget": budget, "remat_feedback": feedback}
    folder = trained(run_of(base, {"plan": changes}, "feedback", "run"), out / "runs" / "feedback", apart=config.apart)
    found = read_epochs(folder.remat)
    remarks = [f"Heatmap: {draw(found, out)}", _settled(found)]
    rows = _rows(found)
    if config.control:
        plain = run_of(base, {"plan": {**fixed, "remat": "none"}}, "none", "run")
        rows += _compared(folder, trained(plain, out / "runs" / "none", apart=config.apart))
    return Report(
        title="Figure 2: layers that toggle between epochs", rows=rows, remarks=remarks, details=details(found)
    )


def _rows(found: Epochs) -> list[Row]:
    changed = int((found.toggles > 0).sum())
    first, last = found.ran[0], found.ran[-1]
    ours = lambda quantity, value, note="": Row(what="layers x epochs", quantity=quantity, measured=value, note=note)
    rows = [
        Row(what="layers x epochs", quantity="epochs", paper=PAPER_EPOCHS, measured=found.kept.shape[1],
            note="the paper gives no figures of its heatmap"),
        ours("layers", found.kept.shape[0]),
        ours("epochs that began with other policies", changed),
        ours("toggles, layers x epochs", int(found.toggles.sum())),
        ours("mixes that ran", len(set(found.ran))),
        ours("mixes refused after compiling", found.refused, "above the budget by the compiler's count"),
    ]  # fmt: skip
    for what, at in (("first epoch", 0), ("last epoch", -1)):
        mix = ", ".join(map(describe, first if at == 0 else last))
        rows += [
            Row(what=what, quantity="seconds per step, median", measured=float(found.seconds[at]), note=mix),
            Row(what=what, quantity="peak of the step, MiB", compiled=float(found.peak[at]) / MIB,
                note=f"budget {found.budget / MIB:.1f} MiB, runtime libraries included in both"),
        ]  # fmt: skip
    decided = found.peak[1:]
    highest = float(np.nanmax(decided)) / found.budget if np.isfinite(decided).any() else None
    note = "the first is planned before any peak is known; XLA's count"
    rows.append(
        Row(what="epochs after the first", quantity="highest peak over the budget", compiled=highest, note=note)
    )
    return rows


def _settled(found: Epochs) -> str:
    """Whether the layers have come to rest, and what was gained, in words."""
    last = int(np.flatnonzero(found.toggles)[-1]) + 1 if found.toggles.any() else 0
    rest = f"no layer toggles after epoch {last}" if last else "no layer ever toggles"
    same = [found.seconds[at] for at, ran in enumerate(found.ran) if ran == found.ran[-1]]
    before = [found.seconds[at] for at, ran in enumerate(found.ran) if ran == found.ran[0]]
    spread = f"{min(same):.3g} to {max(same):.3g} s in the {len(same)} epochs of the last mix"
    change = float(np.median(same)) / float(np.median(before)) - 1
    return (
        f"Of {len(found.ran)} epochs, {rest}. Median steps took {spread}, and {np.median(before):.3g} s in the "
        f"{len(before)} of the first mix ({change:+.1%}). Step times are measured on this machine, with whatever else "
        "it was doing; each peak is what the compiler counts for that epoch's program."
    )


def _compared(feedback: Folder, plain: Folder) -> list[Row]:
    ours, theirs = (read_curve(each.path, unit="loss") for each in (feedback, plain))
    apart = np.abs(ours.loss - theirs.loss)
    beyond = ours.step[apart > ROUNDING * np.abs(theirs.loss)]
    when = (
        f"within {ROUNDING:g} of it up to step {beyond[0]}" if len(beyond) else f"within {ROUNDING:g} of it throughout"
    )
    held = [json.loads(each.summary.read_text())["bits_per_byte"] for each in (feedback, plain)]
    return [
        Row(what="all epochs", quantity="training loss other than without recomputation, at most",
            measured=float(apart.max()), note=f"nats per token; {when}: sums are added up in another order"),
        Row(what="all epochs", quantity="held-out bits per byte", measured=held[0],
            note=f"{held[1]:.4g} without recomputation"),
    ]  # fmt: skip


def details(found: Epochs) -> dict[str, Any]:
    """The heatmap and the epochs for machines."""
    return {
        "kept_share": found.kept.round(6).tolist(),
        "policies": found.policy,
        "toggles": found.toggles.tolist(),
        "measured_seconds": found.seconds.tolist(),
        "compiled_peak_bytes": [None if np.isnan(each) else each for each in found.peak.tolist()],
        "budget_bytes": found.budget,
        "decisions": found.kinds,
        "refused": found.refused,
    }


def draw(found: Epochs, out: Path) -> Path:
    """Layers x epochs, coloured by what each layer keeps; below, the step times."""
    from matplotlib.figure import Figure

    out.mkdir(parents=True, exist_ok=True)
    layers, epochs = found.kept.shape
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    heat, time = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    image = heat.imshow(found.kept, aspect="auto", origin="lower", vmin=0, vmax=1, cmap="viridis",
                        extent=(0.5, epochs + 0.5, 0.5, layers + 0.5))  # fmt: skip
    figure.colorbar(image, ax=heat, label="share of values kept")
    heat.set_ylabel("layer")
    heat.set_title("what each layer keeps; 0 recomputes all, 1 recomputes nothing")
    for at in np.flatnonzero(found.toggles):
        heat.axvline(at + 0.5, color="w", linewidth=0.8)
        time.axvline(at + 0.5, color="0.8", linewidth=0.8)
    time.plot(np.arange(1, epochs + 1), found.seconds, "o-", markersize=3)
    time.set_ylim(bottom=0)
    time.set_xlabel("epoch")
    time.set_ylabel("s per step")
    path = out / "figure2_toggles.png"
    figure.savefig(path, dpi=130)
    return path


if __name__ == "__main__":
    main("figure2_toggles", __doc__, Config, measure)

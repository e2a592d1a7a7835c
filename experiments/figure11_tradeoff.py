"""Figure 11: what is traded for memory? The paper draws BLEU; rematerialisation trades time.

Question: a translation model under each policy of `policies`, trained with equal seeds: how do memory, step time and
          BLEU move together?
Cost:     one training of the model in `run` per policy, and one with another seed.
Run:      python -m experiments.figure11_tradeoff --parallel DIR --source en --target de
Needs:    pairs of sentences (none is shipped) and the extra `translate`, as table4_remat.
Leaves:   figure11_tradeoff.png, the runs in runs/ and their translations in translations/, beside the report.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from experiments import remat_quality
from experiments.entry import main
from experiments.remat_quality import (
    PAPER,
    Found,
    Policy,
    measure_quality,
    price_rows,
    quality_details,
    quality_remarks,
    quality_rows,
)
from experiments.report import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(remat_quality.Config):
    """Policies side by side.

    Attributes:
        policies: name -> policy; the first is what the others are compared with. The names `none`, `static` and
            `dynamic` stand beside the paper's.
    """

    policies: dict[str, Policy] = dataclasses.field(default_factory=dict)


def measure(config: Config, out: Path) -> Report:
    """Trains, translates, draws."""
    found = measure_quality(config, config.policies, out)
    remarks = quality_remarks(found)
    if found is not None:
        remarks.append(f"Curves: {draw(found, out)}")
    return Report(
        title="Figure 11: memory against quality and time",
        rows=quality_rows(found, config.policies) + (price_rows(found) if found else []),
        remarks=remarks,
        details=quality_details(found),
    )


def draw(found: Found, out: Path) -> Path:
    """BLEU and seconds over memory, the paper's points on the left, ours on the right."""
    from matplotlib.figure import Figure

    out.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    theirs = {name: (p.peak_gb, p.bleu, p.recompute_seconds) for name, p in PAPER.items()}
    ours = {
        name: (one.compiled_bytes / 2**20, one.translated.scores.bleu, one.step_seconds)
        for name, one in found.policies.items()
        if one.compiled_bytes is not None and one.step_seconds is not None
    }
    panels = (
        (theirs, "paper, table 4 (model not named)", "peak memory, GB", "seconds of recomputation"),
        (ours, f"{found.test.name}: measured, memory compiled", "memory of a step, MiB", "seconds per step"),
    )
    for axes, (points, title, below, beside) in zip(figure.subplots(1, 2), panels, strict=True):
        time = axes.twinx()
        for name, (memory, bleu, seconds) in points.items():
            axes.plot(memory, bleu, "C0o")
            time.plot(memory, seconds, "C1s")
            axes.annotate(f" {name}", (memory, bleu))
        axes.set_title(title)
        axes.set_xlabel(below)
        axes.set_ylabel("BLEU (circles)", color="C0")
        time.set_ylabel(f"{beside} (squares)", color="C1")
        time.set_ylim(bottom=0)
        axes.set_ylim(0, max([bleu for _, bleu, _ in points.values()], default=1.0) * 1.25)
        axes.grid(alpha=0.3)
    path = out / "figure11_tradeoff.png"
    figure.savefig(path, dpi=130)
    return path


if __name__ == "__main__":
    main("figure11_tradeoff", __doc__, Config, measure)

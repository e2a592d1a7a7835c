"""Figure 3: BLEU against memory for the greedy, the learned and the exact choice of what is rematerialised.

Question: the same translation model, trained with equal seeds at several memory budgets under each strategy: does its
          BLEU depend on the memory, as the paper's curves do?
Cost:     one training of the model in `run` per strategy and budget, less those that come to the same plan, and one
          with another seed: at most eleven.
Run:      python -m experiments.figure3_memory_quality --parallel DIR --source en --target de
Needs:    pairs of sentences (none is shipped) and the extra `translate`, as table4_remat.
Leaves:   figure3_memory_quality.png, the runs in runs/ and their translations in translations/, beside the report.
"""

from dataclasses import dataclass
from pathlib import Path

from experiments import remat_quality
from experiments.entry import main
from experiments.remat_quality import (
    ALONE,
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
from planners.wishes import REMATS


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(remat_quality.Config):
    """Strategies at several budgets.

    Attributes:
        strategies: who decides, as `plan.remat`.
        budgets: what may be used, from 0 (what `full` is predicted to need) to 1 (`none`).
    """

    strategies: tuple[str, ...] = ("greedy", "learned", "dp")
    budgets: tuple[float, ...] = (0.2, 0.5, 0.8)

    def __post_init__(self) -> None:
        remat_quality.Config.__post_init__(self)
        able = [name for name in REMATS[1:] if name not in ALONE]
        if wrong := [name for name in self.strategies if name not in able]:
            raise ValueError(f"strategies: {', '.join(wrong)} must be of {', '.join(able)}")

    def policies(self) -> dict[str, Policy]:
        """`none`, then each strategy at each budget."""
        made = {"none": Policy(remat="none")}
        for strategy in self.strategies:
            made |= {f"{strategy}-{budget:g}": Policy(remat=strategy, memory=budget) for budget in self.budgets}
        return made


def measure(config: Config, out: Path) -> Report:
    """Trains, translates, draws."""
    policies = config.policies()
    found = measure_quality(config, policies, out)
    remarks = quality_remarks(found)
    if found is not None:
        remarks.append(f"Curves: {draw(config, found, out)}")
    return Report(
        title="Figure 3: BLEU against memory",
        rows=quality_rows(found, policies) + (price_rows(found) if found else []),
        remarks=remarks,
        details=quality_details(found),
    )


def draw(config: Config, found: Found, out: Path) -> Path:
    """The paper's three points of table 4 on the left, ours on the right: each with the memory of its own model."""
    from matplotlib.figure import Figure

    out.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    paper, ours = figure.subplots(1, 2)
    for name, printed in PAPER.items():
        paper.plot(printed.peak_gb, printed.bleu, "k^")
        paper.annotate(f" {name}", (printed.peak_gb, printed.bleu))
    paper.set_title("paper, table 4 (model not named)")
    paper.set_xlabel("peak memory, GB")
    for strategy, style in zip(config.strategies, ("o-", "s--", "v:", "x-."), strict=False):
        curve = [one for name, one in found.policies.items() if name.rpartition("-")[0] == strategy]
        points = [(one.compiled_bytes / 2**20, one.translated.scores.bleu) for one in curve if one.compiled_bytes]
        ours.plot(*zip(*sorted(points), strict=True), style, label=strategy, alpha=0.7) if points else None
    ours.axhline(found.first.translated.scores.bleu, color="0.6", label="none, any memory")
    ours.set_title(f"measured, {found.test.name}; memory compiled")
    ours.set_xlabel("memory of a step, MiB")
    ours.legend()
    for axes in (paper, ours):
        axes.set_ylabel("BLEU")
        axes.grid(alpha=0.3)
        low, high = axes.get_ylim()
        middle = (low + high) / 2
        axes.set_ylim(middle - max(1.0, high - middle), middle + max(1.0, high - middle))
    path = out / "figure3_memory_quality.png"
    figure.savefig(path, dpi=130)
    return path


if __name__ == "__main__":
    main("figure3_memory_quality", __doc__, Config, measure)

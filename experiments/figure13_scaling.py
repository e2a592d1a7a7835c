"""Figure 13: the curve of throughput over GPUs, ours predicted, the paper's as printed.

Question: where do the curves of weak and strong scaling bend, and between which of them do the paper's points lie?
Cost:     seconds: nothing is compiled unless asked for.
Run:      python -m experiments.figure13_scaling
"""

from pathlib import Path

from experiments.entry import main
from experiments.report import Report, Row
from experiments.scaling import PAPER, READINGS, Config, Point, efficiency, points, remarks


def measure(config: Config, out: Path) -> Report:
    """Draws both readings beside the paper and tells how the throughput grows with each doubling."""
    found = points(config)
    picture = draw(config, found, out)
    rows = [row for reading in READINGS for row in _rows(config, [p for p in found if p.reading == reading])]
    return Report(
        title=f"Figure 13: scaling, {config.device}, predicted",
        rows=rows,
        remarks=[*remarks(config, found), f"Curves: {picture}"],
    )


def _rows(config: Config, curve: list[Point]) -> list[Row]:
    rows = []
    for one in curve:
        share = PAPER.get(one.gpus, (None, None))[1]
        what, note = f"{one.gpus:,} GPUs, {one.reading} scaling", one.plan.summary()
        rows.append(
            Row(
                what=what,
                quantity="efficiency, % of 128 GPUs",
                paper=share,
                predicted=efficiency(curve, one, config.base),
                note=note,
            )
        )
    return rows


def draw(config: Config, found: list[Point], out: Path) -> Path:
    """Rate and efficiency over GPUs as a picture; every line says where its numbers come from."""
    from matplotlib.figure import Figure

    out.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    rate, share = figure.subplots(1, 2)
    for reading, style in zip(READINGS, ("o-", "s--"), strict=True):
        curve = [each for each in found if each.reading == reading]
        sizes = [each.gpus for each in curve]
        label = f"{reading} scaling, predicted"
        rate.loglog(sizes, [each.samples_per_second for each in curve], style, label=label)
        share.semilogx(sizes, [efficiency(found, each, config.base) for each in curve], style, label=label)
    rate.loglog(list(PAPER), [r for r, _ in PAPER.values()], "k^", label="paper, table 9")
    share.semilogx(list(PAPER), [e for _, e in PAPER.values()], "k^", label="paper, table 9")
    for axes, title in ((rate, "samples of 512 tokens per second"), (share, "efficiency, % of 128 GPUs")):
        axes.set_xlabel(f"{config.device} GPUs")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend()
    share.set_ylim(bottom=0)
    path = out / "figure13_scaling.png"
    figure.savefig(path, dpi=130)
    return path


if __name__ == "__main__":
    main("figure13_scaling", __doc__, Config, measure)

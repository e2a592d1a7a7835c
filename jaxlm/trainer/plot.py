"""Pictures of runs: loss, throughput and memory over steps, from their metrics.jsonl."""

from collections.abc import Sequence
from pathlib import Path

from jaxlm.trainer.metrics import read_jsonl


def plot_runs(runs: Sequence[Path], out: Path) -> None:
    """Draws any set of run directories into one PNG (or SVG, PDF: by the ending of `out`).

    Held-out bits per byte of evaluations.jsonl are drawn as points over the training curve.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, rate, memory = figure.subplots(1, 3)
    for run in runs:
        records = read_jsonl(run / "metrics.jsonl")
        steps = [r["step"] for r in records]
        (line,) = loss.plot(steps, [r["bits_per_byte"] for r in records], label=f"{run.name}: training", alpha=0.7)
        held = read_jsonl(run / "evaluations.jsonl") if (run / "evaluations.jsonl").exists() else []
        if held:
            points = ([r["step"] for r in held], [r["bits_per_byte"] for r in held])
            loss.plot(*points, "o", color=line.get_color(), markeredgecolor="black", label=f"{run.name}: held-out")
        rate.plot(steps, [r["tokens_per_second"] for r in records], color=line.get_color(), label=run.name)
        memory.plot(steps, [r["memory_bytes"] / 2**30 for r in records], color=line.get_color(), label=run.name)
    for axes, title in ((loss, "bits per byte"), (rate, "tokens per second"), (memory, "memory (GiB)")):
        axes.set_xlabel("step")
        axes.set_title(title)
        axes.grid(alpha=0.3)
    loss.legend(fontsize="small")
    rate.set_ylim(bottom=0)
    memory.set_ylim(bottom=0)
    figure.savefig(out, dpi=110)

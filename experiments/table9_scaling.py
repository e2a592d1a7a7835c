"""Table 9: how does throughput grow from 128 to 1,024 A100?

Question: which plan does the planner choose for each size, and what rate, efficiency and memory does it expect, beside
          the paper's figures? Rates are predicted and labelled so; memory is what XLA compiles for that many A100.
Cost:     seconds; with the extra `aot` and compile: true about a minute per row on two cores.
Run:      python -m experiments.table9_scaling
"""

from pathlib import Path

from experiments.entry import main
from experiments.report import Report, Row
from experiments.scaling import PAPER, Config, Point, efficiency, points, remarks


def measure(config: Config, out: Path) -> Report:
    """One row per cluster, reading and quantity."""
    found = points(config)
    rows = [row for one in found for row in _rows(config, found, one)]
    details = {
        f"{one.gpus} {one.reading}": {
            "plan": one.plan.summary(),
            "seconds": one.plan.predicted.seconds if one.plan.predicted else None,
            "link_bytes": one.plan.predicted.link_bytes if one.plan.predicted else None,
            "mfu": one.plan.predicted.mfu if one.plan.predicted else None,
        }
        for one in found
    }
    return Report(
        title=f"Table 9: scaling, {config.device}, predicted",
        rows=rows,
        remarks=remarks(config, found),
        details=details,
    )


def _rows(config: Config, found: list[Point], one: Point) -> list[Row]:
    what = f"{one.gpus:,} GPUs, {one.reading} scaling"
    rate, share = PAPER.get(one.gpus, (None, None))
    predicted = one.plan.predicted
    assert predicted is not None
    within = predicted.memory_bytes - predicted.memory.get("runtime", 0.0)
    return [
        Row(what=what, quantity="samples/s", paper=rate, predicted=one.samples_per_second, note=one.plan.summary()),
        Row(
            what=what,
            quantity="scaling efficiency, %",
            paper=share,
            predicted=efficiency(found, one, config.base),
            note="" if predicted.mfu is None else f"predicted MFU {predicted.mfu:.1%}",
        ),
        Row(
            what=what,
            quantity="memory, GiB per GPU",
            compiled=None if one.compiled_bytes is None else one.compiled_bytes / 2**30,
            predicted=within / 2**30,
            note="without CUDA and NCCL",
        ),
    ]


if __name__ == "__main__":
    main("table9_scaling", __doc__, Config, measure)

"""Does a machine's ledger make the next prediction closer?

Question: small models are trained one after the other; before each, its step time is predicted with what the runs
          before it have taught, and with the prior alone. How far is each from what is then measured?
Cost:     two minutes on two cores.
Run:      python -m experiments.ledger_learns
Found:    no run is judged that its own prediction had learnt from.
"""

import dataclasses
import json
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from experiments.entry import main
from experiments.report import Report, Row
from experiments.runs import run_of, sections, trained
from planners.learning.ledger import Entry, predict
from planners.plan import structure
from planners.prices.assumptions import Assumptions


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Runs that differ in shape, trained in this order with a ledger of their own.

    Attributes:
        run: what they have in common: a YAML file for `jaxlm train`, or its sections.
        variants: name -> sections laid over it.
    """

    run: Any = dataclasses.field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


def measure(config: Config, out: Path) -> Report:
    """Trains each variant and compares the two predictions of its step with its median step."""
    out.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str((out / "cache").absolute())  # a ledger that knows these runs only
    base = sections(config.run, "run")
    rows: list[Row] = []
    errors: dict[str, list[float]] = {"prior": [], "ledger": []}
    for number, (name, changes) in enumerate(config.variants.items()):
        folder = trained(run_of(base, changes, name, f"variants.{name}"), out / name, apart=True)
        entry: Entry = structure(json.loads(folder.comparison.read_text())["entry"], Entry)
        assert entry.predicted is not None
        taken, learnt = entry.measured.step_seconds, entry.predicted.step_seconds
        prior = float(predict([entry], Assumptions())[0])
        for label, seconds in (("prior", prior), ("ledger", learnt)):
            note = f"{seconds / taken - 1:+.0%}"
            note += f"; {number} runs in the ledger" if label == "ledger" else "; constants alone"
            rows.append(
                Row(what=name, quantity=f"seconds per step, {label}", measured=taken, predicted=seconds, note=note)
            )
            if number:
                errors[label].append(abs(float(np.log(seconds / taken))))
    for label, found in errors.items():
        off = float(np.expm1(statistics.median(found))) if found else None
        what = "median of all but the first run"
        rows.append(Row(what=what, quantity=f"factor off, {label}", predicted=None if off is None else 1 + off))
    return Report(
        title="Step times predicted before and after a machine's ledger has runs",
        rows=rows,
        remarks=["Predicted before each run; measured as the median of its steady steps."],
        details={"errors": errors},
    )


if __name__ == "__main__":
    main("ledger_learns", __doc__, Config, measure)

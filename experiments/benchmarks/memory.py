"""How much memory does XLA allocate for a training step on GPUs that are not there, and how much was predicted?

Question: how far are the predicted bytes per device from XLA's buffer assignment, without any compile and after two
          compiles for each model and policy; and how far are temporaries alone, which known arguments do not dilute?
Cost:     one compile of 10 to 60 seconds for each case that has none yet; nothing is trained, no GPU is needed.
Run:      uv sync --extra aot
          python -m experiments.benchmarks.memory [--cases development] [--presets llama-7b] [--compile false] [--json]

Every result is written to compiled.json in `--out` at once, so a run that was stopped goes on where it was. Results are
reused while the package versions are the same: delete the file after a change of the training step.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jaxlib.version
import numpy as np

from experiments.benchmarks.memory_cases import CALIBRATION, DEVELOPMENT, JUDGED, Case
from experiments.entry import main
from experiments.report import Report, Row
from jaxlm.compiled import Compiler, Target
from jaxlm.config import Run
from jaxlm.data.config import DataConfig
from jaxlm.decode import ConfigError
from jaxlm.files import write_whole
from jaxlm.model.config import preset
from jaxlm.runtime.aot import CHIPS
from jaxlm.session import numerics, resolve, workload_of
from jaxlm.trainer.config import TrainConfig
from planners.candidates import Candidates
from planners.compiled import CompileError
from planners.footprint import footprint
from planners.layout import rules
from planners.memory_calibration import MemoryCalibration, Observation, calibrate, observe
from planners.memory_phases import Habits
from planners.plan import Batch, Compile, Plan, PlanError, Segment, Workload

GIB = 2**30
TARGETS = {
    ("bytes, before any compile", "mean"): 5.0,
    ("bytes, before any compile", "max"): 10.0,
    ("bytes, after two compiles", "mean"): 1.0,
    ("bytes, after two compiles", "max"): 3.0,
    ("temporaries, after two compiles", "mean"): 3.0,
}
"""Largest relative error in percent, by what is judged and how errors are summed up."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What is compiled.

    Attributes:
        cases: `judged`, or `development`: those that the rules were read off, two of which calibrate each model.
        presets: models, separated by commas; empty takes all.
        compile: compile what has not been compiled; false reports on what has.
        seconds: that one compilation may take.
    """

    cases: Literal["judged", "development"] = "judged"
    presets: str = ""
    compile: bool = True
    seconds: float = 1200.0


Result = dict[str, Any]
"""What was compiled: bytes by kind, and the version that did it."""


def execute(config: Config, out: Path) -> Report:
    """Compiles what is missing and compares."""
    wanted = tuple(name.strip() for name in config.presets.split(",") if name.strip())
    chosen = [case for case in (JUDGED if config.cases == "judged" else DEVELOPMENT) if _wanted(case, wanted)]
    learned = [case for case in CALIBRATION if _wanted(case, wanted)]
    if not chosen:
        raise ConfigError(f"presets: {config.presets!r} names no model of {sorted({c.preset for c in JUDGED})}")
    results = _compile([*learned, *chosen], config, out / "compiled.json")
    compared = [compare(case, results[str(case)]) for case in chosen if str(case) in results]
    observed = [compare(case, results[str(case)]) for case in learned if str(case) in results]
    calibrations = {
        name: calibrate([each.observation for each in observed if each.case.preset == name], jaxlib=_version())
        for name in dict.fromkeys(case.preset for case in learned)
    }
    if not compared:
        raise ConfigError("nothing has been compiled yet; leave out --compile false")
    return report_of(compared, calibrations, missing=len(chosen) - len(compared), judged=config.cases == "judged")


def _wanted(case: Case, presets: Sequence[str]) -> bool:
    return not presets or case.preset in presets


def _version() -> str:
    return jaxlib.version.__version__


def run_of(case: Case) -> Run:
    """The run that would train it."""
    return Run(
        model=preset(case.preset),
        data=DataConfig(sequence=case.sequence, mode="pack" if case.packed else "truncate"),
        train=TrainConfig(batch=case.microbatch * case.accumulation),
    )


def plan_of(case: Case) -> Plan:
    """The plan that would be compiled."""
    layers = preset(case.preset).layers
    return Plan(
        mesh=case.sizes,
        rules=rules(case.sizes),
        batch=Batch(
            sequences=case.microbatch * case.accumulation, microbatch=case.microbatch, accumulation=case.accumulation
        ),
        remat=(Segment(layers=layers, save=None if case.remat == "none" else ()),),
        compile=Compile(loss_chunks=case.loss_chunks),
    )


def workload(case: Case) -> Workload:
    """What the planner is told of it: nothing that was compiled."""
    run = run_of(case)
    model = resolve(run, run.model.vocab)
    how = numerics(model, "gpu", elsewhere=True, capability=CHIPS[case.chip].capability)
    return workload_of(run, model, how)


def _compile(cases: Sequence[Case], config: Config, path: Path) -> dict[str, Result]:
    """Results by the name of the case, old and new."""
    results: dict[str, Result] = json.loads(path.read_text()) if path.exists() else {}
    results = {name: each for name, each in results.items() if each["jaxlib"] == _version()}
    waiting = [case for case in dict.fromkeys(cases) if str(case) not in results]
    for index, case in enumerate(waiting if config.compile else ()):
        print(f"{index + 1} of {len(waiting)}: {case}", file=sys.stderr, flush=True)
        plan = plan_of(case)
        target = Target(platform="gpu", kind=case.chip, devices=plan.devices)
        compiler = Compiler(run_of(case), preset(case.preset).vocab, target, seconds=config.seconds)
        began = time.monotonic()
        try:
            compiled = compiler(plan)
        except CompileError as error:
            print(f"  not compiled: {error}", file=sys.stderr, flush=True)
            continue
        except PlanError as error:
            raise ConfigError(str(error)) from None
        kinds = ("arguments", "temporaries", "outputs", "aliased", "constants")
        found = {kind: getattr(compiled, kind) for kind in kinds}
        results[str(case)] = found | {"jaxlib": _version(), "seconds": round(time.monotonic() - began, 1)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(results, indent=1) + "\n").encode())
    return results


@dataclasses.dataclass(frozen=True, slots=True)
class Compared:
    """One case: what XLA allocates, and what is needed to predict it."""

    case: Case
    observation: Observation
    total: float
    state: float

    def predicted(self, habits: Habits) -> float:
        """Predicted bytes per device; nothing of them was compiled."""
        return self.state + self.observation.predicted(habits)

    def error(self, habits: Habits) -> float:
        """Of all bytes, in percent; above 0 where too much is predicted."""
        return 100 * (self.predicted(habits) / self.total - 1)

    def error_of_temporaries(self, habits: Habits) -> float:
        return 100 * (self.observation.predicted(habits) / self.observation.temporaries - 1)


def compare(case: Case, result: Result) -> Compared:
    """What was compiled beside the shapes that the prediction is made of."""
    work = workload(case)
    candidate = Candidates.of(
        case.sizes,
        microbatch=case.microbatch,
        remat=("none", "full").index(case.remat),
        loss_chunks=case.loss_chunks,
    )
    step = footprint(work, candidate.sizes)
    arrays = 5 if case.packed else 4  # tokens, targets, positions, weights, and segments of packed rows
    batch = 4 * arrays * work.tokens / candidate.replicas[0]
    state = float(np.max(step.parameters) + np.max(step.optimizer) + batch)
    added = result["outputs"] - result["aliased"] + result["constants"]
    return Compared(
        case=case,
        observation=observe(work, candidate, result["temporaries"]),
        total=result["arguments"] + result["temporaries"] + added,
        state=state,
    )


def report_of(
    compared: Sequence[Compared], calibrations: dict[str, MemoryCalibration], *, missing: int, judged: bool
) -> Report:
    """Every case, then the errors summed up, each beside its target."""
    learned = {name: each.habits for name, each in calibrations.items()}
    after = [learned.get(each.case.preset, {}).get(each.case.remat, Habits()) for each in compared]
    rows = []
    for each, habits in zip(compared, after, strict=True):
        predicted = each.predicted(habits)
        note = (
            f"off by {each.error(Habits()):+.1f}%, calibrated {each.error(habits):+.1f}%; "
            f"temporaries {each.error_of_temporaries(Habits()):+.1f}%, {each.error_of_temporaries(habits):+.1f}%"
        )
        rows.append(
            Row(what=str(each.case), quantity="GiB", compiled=each.total / GIB, predicted=predicted / GIB, note=note)
        )
    errors = {
        "bytes, before any compile": [each.error(Habits()) for each in compared],
        "bytes, after two compiles": [each.error(h) for each, h in zip(compared, after, strict=True)],
        "temporaries, before any compile": [each.error_of_temporaries(Habits()) for each in compared],
        "temporaries, after two compiles": [
            each.error_of_temporaries(h) for each, h in zip(compared, after, strict=True)
        ],
    }
    sums = {"mean": np.mean, "max": np.max}
    for what, values in errors.items():
        for kind, total in sums.items():
            error, target = float(total(np.abs(values))), TARGETS.get((what, kind))
            verdict = "" if target is None else f"target {target:g}%: {'met' if error <= target else 'MISSED'}"
            rows.append(Row(what=what, quantity=f"{kind} error, %", predicted=error, note=verdict))
        low = min(0.0, *values)
        share = float(np.mean(np.asarray(values) < 0))
        rows.append(Row(what=what, quantity="lowest error, %", predicted=low, note=f"{share:.0%} of the cases too low"))
    remarks = [
        f"{len(compared)} cases compiled with jaxlib {_version()}; bytes are arguments, temporaries and new outputs.",
        "The predictions of the table are those after calibration; habits learned: "
        + "; ".join(f"{name} {remat}: {habit}" for name, each in learned.items() for remat, habit in each.items()),
    ]
    if not judged:
        remarks.append("These cases are not judged: the rules were read off them, and some of them calibrate.")
    if missing:
        remarks.append(f"{missing} cases are MISSING: not compiled yet, or the compiler failed.")
    details = {"errors": errors, "cases": [dataclasses.asdict(each.case) for each in compared]}
    return Report(
        title=f"Memory of compiled steps, {'judged' if judged else 'development'} cases",
        rows=rows,
        remarks=remarks,
        details=details,
    )


if __name__ == "__main__":
    main("benchmarks.memory", __doc__, Config, execute, default="memory")

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

from experiments.benchmarks.memory_cases import CALIBRATION, DEVELOPMENT, JUDGED, SMALL, Case
from experiments.entry import main
from experiments.report import Report, Row
from jaxlm.compiled import Compiler, Target
from jaxlm.config import Run
from jaxlm.data.config import DataConfig
from jaxlm.decode import ConfigError
from jaxlm.files import write_whole
from jaxlm.model.config import ModelConfig, preset
from jaxlm.runtime.aot import CHIPS
from jaxlm.session import numerics, resolve, workload_of
from jaxlm.trainer.config import TrainConfig
from planners.candidates import Candidates
from planners.layout import rules
from planners.plan import Batch, Compile, Plan, PlanError, Segment, Workload
from planners.prices.footprint import footprint
from planners.prices.memory_calibration import Line, MemoryCalibration, Observation, by_layers, calibrate, observe
from planners.prices.memory_phases import Habits
from planners.programs.compiled import CompileError

GIB = 2**30
BEFORE, OTHERS, SMALLER = "before any compile", "after two of other meshes", "after two of few layers"
TARGETS = {
    (f"bytes, {BEFORE}", "mean"): 5.0,
    (f"bytes, {BEFORE}", "max"): 10.0,
    **{(f"bytes, {league}", "mean"): 1.0 for league in (OTHERS, SMALLER)},
    **{(f"bytes, {league}", "max"): 3.0 for league in (OTHERS, SMALLER)},
    **{(f"temporaries, {league}", "mean"): 3.0 for league in (OTHERS, SMALLER)},
}
"""Largest relative error in percent, by what is judged and how errors are summed up."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What is compiled.

    Attributes:
        cases: `judged`, or `development`: those that the rules were read off, two of which calibrate each model.
        presets: models, separated by commas; empty takes all.
        compile: compile what has not been compiled; false reports on what has.
        small: compile every case with few layers too, twice, to calibrate its plan.
        seconds: that one compilation may take.
    """

    cases: Literal["judged", "development"] = "judged"
    presets: str = ""
    compile: bool = True
    small: bool = True
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
    small = [few for case in chosen for few in smaller(case)] if config.small else []
    results = _compile([*learned, *chosen, *small], config, out / "compiled.json")
    compared = [compare(case, results[str(case)]) for case in chosen if str(case) in results]
    lines = {each.case: line for each in compared if (line := _line(each.case, results))}
    observed = [compare(case, results[str(case)]) for case in learned if str(case) in results]
    calibrations = {
        name: calibrate([each.observation for each in observed if each.case.preset == name], jaxlib=_version())
        for name in dict.fromkeys(case.preset for case in learned)
    }
    if not compared:
        raise ConfigError("nothing has been compiled yet; leave out --compile false")
    judged = config.cases == "judged"
    return report_of(compared, calibrations, lines, missing=len(chosen) - len(compared), judged=judged)


def smaller(case: Case) -> list[Case]:
    """The two cases with few layers that calibrate the plan of this one."""
    return [dataclasses.replace(case, layers=layers) for layers in SMALL]


def _line(case: Case, results: dict[str, Result]) -> Line | None:
    first, second = smaller(case)
    if str(first) not in results or str(second) not in results:
        return None
    return by_layers(*(compare(few, results[str(few)]).observation for few in (first, second)))


def _wanted(case: Case, presets: Sequence[str]) -> bool:
    return not presets or case.preset in presets


def _version() -> str:
    return jaxlib.version.__version__


def model_of(case: Case) -> ModelConfig:
    """The published shape, with as many layers as the case says."""
    model = preset(case.preset)
    return dataclasses.replace(model, layers=case.layers or model.layers)


def run_of(case: Case) -> Run:
    """The run that would train it."""
    return Run(
        model=model_of(case),
        data=DataConfig(sequence=case.sequence, mode="pack" if case.packed else "truncate"),
        train=TrainConfig(batch=case.microbatch * case.accumulation),
    )


def plan_of(case: Case) -> Plan:
    """The plan that would be compiled."""
    layers = model_of(case).layers
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

    def error(self, temporaries: float) -> float:
        """Of all bytes, in percent, with temporaries as predicted; above 0 where too much is predicted."""
        return 100 * ((self.state + temporaries) / self.total - 1)

    def error_of_temporaries(self, temporaries: float) -> float:
        return 100 * (temporaries / self.observation.temporaries - 1)


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
    compared: Sequence[Compared],
    calibrations: dict[str, MemoryCalibration],
    lines: dict[Case, Line],
    *,
    missing: int,
    judged: bool,
) -> Report:
    """Every case, then the errors summed up by league, each beside its target."""
    learned = {name: each.habits for name, each in calibrations.items()}
    rows: list[Row] = []
    errors: dict[str, list[float]] = {}
    for each in compared:
        case, seen = each.case, each.observation
        leagues = {
            BEFORE: seen.predicted(Habits()),
            OTHERS: seen.predicted(learned.get(case.preset, {}).get(case.remat, Habits())),
        }
        if case in lines:
            leagues[SMALLER] = lines[case].predicted(seen.workload, seen.candidate)
        for league, size in leagues.items():
            errors.setdefault(f"bytes, {league}", []).append(each.error(size))
            errors.setdefault(f"temporaries, {league}", []).append(each.error_of_temporaries(size))
        note = "off by " + ", ".join(f"{each.error(size):+.1f}%" for size in leagues.values())
        note += "; temporaries " + ", ".join(f"{each.error_of_temporaries(size):+.1f}%" for size in leagues.values())
        predicted = (each.state + leagues[BEFORE]) / GIB
        rows.append(Row(what=str(case), quantity="GiB", compiled=each.total / GIB, predicted=predicted, note=note))
    for what, values in sorted(errors.items()):
        rows += _sums(what, values)
    remarks = [
        f"{len(compared)} cases compiled with jaxlib {_version()}; bytes are arguments, temporaries and new outputs.",
        f"Predictions of the table are those before any compile; errors are {BEFORE}, {OTHERS} and {SMALLER}. Habits: "
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


def _sums(what: str, values: Sequence[float]) -> list[Row]:
    """Mean and largest error beside their targets, and the lowest: memory that was not foreseen."""
    rows = []
    for kind, total in {"mean": np.mean, "max": np.max}.items():
        error, target = float(total(np.abs(values))), TARGETS.get((what, kind))
        verdict = "" if target is None else f"target {target:g}%: {'met' if error <= target else 'MISSED'}, "
        rows.append(Row(what=what, quantity=f"{kind} error, %", predicted=error, note=f"{verdict}{len(values)} cases"))
    share = float(np.mean(np.asarray(values) < 0))
    low = min(0.0, *values)
    return [*rows, Row(what=what, quantity="lowest error, %", predicted=low, note=f"{share:.0%} of the cases too low")]


if __name__ == "__main__":
    main("benchmarks.memory", __doc__, Config, execute, default="memory")

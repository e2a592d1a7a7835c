"""Table 11: what does each tier bring? All three on, then each of them off in turn.

Question: with the memory of a step held to the share that the paper's table 11 keeps (18.3 of 22.5 GB), what do step
          time and memory become without the planner's mesh (tier I), without compressed gradients (tier II), and
          without rematerialisation (tier III)?
How:      trained here: a small model on forced CPU devices, step time measured, memory by the compiler. For the paper's
          cluster: a model of the size that its throughput implies, step time predicted, memory predicted and, with
          `compile`, compiled by XLA for GPUs that are not there.
Cost:     four short trainings, three minutes on two cores; with `compile` a minute for each step that was not compiled
          before.
Run:      python -m experiments.table11_ablation [--compile true] (then: uv sync --extra aot)
Leaves:   the runs in runs/, beside the report.

The paper prints memory with and without rematerialisation and nothing else; the other rows have no paper's value.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.benchmarks.memory import plan_of, run_of
from experiments.benchmarks.memory_cases import Case
from experiments.entry import main
from experiments.remat_cases import Subject, planned_subject
from experiments.report import Report, Row
from experiments.runs import Sections, merged, sections, trained
from experiments.runs import run_of as configured
from jaxlm.compiled import Compiler, target_of
from jaxlm.config import Run
from jaxlm.folder import Folder
from planners.communication import RUNGS, axis_of, ranked
from planners.machines.cluster_file import load_cluster
from planners.plan import Communication, Plan, PlanError, describe
from planners.programs.compiled import CompileError
from planners.remat.policy import Mix
from planners.wishes import Search

WITH, WITHOUT = 18.3, 22.5
"""The paper's table 11: GB with rematerialisation and without; "without" what else is not said."""

GB, MIB = 1e9, 2.0**20

SCHEMES = {rung.scheme: rung for rung in RUNGS if rung.budget in ("16-bit", "8-bit")}
"""What tier II may be here: codes that lose next to nothing, as `planners.communication` prices them."""

TIERS = (
    "all tiers",
    "tier I off: data parallel only",
    "tier II off: exact gradients",
    "tier III off: nothing recomputed",
)
ALL, NO_MESH, EXACT, NO_REMAT = TIERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What is ablated.

    Attributes:
        share: of the peak without rematerialisation that may be used; by itself the paper's 18.3 of 22.5.
        scheme: how gradients travel along the data axis in tier II: bf16, int8 or int8_shared.
        run: a file for `jaxlm train`, or its sections written here: the model trained here.
        steps: training steps, in place of those of `run`.
        devices: forced CPU devices of these trainings, two of them along the data axis; 0 trains nothing.
        cluster: the paper's, as a preset or file.
        nodes: its data axis where the planner chooses the rest of the mesh.
        preset: the model predicted and compiled for it.
        sequences: per GPU.
        sequence: tokens of each.
        loss_chunks: pieces of the loss there.
        compile: compile for it too.
    """

    share: float = WITH / WITHOUT
    scheme: str = "int8"
    run: Any = dataclasses.field(default_factory=dict)
    steps: int | None = None
    devices: int = 4
    cluster: str = "a100-40x512"
    nodes: int = 64
    preset: str = "llama-1b"
    sequences: int = 32
    sequence: int = 512
    loss_chunks: int = 8
    compile: bool = False

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ValueError(f"scheme={self.scheme!r} must be one of {', '.join(SCHEMES)}")
        if self.nodes > (most := SCHEMES[self.scheme].most):  # pyright: ignore[reportArgumentType]
            raise ValueError(f"scheme={self.scheme} is for at most {most} workers, and nodes={self.nodes}")
        if not 0.0 < self.share < 1.0:
            raise ValueError(f"share={self.share} must be between 0 and 1")
        if self.devices and (self.devices < 4 or self.devices % 2):
            raise ValueError(f"devices={self.devices} must be an even number of at least 4, or 0")


def measure(config: Config, out: Path) -> Report:
    """Trains and predicts each variant."""
    rows, details = [], {}
    if config.devices:
        here, details["trained"] = trained_rows(config, out)
        rows += here
    there, details["predicted"] = predicted_rows(config)
    rows += there
    remarks = [
        f"Paper: {WITH} GB with rematerialisation, {WITHOUT} without: {1 - WITH / WITHOUT:.1%} less; its table 4 has "
        "42.1%. Its model is not named, so its bytes stand beside ours and cannot be compared with them.",
        f"Tier I on: the planner's mesh; off: every device a whole replica. Tier II on: {config.scheme} along the data "
        "axis. Tier III on: the dynamic program within "
        f"{config.share:.1%} of the peak that the planner's mesh needs without rematerialisation. Memory is arguments "
        "and temporaries of the step, without runtime libraries.",
    ]
    return Report(title="Table 11: each tier off in turn", rows=rows, remarks=remarks, details=details)


# Trained here


def trained_rows(config: Config, out: Path) -> tuple[list[Row], dict[str, Any]]:
    """Step time measured, memory compiled, on forced CPU devices, which share cores: tiers I and II save what only real
    links cost."""
    rows, details = [], {}
    for name, (plan, note) in plans_here(config).items():
        base = merged(sections(config.run, "run", config.steps), {"sample": {"prompt": None}})
        folder_name = name.partition(":")[0].replace(" ", "-")
        run = configured(base, {"plan": plan}, folder_name, "run")
        folder = trained(run, out / "runs" / folder_name, apart=True, devices=config.devices)
        found = _found(folder)
        what = f"trained here, {name}"
        rows += [
            Row(what=what, quantity="memory of a step, MiB", compiled=found["compiled"] / MIB,
                predicted=found["predicted"] / MIB, note=f"{found['remat']}{note}"),
            Row(what=what, quantity="seconds per step", measured=found["seconds"],
                note=f"held-out {found['bits']:.4f} bits per byte"),
        ]  # fmt: skip
        details[name] = found
    return rows, details


def plans_here(config: Config) -> dict[str, tuple[Sections, str]]:
    """The plan section of each variant, and what is to be said about it."""
    from jaxlm.inspect import described
    from planners.search import plan, price

    cluster = load_cluster(f"cpux{config.devices}")
    base = sections(config.run, "run", config.steps)
    run: Run = configured(base, {"plan": {"calibrate": False}}, "none", "run")
    workload = described(run, None)[0]
    batch = run.train.batch
    common: Sections = {"calibrate": False, "balance": "never", "shard_optimizer": False, "microbatch": batch}
    wish = Search(microbatch=batch, shard_optimizer=False, remat="none", mesh={"data": 2})
    chosen = plan(workload, cluster, wish)
    mesh, replicas = chosen.mesh, {"data": config.devices}
    chunks = chosen.compile.loss_chunks
    whole = price(workload, cluster, wish, mesh, batch, "none", chunks)
    runtime = whole.memory.get("runtime", 0.0)
    budget = f"{runtime + config.share * (whole.memory_bytes - runtime):.0f}B"
    common |= {"loss_chunks": chunks}
    sent: Sections = {"communication": {"data": {"scheme": config.scheme}}}
    less: Sections = {"remat": "dp", "memory_budget": budget}
    apart, note = less, ""
    try:
        plan(workload, cluster, dataclasses.replace(wish, mesh=_axes(replicas), remat="dp", memory_budget=budget))
    except PlanError:
        apart, note = {"remat": "full"}, "; nothing fits the same memory: everything is recomputed"
    return {
        ALL: (common | sent | less | {"mesh": mesh}, ""),
        NO_MESH: (common | sent | apart | {"mesh": _axes(replicas)}, note),
        EXACT: (common | less | {"mesh": mesh}, ""),
        NO_REMAT: (common | sent | {"mesh": mesh, "remat": "none"}, ""),
    }


def _axes(sizes: dict[str, int]) -> dict[str, int]:
    """All axes of a mesh, those left out 1."""
    return Case(preset="", mesh=" ".join(f"{name}={size}" for name, size in sizes.items()), remat="none", microbatch=1,
                sequence=1).sizes  # fmt: skip


def _found(folder: Folder) -> dict[str, Any]:
    compared = json.loads(folder.comparison.read_text())
    plan = Plan.load(folder.plan)
    assert plan.predicted is not None
    return {
        "compiled": compared["memory_bytes"]["compiled"],
        "predicted": plan.predicted.memory_bytes - plan.predicted.memory.get("runtime", 0.0),
        "seconds": compared["step_seconds"]["measured"],
        "remat": ", ".join(map(describe, plan.remat)),
        "mesh": {axis: size for axis, size in plan.mesh.items() if size > 1},
        "bits": json.loads(folder.summary.read_text())["bits_per_byte"],
    }


# The paper's cluster


def predicted_rows(config: Config) -> tuple[list[Row], dict[str, Any]]:
    """Step time predicted, memory predicted and compiled, for the paper's cluster."""
    size = {"sequence": config.sequence, "sequences": config.sequences, "loss_chunks": config.loss_chunks}
    chosen = planned_subject(config.preset, config.cluster, mesh={"data": config.nodes}, **size)
    alone = dataclasses.replace(chosen.case, mesh=f"data={chosen.cluster.count}")
    replicas, named = dataclasses.replace(chosen, case=alone), chosen.case.mesh
    whole = chosen.ends.none.memory_bytes
    budget = config.share * whole
    less = chosen.mix("dp", budget)
    try:
        apart, note = replicas.mix("dp", budget), ""
    except PlanError:
        apart, note = replicas.uniform("full"), "; nothing fits the same memory: everything is recomputed"
    variants: dict[str, tuple[Subject, Mix, bool, str]] = {
        ALL: (chosen, less, True, f"; mesh {named}"),
        NO_MESH: (replicas, apart, True, note),
        EXACT: (chosen, less, False, ""),
        NO_REMAT: (chosen, chosen.uniform("none"), True, ""),
    }
    rows, details = [], {}
    where = f"{config.preset} on {config.cluster}"
    for name, (subject, mix, sends, note) in variants.items():
        predicted = subject.predicted(mix)
        exact = predicted.seconds.get("gradient_sync", 0.0)
        waits = _exchange(config, subject) if sends else exact
        seconds = predicted.step_seconds - exact + waits
        made, why = _compiled(config, subject, mix, sends) if config.compile else (None, "")
        what = f"{where}, {name}"
        kept = ", ".join(map(describe, mix.segments()))
        rows += [
            Row(what=what, quantity="memory of a step, GB", paper=_paper(name), predicted=predicted.memory_bytes / GB,
                compiled=None if made is None else made / GB, note=f"{kept}{note}{why}"),
            Row(what=what, quantity="seconds per step", predicted=seconds,
                note=f"{100 * subject.extra_flops(mix, causal=True):.1f}% more FLOPs; gradients that wait: "
                f"{1e3 * waits:.2f} ms"),
        ]  # fmt: skip
        details[name] = {
            "mesh": {axis: size for axis, size in subject.case.sizes.items() if size > 1},
            "remat": [dataclasses.asdict(segment) for segment in mix.segments()],
            "predicted_bytes": predicted.memory_bytes,
            "compiled_bytes": made,
            "predicted_seconds": seconds,
            "gradient_seconds": waits,
        }
    return rows, details


def _exchange(config: Config, subject: Subject) -> float:
    """Seconds of a step in which codes travel along the data axis, by the planner's own price: nothing hides them."""
    axis = axis_of(subject.cluster, subject.case.sizes, "data", subject.workload.parameter_count)
    return next(each.seconds for each in ranked(axis, "8-bit") if each.rung.scheme == config.scheme)


def _compiled(config: Config, subject: Subject, mix: Mix, sends: bool) -> tuple[float | None, str]:
    """Bytes of the real step by XLA; or why there are none."""
    run = run_of(subject.case)
    sent = (Communication(axis="data", scheme=config.scheme),) if sends else ()  # pyright: ignore[reportArgumentType]
    plan = dataclasses.replace(plan_of(subject.case), remat=mix.segments(), communication=sent)
    try:
        return Compiler(run, run.model.vocab, target_of(subject.cluster))(plan).memory_bytes, ""
    except CompileError as error:
        return None, f"; not compiled: {str(error).splitlines()[0][:200]}"


def _paper(name: str) -> float | None:
    return {ALL: WITH, NO_REMAT: WITHOUT}.get(name)


if __name__ == "__main__":
    main("table11_ablation", __doc__, Config, measure)

"""What each strategy would rematerialise in a plan, side by side (tables 4 and 11, figure 3 of the paper)."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from planners.candidates import REMATS, Candidates
from planners.explain import duration, gib, table
from planners.machines.topology import Cluster
from planners.plan import Plan, PlanError, Segment, Workload, describe
from planners.prices.assumptions import Assumptions
from planners.prices.cost import price
from planners.programs.compiled import CompileError, Compiles
from planners.remat.solvers import SOLVERS
from planners.space.mixes import Blocks, Ends, between, ends_of, problem
from planners.wishes import Search


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """One way to rematerialise: bytes per device, and seconds and FLOPs beyond those of a step without.

    All are predicted, but for `verified`. FLOPs are a share of the step's, masked pairs of the attention counted.

    Attributes:
        name: of the strategy.
        segments: what the layers keep, in words; `remat` as a plan holds it.
        kept: bytes that the layers keep for their backward pass.
        peak: bytes of the step, without runtime libraries; `memory` with them.
        fits: within the budget: by the compiler's peak where it is known, else by the predicted one.
        refused: why it gives no plan within the budget, or why that did not compile; or empty.
        verified: bytes of the compiled step by XLA's count (arguments + temporaries), without runtime libraries, as
            `peak`; None where it was not compiled.
    """

    name: str
    segments: str
    memory: float
    fits: bool
    seconds: float
    flops: float
    refused: str = ""
    kept: float = float("nan")
    peak: float = float("nan")
    remat: tuple[Segment, ...] = ()
    verified: float | None = None

    def facts(self) -> dict[str, Any]:
        """Plain data; what is unknown is None."""
        raw = dataclasses.asdict(self)
        return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in raw.items()}


def remat_strategies(
    plan: Plan, workload: Workload, cluster: Cluster, search: Search, assumptions: Assumptions | None = None
) -> list[Strategy]:
    """All strategies on the mesh, microbatch and loss chunks of a plan; none where the blocks are unknown."""
    if not workload.operations:
        return []
    a = assumptions or Assumptions()
    ends = ends_of_plan(plan, workload, cluster, a)
    blocks = Blocks(workload, cluster.device, search, a)
    budget = cluster.device.memory * search.fraction(cluster.device.memory)
    found = []
    for name in ("none", *(name for name in SOLVERS if name not in REMATS), "full"):
        try:
            if name in REMATS:
                segment = Segment(layers=ends.layers, save=None if name == "none" else ())
                mix = blocks.of([segment], plan.mesh, ends)
            else:
                mix = SOLVERS[name](problem(ends, blocks.policies(plan.mesh, ends), budget))
        except PlanError as error:
            nan, said = float("nan"), str(error).splitlines()[0]
            found.append(Strategy(name=name, segments="", memory=nan, fits=False, seconds=nan, flops=nan, refused=said))
            continue
        made = between(ends, mix)
        # A mix is that of one device: of one replica, and of the layers of one stage.
        devices = plan.batch.microbatch // ends.sequences * plan.mesh["stage"]
        found.append(
            Strategy(
                name=name,
                segments=", ".join(map(describe, mix.segments())),
                memory=made.memory_bytes,
                fits=made.memory_bytes <= budget,
                seconds=made.step_seconds - ends.none.step_seconds,
                kept=sum(run.layers * run.policy.kept for run in mix.runs),
                peak=made.memory_bytes - made.memory.get("runtime", 0.0),
                remat=mix.segments(),
                flops=mix.flops * devices * plan.batch.accumulation / workload.step_flops(causal=False),
            )
        )
    return found


def ends_of_plan(plan: Plan, workload: Workload, cluster: Cluster, a: Assumptions) -> Ends:
    """The mesh, microbatch and loss chunks of a plan without any recomputation and with all of it."""
    both = Candidates.of(
        plan.mesh,
        microbatch=plan.batch.microbatch,
        remat=range(len(REMATS)),
        loss_chunks=plan.compile.loss_chunks,
        zero=plan.rules.optimizer != plan.rules.parameters,
        virtual=plan.schedule.virtual,
    )
    prices = price(workload, cluster, both, unroll=plan.compile.unroll, assumptions=a)
    rows = {name: prices.prediction(index) for index, name in enumerate(REMATS)}
    one = both.take([0])  # pyright: ignore[reportArgumentType]
    return ends_of(workload, cluster.device, one, rows["none"], rows["full"], a)


def verified_strategies(
    strategies: Sequence[Strategy],
    plan: Plan,
    compile: Compiles,
    cluster: Cluster,
    search: Search,
    say: Callable[[str], None] = lambda text: None,
) -> list[Strategy]:
    """The same, each compiled in the place of the plan's own rematerialisation; equal ones once.

    Raises CompileError where no compilation can succeed.
    """
    budget = cluster.device.memory * search.fraction(cluster.device.memory)
    wanted = list(dict.fromkeys(each.remat for each in strategies if each.remat))
    found: dict[tuple[Segment, ...], float | str] = {}
    for number, remat in enumerate(wanted, 1):
        say(f"compiling rematerialisation {number} of {len(wanted)}: {', '.join(map(describe, remat))}")
        try:
            found[remat] = compile(dataclasses.replace(plan, remat=remat)).memory_bytes
        except CompileError as error:
            if error.fatal:
                raise
            found[remat] = str(error)

    def told(each: Strategy) -> Strategy:
        made = found.get(each.remat, each.refused)
        if isinstance(made, str):
            return dataclasses.replace(each, refused=made, fits=False)
        return dataclasses.replace(each, verified=made, fits=made + cluster.device.overhead <= budget)

    return [told(each) for each in strategies]


def strategies_table(strategies: Sequence[Strategy]) -> str:
    """One line each: predicted, and the compiler's peak where it is known."""
    compiled = any(each.verified is not None for each in strategies)

    def row(each: Strategy) -> tuple[str, ...]:
        if not each.remat:
            return (each.name, "-", "-", *("-" for _ in range(2 * compiled)), "-", "-", "no", each.refused)
        peaks = ()
        if compiled:
            error = "-" if each.verified is None else f"{each.peak / each.verified - 1:+.1%}"
            peaks = ("-" if each.verified is None else gib(each.verified), error)
        said = each.segments + (f" ({each.refused})" if each.refused else "")
        fits = "yes" if each.fits else "no"
        time, flops = duration(each.seconds), f"{each.flops:.1%}"
        return (each.name, gib(each.kept), gib(each.peak), *peaks, time, flops, fits, said)

    peaks = ("peak by XLA", "error") if compiled else ()
    header = ("rematerialisation", "kept", "peak", *peaks, "extra time", "extra FLOPs", "fits", "")
    said = "kept: by the layers for their backward pass. peak: arguments and temporaries of the step"
    note = f"{said}, without runtime libraries, per device. All predicted" + (", but for XLA's." if compiled else ".")
    return f"{table(header, list(map(row, strategies)))}\n{note}"

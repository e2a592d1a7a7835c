"""What each strategy would rematerialise in a plan, side by side (tables 4 and 11, figure 3 of the paper)."""

from dataclasses import dataclass

from planners.candidates import REMATS, Candidates
from planners.explain import duration, gib, table
from planners.machines.topology import Cluster
from planners.plan import Plan, PlanError, Segment, Workload, describe
from planners.prices.assumptions import Assumptions
from planners.prices.cost import price
from planners.remat.solvers import SOLVERS
from planners.space.mixes import Blocks, Ends, between, ends_of, problem
from planners.wishes import Search


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """One way to rematerialise: bytes per device, and seconds and FLOPs beyond those of a step without.

    `refused` says why it gives no plan within the budget, or is empty. FLOPs are a share of the step's, masked pairs
    of the attention counted. All are predicted.
    """

    name: str
    segments: str
    memory: float
    fits: bool
    seconds: float
    flops: float
    refused: str = ""


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
        replicas = plan.batch.microbatch // ends.sequences if ends.sequences else 1
        found.append(
            Strategy(
                name=name,
                segments=", ".join(map(describe, mix.segments())),
                memory=made.memory_bytes,
                fits=made.memory_bytes <= budget,
                seconds=made.step_seconds - ends.none.step_seconds,
                flops=mix.flops * replicas * plan.batch.accumulation / workload.step_flops(causal=False),
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
    return ends_of(workload, both.take([0]), rows["none"], rows["full"])  # pyright: ignore[reportArgumentType]


def strategies_table(strategies: list[Strategy]) -> str:
    """One line each, predicted."""
    rows = [
        (each.name, "-", "-", "-", "no", each.refused)
        if each.refused
        else (
            each.name,
            gib(each.memory),
            duration(each.seconds),
            f"{each.flops:.1%}",
            "yes" if each.fits else "no",
            each.segments,
        )
        for each in strategies
    ]
    header = ("rematerialisation, predicted", "memory", "extra time", "extra FLOPs", "fits", "")
    return table(header, rows)

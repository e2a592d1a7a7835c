"""Finds the fastest plan that fits: price every choice, prune by memory, rank, say why the others lost."""

import dataclasses
from collections.abc import Mapping

from planners.assumptions import Assumptions
from planners.choices import Choice, enumerate_choices, say_indivisible, summarise
from planners.explain import duration, gib
from planners.layout import check_executable, indivisible, rules
from planners.memory import Remat
from planners.plan import (
    MESH_AXES,
    Alternative,
    Batch,
    Compile,
    Plan,
    PlanError,
    Prediction,
    Search,
    Segment,
    Workload,
)
from planners.refusal import refusal
from planners.topology import Cluster

ALTERNATIVES = 5
"""Runners-up that a plan tells of."""


def plan(workload: Workload, cluster: Cluster, search: Search, assumptions: Assumptions | None = None) -> Plan:
    """The fastest plan that fits, by prediction; among predicted ties the simplest.

    On a CPU host, whose devices share cores and memory, splitting the batch comes before any other split.
    Raises PlanError when nothing divides (naming the numbers) or nothing fits (with a memory table and what
    would fit).
    """
    assumptions = assumptions or Assumptions()
    budget = cluster.device.memory * search.memory_fraction
    choices = list(enumerate_choices(workload, cluster, search, assumptions))
    fitting = [choice for choice in choices if choice.predicted.memory_bytes <= budget]
    if not fitting:
        raise PlanError(refusal(workload, cluster, search, assumptions, choices))
    ranked = _ranked(fitting, cluster, assumptions)
    winner = ranked[0]
    too_big = [choice for choice in choices if choice.predicted.memory_bytes > budget]
    return dataclasses.replace(
        _made(winner, workload, search),
        assumptions=_record(workload, cluster, search, assumptions),
        alternatives=_alternatives(winner, ranked[1:], too_big, workload, cluster, budget, assumptions),
    )


def shortlist(
    workload: Workload, cluster: Cluster, search: Search, count: int, assumptions: Assumptions | None = None
) -> tuple[Plan, ...]:
    """The plan that `plan` finds, then the next best of each other mesh and remat: at most `count` of them."""
    assumptions = assumptions or Assumptions()
    first = plan(workload, cluster, search, assumptions)
    budget = cluster.device.memory * search.memory_fraction
    choices = enumerate_choices(workload, cluster, search, assumptions)
    ranked = _ranked([c for c in choices if c.predicted.memory_bytes <= budget], cluster, assumptions)
    kinds: dict[tuple[tuple[int, ...], str], Choice] = {}
    for choice in ranked:
        kinds.setdefault(_kind(choice), choice)
    return (first, *(_made(choice, workload, search) for choice in list(kinds.values())[1:count]))


def _made(choice: Choice, workload: Workload, search: Search) -> Plan:
    """One choice as a plan, without assumptions and alternatives."""
    return Plan(
        mesh=choice.mesh,
        rules=rules(choice.mesh),
        batch=Batch(
            sequences=workload.batch,
            microbatch=choice.microbatch,
            accumulation=workload.batch // choice.microbatch,
        ),
        remat=(Segment(layers=workload.layers, save=None if choice.remat == "none" else ()),),
        compile=Compile(options=dict(search.options), unroll=search.unroll, loss_chunks=choice.loss_chunks),
        predicted=choice.predicted,
    )


def price(
    workload: Workload,
    cluster: Cluster,
    search: Search,
    mesh: Mapping[str, int],
    microbatch: int,
    remat: Remat = "none",
    loss_chunks: int = 1,
    assumptions: Assumptions | None = None,
) -> Prediction:
    """What one hand-made choice is predicted to cost; it need not fit. Axes that `mesh` leaves out are 1.

    Raises PlanError when the choice does not divide.
    """
    fixed = dataclasses.replace(
        search,
        mesh={axis: mesh.get(axis, 1) for axis in MESH_AXES},
        microbatch=microbatch,
        remat=remat,
        loss_chunks=loss_chunks,
    )
    (choice,) = enumerate_choices(workload, cluster, fixed, assumptions or Assumptions())
    return choice.predicted


def check(plan: Plan, workload: Workload, cluster: Cluster) -> None:
    """Raises PlanError, saying what differs, when a saved plan does not suit this work and these devices."""
    if plan.devices != cluster.count:
        raise PlanError(f"the plan is for {plan.devices} devices, {cluster.name} has {cluster.count}; plan again")
    check_executable(plan.mesh)
    if plan.batch.sequences != workload.batch:
        raise PlanError(
            f"the plan splits a batch of {plan.batch.sequences} sequences, the config says {workload.batch}"
        )
    if plan.layers != workload.layers:
        raise PlanError(f"the plan's remat covers {plan.layers} layers, {workload.name} has {workload.layers}")
    known = {tensor.name for tensor in workload.activations}
    named = {name for segment in plan.remat for name in (*(segment.save or ()), *segment.offload)}
    if unknown := sorted(named - known):
        raise PlanError(f"the plan keeps {unknown}, which {workload.name} does not name; it names {sorted(known)}")
    if found := indivisible(workload, plan.rules, plan.mesh):
        raise PlanError("; ".join(say_indivisible(*row, plan.mesh, cluster.count) for row in found))
    if workload.sequence % plan.compile.loss_chunks:
        raise PlanError(f"loss_chunks={plan.compile.loss_chunks} does not divide sequence={workload.sequence}")


def _ranked(choices: list[Choice], cluster: Cluster, assumptions: Assumptions) -> list[Choice]:
    """Best first. Ties with the fastest go to the simplest: fewest axes, then fewest microbatches."""

    def tier(choice: Choice) -> tuple[int, int]:
        return (choice.mesh["tensor"], choice.mesh["fsdp"]) if cluster.shared else (1, 1)

    best = min(tier(choice) for choice in choices)
    fastest = min(choice.predicted.step_seconds for choice in choices if tier(choice) == best)
    limit = fastest * (1.0 + assumptions.tie)

    def key(choice: Choice) -> tuple[object, ...]:
        seconds = choice.predicted.step_seconds
        tied = tier(choice) == best and seconds <= limit
        exact = (seconds, choice.predicted.memory_bytes, tuple(choice.mesh.values()))
        return (tier(choice), not tied, *((choice.axes, -choice.microbatch) if tied else ()), *exact)

    return sorted(choices, key=key)


def _alternatives(
    winner: Choice,
    losers: list[Choice],
    too_big: list[Choice],
    workload: Workload,
    cluster: Cluster,
    budget: float,
    assumptions: Assumptions,
) -> tuple[Alternative, ...]:
    """The next best of each other mesh and remat, after the fastest choice that only lacked memory."""
    told: list[tuple[Choice, str]] = []
    faster = [choice for choice in too_big if choice.predicted.step_seconds < winner.predicted.step_seconds]
    if faster:
        first = min(faster, key=lambda choice: (choice.predicted.step_seconds, choice.predicted.memory_bytes))
        told.append((first, _why_too_big(winner, first, budget)))
    seen = {_kind(winner)}
    for choice in losers:
        if len(told) >= ALTERNATIVES:
            break
        if _kind(choice) not in seen:
            seen.add(_kind(choice))
            told.append((choice, _why_slower(winner, choice, cluster, assumptions)))
    return tuple(
        Alternative(
            summary=summarise(choice, workload),
            step_seconds=choice.predicted.step_seconds,
            memory_bytes=choice.predicted.memory_bytes,
            reason=reason,
        )
        for choice, reason in told
    )


def _kind(choice: Choice) -> tuple[tuple[int, ...], str]:
    return tuple(choice.mesh.values()), choice.remat


def _why_too_big(winner: Choice, loser: Choice, budget: float) -> str:
    memory = loser.predicted.memory
    part = max(memory, key=lambda name: memory[name] - winner.predicted.memory.get(name, 0.0))
    gain = 1.0 - loser.predicted.step_seconds / winner.predicted.step_seconds
    return (
        f"would be {gain:.0%} faster but does not fit: it needs {gib(loser.predicted.memory_bytes)} of "
        f"{gib(budget)}; {part} alone takes {gib(memory[part])} "
        f"(winner {gib(winner.predicted.memory.get(part, 0.0))})"
    )


def _why_slower(winner: Choice, loser: Choice, cluster: Cluster, assumptions: Assumptions) -> str:
    mine, theirs = winner.predicted.seconds, loser.predicted.seconds
    part = max({**mine, **theirs}, key=lambda name: theirs.get(name, 0.0) - mine.get(name, 0.0))
    takes = duration(theirs.get(part, 0.0))
    term = f"{part} adds {takes}"
    if part in mine:
        term = f"{part} takes {takes} instead of {duration(mine[part])}"
    excess = loser.predicted.step_seconds / winner.predicted.step_seconds - 1.0
    if excess > assumptions.tie:
        return f"{excess:.1%} slower: {term}"
    if cluster.shared and loser.mesh != winner.mesh:
        return "the devices share the same cores, where splitting only the batch comes first"
    if excess >= 0:
        return f"a tie ({excess:.1%} slower): {term}"
    return f"a tie ({-excess:.1%} faster), but less simple: {loser.axes} mesh axes instead of {winner.axes}"


def _record(workload: Workload, cluster: Cluster, search: Search, assumptions: Assumptions) -> dict[str, str]:
    device = cluster.device
    dtype = workload.compute_dtype
    nominal = f"{device.nominal:.4g} FLOP/s nominal, for ranking only: no {dtype} peak is known"
    return {
        "device": f"{device.kind} ({device.source})",
        "rate": f"{device.peak[dtype]:.4g} FLOP/s dense {dtype}" if dtype in device.peak else nominal,
        "memory": f"{gib(device.memory)} per device",
        "memory_fraction": f"{search.memory_fraction:g}",
        "attention": workload.kernel,
        **{
            f"link {tier.name}": f"{tier.bandwidth / 1e9:.4g} GB/s per device, "
            f"{tier.latency * 1e6:.1f} us per call + {tier.doubling * 1e6:.1f} us per doubling"
            for tier in cluster.tiers
        },
        **assumptions.record(),
    }

"""Finds the fastest plan that fits: price every choice, prune by memory, rank, say why the others lost."""

import dataclasses
from collections.abc import Mapping, Sequence

from planners.communication import travelling
from planners.explain import gib
from planners.findings import Prediction
from planners.layout import EXECUTABLE, check_executable, indivisible, rules
from planners.machines.device_order import arranged
from planners.machines.topology import Cluster
from planners.plan import MESH_AXES, Batch, Compile, Plan, PlanError, Schedule, Segment, Workload
from planners.prices.assumptions import Assumptions
from planners.prices.paper_cost import Eq1
from planners.schedules.ordering import ordered
from planners.space.choices import Choice, priced_choices
from planners.space.meshes import say_indivisible
from planners.space.mixes import with_mixes
from planners.space.ranking import ranked
from planners.space.reasons import alternatives, distinct
from planners.space.refusal import refusal
from planners.space.sharing import shared
from planners.wishes import Search

OURS: dict[str, str | int | float | bool] = {"xla_disable_hlo_passes": "rematerialization"}


def plan(
    workload: Workload,
    cluster: Cluster,
    search: Search,
    assumptions: Assumptions | None = None,
    axes: Sequence[str] = EXECUTABLE,
    objective: Eq1 | None = None,
) -> Plan:
    """The fastest plan that fits, by prediction; among predicted ties the simplest.

    On a CPU host, whose devices share cores and memory, splitting the batch comes before any other split. `axes` are
    the mesh axes that are searched: by default those that the trainer executes. The objective is step time times steps
    to the target; the second factor is the same for all plans, since none changes what is computed, so step time
    decides. `objective` is eq. 1 as printed instead.
    Raises PlanError when nothing divides (naming the numbers) or nothing fits (with a memory table and what
    would fit).
    """
    return shortlist(workload, cluster, search, 1, assumptions, axes, objective)[0]


def shortlist(
    workload: Workload,
    cluster: Cluster,
    search: Search,
    count: int,
    assumptions: Assumptions | None = None,
    axes: Sequence[str] = EXECUTABLE,
    objective: Eq1 | None = None,
) -> tuple[Plan, ...]:
    """The plan that `plan` finds, then the next best of each other mesh and remat: at most `count` of them."""
    assumptions = assumptions or Assumptions()
    choices = priced_choices(workload, cluster, search, assumptions, axes)
    choices = with_mixes(choices, workload, cluster, search, assumptions)
    if not choices.fits.any():
        raise PlanError(refusal(workload, cluster, search, assumptions, choices, axes))
    at = choices.candidates
    score = None if objective is None else objective(at, cluster, choices.prices.step_seconds)
    order = ranked(choices, cluster, assumptions, score)
    best = dataclasses.replace(
        _made(choices[order[0]], workload, search),
        assumptions=_record(workload, cluster, search, assumptions, objective),
        alternatives=alternatives(choices, order, workload, cluster, assumptions),
    )
    others = distinct(choices, order, count)[1:]
    _, order_of_devices = arranged(cluster)
    made = (best, *(_made(choices[row], workload, search) for row in others))
    made = tuple(dataclasses.replace(each, device_order=order_of_devices) for each in made)
    balanced = (shared(each, search, cluster, workload.compute_dtype) for each in made)
    return tuple(
        _travelling(ordered(each, workload, cluster, search, assumptions), workload, cluster, search)
        for each in balanced
    )


def _travelling(made: Plan, workload: Workload, cluster: Cluster, search: Search) -> Plan:
    """The plan with how gradients travel, and why, where the search asks for it."""
    if not search.communication:
        return made
    said, why = travelling(made, search.communication, workload, cluster)
    return dataclasses.replace(made, communication=said, assumptions={**made.assumptions, **why})


def _made(choice: Choice, workload: Workload, search: Search) -> Plan:
    """One choice as a plan, without assumptions and alternatives."""
    return Plan(
        mesh=choice.mesh,
        rules=rules(choice.mesh, zero=choice.zero),
        batch=Batch(
            sequences=workload.batch,
            microbatch=choice.microbatch,
            accumulation=workload.batch // choice.microbatch,
        ),
        remat=choice.segments or (Segment(layers=workload.layers, save=None if choice.remat == "none" else ()),),
        # Where we decide what is rematerialised, XLA's own pass does not decide too.
        compile=Compile(
            options=(OURS if choice.segments else {}) | dict(search.options),
            unroll=search.unroll,
            loss_chunks=choice.loss_chunks,
        ),
        schedule=Schedule(pipeline="interleaved", virtual=choice.virtual) if choice.virtual > 1 else Schedule(),
        predicted=choice.predicted,
    )


def price(
    workload: Workload,
    cluster: Cluster,
    search: Search,
    mesh: Mapping[str, int],
    microbatch: int,
    remat: str = "none",
    loss_chunks: int = 1,
    assumptions: Assumptions | None = None,
    *,
    zero: bool = False,
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
        shard_optimizer=zero,
    )
    return priced_choices(workload, cluster, fixed, assumptions or Assumptions(), MESH_AXES)[0].predicted


def beyond(
    made: Plan, workload: Workload, cluster: Cluster, search: Search, assumptions: Assumptions | None = None
) -> str | None:
    """One line on a faster plan that the trainer cannot execute yet; None where there is none, or no difference that
    the prediction can tell."""
    assumptions = assumptions or Assumptions()
    if cluster.count == 1 or cluster.shared or made.predicted is None:
        return None
    best = plan(workload, cluster, search, assumptions, MESH_AXES)
    missing = [axis for axis, size in best.mesh.items() if axis not in EXECUTABLE and size > 1]
    if not missing or best.predicted is None:
        return None
    gain = 1.0 - best.predicted.step_seconds / made.predicted.step_seconds
    if gain <= assumptions.tie:
        return None
    named = " and ".join(f"{axis}={best.mesh[axis]}" for axis in missing)
    return (
        f"a plan with {named} is predicted {gain:.0%} faster; the trainer does not execute {' and '.join(missing)} yet"
    )


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
    known = {tensor.name for tensor in workload.values}
    named = {name for segment in plan.remat for name in (*(segment.save or ()), *segment.offload)}
    if unknown := sorted(named - known):
        raise PlanError(f"the plan keeps {unknown}, which {workload.name} does not name; it names {sorted(known)}")
    if found := indivisible(workload, plan.rules, plan.mesh):
        raise PlanError("; ".join(say_indivisible(*row, plan.mesh, cluster.count) for row in found))
    if workload.sequence % plan.compile.loss_chunks:
        raise PlanError(f"loss_chunks={plan.compile.loss_chunks} does not divide sequence={workload.sequence}")


def slow_dtype(workload: Workload, cluster: Cluster) -> str | None:
    """What to know before computing in a dtype that some devices compute in another one; None where none does."""
    dtype = workload.compute_dtype
    kinds = {pool.device.kind: by for pool in cluster.parts if (by := pool.device.emulated.get(dtype))}
    if not kinds:
        return None
    (by,) = set(kinds.values())
    return (
        f"{' and '.join(kinds)} multiplies no {dtype}: XLA converts it and computes in {by}, so {dtype} is no faster "
        f"there and needs room for copies, which is not in the predicted memory; model.dtype={by} or auto avoids both"
    )


def _record(
    workload: Workload, cluster: Cluster, search: Search, assumptions: Assumptions, objective: Eq1 | None
) -> dict[str, str]:
    device = cluster.device
    dtype = workload.compute_dtype
    nominal = f"{device.nominal:.4g} FLOP/s nominal, for ranking only: no {dtype} peak is known"
    return {
        "device": f"{device.kind} ({device.source})",
        "rate": f"{device.peak[dtype]:.4g} FLOP/s dense {dtype}" if dtype in device.peak else nominal,
        **({"warning": warning} if (warning := slow_dtype(workload, cluster)) else {}),
        "memory": f"{gib(device.memory)} per device",
        "memory_fraction": f"{search.fraction(device.memory):g}",
        "attention": workload.kernel,
        "objective": "step time, times a number of steps that no plan changes"
        if objective is None
        else f"eq. 1 as printed: {objective}",
        **{
            f"link {tier.name}": f"{tier.bandwidth / 1e9:.4g} GB/s per device, "
            f"{tier.latency * 1e6:.1f} us per call + {tier.doubling * 1e6:.1f} us per doubling"
            + (f"; {sum(map(len, tier.measured.values()))} measured calls come first" if tier.measured else "")
            for tier in cluster.tiers
        },
        **assumptions.record(),
    }

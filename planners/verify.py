"""Checks the best plans against the compiler: memory and collectives read back, compared, ranked again or refused.

It is handed `compile(plan)`, which may take minutes and knows the model; here are only numbers and text.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planners.explain import duration, gib, table
from planners.findings import Alternative, Compilation, Traffic
from planners.learning.ledger import candidate
from planners.machines.topology import Cluster
from planners.plan import MESH_AXES, Plan, PlanError, Workload
from planners.prices.assumptions import Assumptions
from planners.prices.comm import calibrated, group
from planners.prices.memory_calibration import MemoryCalibration, calibrate, observe
from planners.programs import replicas
from planners.programs.compiled import Compiled, CompileError, Compiles
from planners.programs.hlo import Collective, collectives

COMMUNICATION = ("tensor_parallel", "context_ring", "pipeline_hops", "fsdp_gather", "gradient_sync")
"""Parts of the predicted seconds that are collectives: the compiled ones take their place."""

FOLLOWING = ("dispatch", "pipeline_bubble", "stragglers")
"""Parts that follow from all others and are kept as predicted."""

ROUNDS = 3
"""How often a plan is asked for that needs less, while what was compiled needs more than predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One plan after the compiler has seen it; `refused` says why it cannot be followed, or is empty."""

    plan: Plan
    refused: str = ""

    @property
    def compiled(self) -> Compilation | None:
        return self.plan.compiled

    def facts(self) -> dict[str, Any]:
        """Plain data: the plan in a line, predicted and compiled figures apart, and the verdict."""
        predicted, compiled = self.plan.predicted, self.compiled
        return {
            "summary": self.plan.summary(),
            "predicted": None if predicted is None else dataclasses.asdict(predicted),
            "compiled": None if compiled is None else dataclasses.asdict(compiled),
            "refused": self.refused,
        }


def verify(
    shortlist: Callable[[float, int], Sequence[Plan]],
    compile: Compiles,
    cluster: Cluster,
    *,
    fraction: float,
    top: int = 3,
    assumptions: Assumptions | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Plan, tuple[Checked, ...]]:
    """The best of the `top` plans by what the compiler says, and all that were compiled, best first.

    Args:
        shortlist: `(share, count)` -> the best plans whose predicted memory is within that share of a device.
        compile: compiles a plan for the cluster.
        cluster: what it is compiled for.
        fraction: share of a device's memory that a plan may use.
        top: plans to compile.
        assumptions: constants of the cost model.
        say: told what is being done.

    Raises PlanError where no plan that was compiled fits, with what each needs; CompileError where none compiles.
    """
    a = assumptions or Assumptions()
    plans = shortlist(fraction, top)
    checked: list[Checked] = []
    share = fraction
    for _ in range(ROUNDS):
        fresh = [plan for plan in plans if all(plan.summary() != done.plan.summary() for done in checked)]
        for number, plan in enumerate(fresh, 1):
            say(f"compiling plan {number} of {len(fresh)}: {plan.summary()}")
            checked.append(_check(plan, compile, cluster, fraction, a))
        if any(not each.refused for each in checked):
            break
        share = _lower(share, checked, cluster)
        try:
            plans = shortlist(share, 1)
        except PlanError as error:
            raise PlanError(f"{_nothing_fits(checked, cluster, fraction)}\n\n{error}") from None
    ranked = rank(checked, a)
    if ranked[0].refused:
        raise PlanError(_nothing_fits(checked, cluster, fraction))
    return _winner(ranked, checked[0].plan, a), tuple(ranked)


def learn_memory(
    checked: Sequence[Checked], workload: Workload, jaxlib: str, before: MemoryCalibration | None = None
) -> MemoryCalibration | None:
    """What the compiled plans teach about the memory of others; policies not among them are kept as `before` had
    them. None where no plan teaches anything."""
    seen = [
        observe(workload, one, each.compiled.memory.get("temporaries", 0.0))
        for each in checked
        if each.compiled is not None and (one := candidate(each.plan)) is not None
    ]
    if not seen:
        return before
    found = calibrate(seen, jaxlib=jaxlib)
    return found if before is None else dataclasses.replace(found, habits=before.habits | found.habits)


def _check(plan: Plan, compile: Compiles, cluster: Cluster, fraction: float, a: Assumptions) -> Checked:
    try:
        made = compile(plan)
    except CompileError as error:
        if error.fatal:
            raise
        return Checked(plan=plan, refused=str(error))
    plan = dataclasses.replace(plan, compiled=read(made, plan, cluster, a))
    return Checked(plan=plan, refused=refusal(plan, cluster, fraction))


def refusal(plan: Plan, cluster: Cluster, fraction: float) -> str:
    """Why a compiled plan cannot be followed, in one sentence; empty when it can."""
    assert plan.compiled is not None
    budget, needed = cluster.device.memory * fraction, needs(plan, cluster)
    if needed > budget:
        expected = f" (predicted {gib(plan.predicted.memory_bytes)})" if plan.predicted else ""
        return f"does not fit: compiled, it needs {gib(needed)} of {gib(budget)}{expected}"
    complaint = next((text for text in plan.compiled.warnings if "full rematerialization" in text.lower()), "")
    return f"its shardings force the compiler to gather whole tensors: {complaint}" if complaint else ""


def needs(plan: Plan, cluster: Cluster) -> float:
    """Bytes per device of a compiled plan, with what runtime libraries keep outside of the program."""
    assert plan.compiled is not None
    return plan.compiled.memory_bytes + cluster.device.overhead


def rank(checked: Sequence[Checked], a: Assumptions) -> list[Checked]:
    """Best first: plans that can be followed by their compiled step time, ties in the order they came in."""

    def seconds(each: Checked) -> float:
        compiled = each.compiled
        return compiled.step_seconds if compiled and compiled.step_seconds is not None else float("inf")

    good = [each for each in checked if not each.refused]
    fastest = min(map(seconds, good), default=0.0)
    tied = [each for each in good if seconds(each) <= fastest * (1.0 + a.tie)]
    slower = sorted((each for each in good if each not in tied), key=seconds)
    return [*tied, *slower, *(each for each in checked if each.refused)]


def read(made: Compiled, plan: Plan, cluster: Cluster, a: Assumptions) -> Compilation:
    """The facts of a compiled plan that a Plan carries."""
    links = calibrated(cluster, a)
    rows: dict[tuple[str, str, str, str], list[float]] = {}
    link_bytes: dict[str, float] = {}
    hidden: dict[str, float] = {}
    seconds = concealed = 0.0
    warnings = list(made.warnings)
    for row in collectives(made.hlo):
        axes = crossed(row, plan)
        if not axes:
            continue
        sent = {axis: size * row.times for axis, size in sent_by_axis(row, axes).items()}
        cost = row.times * call_seconds(row, axes, plan, links, a.order)
        for axis, size in sent.items():
            link_bytes[axis] = link_bytes.get(axis, 0.0) + size
            if row.beside == "matrix products":
                hidden[axis] = hidden.get(axis, 0.0) + size
        seconds += cost
        concealed += cost if row.beside == "matrix products" else 0.0
        total = rows.setdefault((row.kind, " x ".join(axes), row.dtype, row.beside), [0.0, 0.0, 0.0])
        for column, value in enumerate((row.times, row.size * row.times, sum(sent.values()))):
            total[column] += value
        if not row.counted:
            warnings.append(
                f"a loop that does not say its length runs {row.kind} over {' x '.join(axes)}: counted once"
            )
    traffic = [
        Traffic(kind=kind, axes=axes, dtype=dtype, calls=int(calls), size=size / calls, sent=sent, beside=beside)
        for (kind, axes, dtype, beside), (calls, size, sent) in rows.items()
    ]
    return Compilation(
        target=made.target,
        memory=made.memory,
        link_bytes=link_bytes,
        hidden_bytes=hidden,
        traffic=tuple(sorted(traffic, key=lambda row: -row.sent)),
        warnings=tuple(dict.fromkeys(warnings)),
        versions=made.versions,
        step_seconds=_step_seconds(plan, cluster, seconds, concealed, a),
    )


def _step_seconds(plan: Plan, cluster: Cluster, seconds: float, concealed: float, a: Assumptions) -> float | None:
    """The predicted step with the compiled collectives in place of the predicted ones.

    Those that the compiler put beside matrix products hide as far as the predicted compute reaches, and slow it down
    (planners.md 3.7); all others are waited for.
    """
    if plan.predicted is None:
        return None
    parts = plan.predicted.seconds
    rest = sum(value for name, value in parts.items() if name not in COMMUNICATION)
    hidden = 0.0 if cluster.shared else min(concealed, parts.get("compute", 0.0))
    return rest + seconds - hidden * (1.0 - a.contention)


def crossed(row: Collective, plan: Plan) -> dict[str, int]:
    """Ranks along each mesh axis that a collective crosses, outermost axis first."""
    if row.kind == "collective-permute":
        return replicas.permuted(row.groups, plan.mesh)
    return replicas.axes(replicas.groups(row.groups, plan.devices), plan.mesh)


def sent_by_axis(row: Collective, axes: dict[str, int]) -> dict[str, float]:
    """Bytes that one device sends over each axis in one call, the innermost axis first.

    A ring of n ranks sends (n - 1) / n of a tensor to gather or scatter it, twice that to reduce it on all; over
    several axes each outer ring handles what its inner ones leave to it (planners.md 3.5).
    """
    if row.kind in ("collective-permute", "collective-broadcast"):
        return {next(iter(axes)): row.size}
    left, found = row.size * (2.0 if row.kind == "all-reduce" else 1.0), {}
    for axis, ranks in reversed(axes.items()):
        found[axis] = left * (ranks - 1) / ranks
        left /= ranks
    return found


def call_seconds(
    row: Collective, axes: dict[str, int], plan: Plan, cluster: Cluster, order: Sequence[str] = MESH_AXES
) -> float:
    """Seconds of one call, each axis after the other from the innermost."""
    left, seconds = row.size, 0.0
    for axis, ranks in reversed(axes.items()):
        ring = group(cluster, plan.mesh | {axis: ranks}, axis, order)
        method = {"all-reduce": ring.all_reduce, "reduce-scatter": ring.reduce_scatter}.get(row.kind, ring.all_gather)
        seconds += float(np.sum(method(left)))
        left /= ranks
    return seconds


def _lower(share: float, checked: Sequence[Checked], cluster: Cluster) -> float:
    """The share of a device to ask for next: lower by what the compiler needs beyond the prediction."""
    ratios = [
        needs(each.plan, cluster) / each.plan.predicted.memory_bytes
        for each in checked
        if each.compiled is not None and each.plan.predicted is not None
    ]
    return share / max(*ratios, 1.05) if ratios else share * 0.9


def _nothing_fits(checked: Sequence[Checked], cluster: Cluster, fraction: float) -> str:
    budget = gib(cluster.device.memory * fraction)
    rows = [
        (
            each.plan.summary(),
            gib(each.plan.predicted.memory_bytes) if each.plan.predicted else "",
            gib(needs(each.plan, cluster)) if each.compiled else "",
            each.refused,
        )
        for each in checked
    ]
    head = f"none of the {len(checked)} plans that were compiled for {cluster.describe()} can be followed"
    body = table(("plan", "predicted", "compiled", "why not"), rows)
    return f"{head}; a plan may use {budget} per device:\n{body}"


def _winner(ranked: Sequence[Checked], first: Plan, a: Assumptions) -> Plan:
    """The best plan, with the others that were compiled before those that the search told of."""
    best = ranked[0].plan
    others = [_lost(each, best, a) for each in ranked[1:]]
    known = [each.plan.predicted for each in ranked if each.plan.predicted]
    seen = {(predicted.step_seconds, predicted.memory_bytes) for predicted in known}
    kept = [item for item in first.alternatives if (item.step_seconds, item.memory_bytes) not in seen]
    compiled = best.compiled
    assert compiled is not None
    made = ", ".join(f"{name} {version}" for name, version in compiled.versions.items() if "jax" in name)
    note = f"{sum(each.compiled is not None for each in ranked)} plans compiled for {compiled.target} with {made}"
    return dataclasses.replace(
        best, alternatives=tuple([*others, *kept]), assumptions=first.assumptions | {"verified": note}
    )


def _lost(each: Checked, best: Plan, a: Assumptions) -> Alternative:
    plan, predicted = each.plan, each.plan.predicted
    seconds, memory = (predicted.step_seconds, predicted.memory_bytes) if predicted else (0.0, 0.0)
    reason = each.refused
    if not reason and plan.compiled and best.compiled:
        mine, theirs = best.compiled.step_seconds or 0.0, plan.compiled.step_seconds or 0.0
        excess = theirs / mine - 1.0 if mine else 0.0
        axis, more = _costliest(plan.compiled, best.compiled)
        tie = "a tie when compiled" if excess <= a.tie else f"{excess:.1%} slower with its compiled collectives"
        reason = f"{tie} ({duration(theirs)} against {duration(mine)})"
        reason += f": it sends {gib(more)} more over {axis}" if axis else ""
    return Alternative(summary=plan.summary(), step_seconds=seconds, memory_bytes=memory, reason=reason)


def _costliest(mine: Compilation, best: Compilation) -> tuple[str, float]:
    """The axis over which a plan sends most beyond the best one, and how many bytes; no axis where it sends less."""
    more = {axis: size - best.link_bytes.get(axis, 0.0) for axis, size in mine.link_bytes.items()}
    axis = max(more, key=lambda name: more[name], default="")
    return (axis, more[axis]) if axis and more[axis] > 0 else ("", 0.0)

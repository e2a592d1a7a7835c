"""Plans as arms of the learning agent: what is predicted of each, and by what they resemble each other."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Sequence

from planners.learning.agent import Arm
from planners.plan import MESH_AXES, Plan, PlanError, Workload

LINKS = ("tensor_parallel", "context_ring", "pipeline_hops", "fsdp_gather", "gradient_sync")
"""Parts of a predicted step that are communication (`planners.prices.cost.seconds`)."""


def program(plan: Plan) -> str:
    """SHA-256 of what a plan makes of the compiled step: two plans that differ in predictions, or in how shares of the
    batch move, run the same program."""
    told = plan.to_json()
    for name in ("predicted", "assumptions", "alternatives", "compiled"):
        told.pop(name, None)
    for name in ("shares", "balance"):
        told["batch"].pop(name, None)
    told["balanced"] = plan.batch.balance is not None
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def sizes(plan: Plan, workload: Workload) -> tuple[float, ...]:
    """By what plans resemble each other, within a job and between jobs: degrees of each kind of split, sequences of a
    microbatch on a device, microbatches, rematerialisation, pieces of the loss; and half as much, which is what the
    roots do, width, depth and length of the work."""
    full = any(segment.save is not None for segment in plan.remat)
    found = (
        *(plan.mesh[axis] for axis in MESH_AXES),
        plan.batch.microbatch / plan.replicas,
        plan.batch.accumulation,
        2 if full else 1,
        plan.compile.loss_chunks,
        *(math.sqrt(size) for size in (workload.carry.shape[-1], workload.layers, workload.sequence)),
    )
    return tuple(map(float, found))


def arm(plan: Plan, workload: Workload) -> Arm:
    """Raises PlanError for a plan without a prediction: nothing is known of it before it is tried."""
    if plan.predicted is None:
        raise PlanError("a plan made by hand has no prediction, so the agent cannot weigh it; leave --plan out")
    balance = plan.batch.balance
    moving = "" if balance is None else f" | gamma {balance.gamma:g}, hysteresis {balance.hysteresis:g}"
    return Arm(
        key=plan.digest,
        summary=plan.summary() + moving,
        parts=dict(plan.predicted.seconds),
        sizes=sizes(plan, workload),
        memory=plan.predicted.memory_bytes,
        gamma=None if balance is None else balance.gamma,
        hysteresis=None if balance is None else balance.hysteresis,
    )


def candidates(first: Plan, others: Iterable[Plan], count: int, settings: Sequence[tuple[float, float]]) -> list[Plan]:
    """`first`, then others that run other programs: at most `count` plans. Where `first` moves its shares, each of
    `settings` (gamma, hysteresis) is a plan of its own beside it, compiled once."""
    plans, seen = [first], {program(first)}
    for plan in others:
        if len(plans) < count and program(plan) not in seen:
            plans.append(plan)
            seen.add(program(plan))
    balance = first.batch.balance
    if balance is not None:
        for gamma, hysteresis in settings:
            moved = dataclasses.replace(balance, gamma=gamma, hysteresis=hysteresis)
            if moved != balance:
                plans.append(dataclasses.replace(first, batch=dataclasses.replace(first.batch, balance=moved)))
    return plans

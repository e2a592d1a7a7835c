"""Whether the replicas of a plan share the batch unevenly, and what each computes before anything is measured."""

import dataclasses

from planners.machines.topology import Cluster
from planners.plan import Plan, PlanError
from planners.wishes import Search

LEAST = 4
"""Microbatches of a replica from which `auto` shares them: with fewer, none can move for less than a third of the
step."""


def shared(plan: Plan, search: Search, cluster: Cluster, dtype: str) -> Plan:
    """The plan with `batch.balance` set where the search asks for it.

    `auto` means unequal devices, and replicas with LEAST microbatches each: equal ones are left to one program until
    the two of a shared step have run on GPUs. Raises PlanError where `always` is asked for and no microbatch can move.
    """
    if search.balance == "never" or (search.balance == "auto" and not _worth_it(plan, cluster)):
        return plan
    if plan.groups == 1:
        raise PlanError(
            "plan.balance=always needs replicas to share the batch, and this plan has one: set plan.mesh.data to 2 or "
            "more, or plan.balance to auto"
        )
    if plan.batch.accumulation == 1:
        most = plan.batch.sequences // 2
        raise PlanError(
            f"plan.balance=always: a step is one microbatch of {plan.batch.microbatch} sequences, so no replica can "
            f"give any away; set plan.microbatch to at most {most}, better {plan.batch.sequences // LEAST}"
        )
    return dataclasses.replace(
        plan, batch=dataclasses.replace(plan.batch, balance=search.alpha, shares=_first(plan, cluster, dtype))
    )


def _worth_it(plan: Plan, cluster: Cluster) -> bool:
    return plan.groups > 1 and plan.batch.accumulation >= LEAST and cluster.unequal


def _first(plan: Plan, cluster: Cluster, dtype: str) -> tuple[float, ...]:
    """Shares in proportion to the datasheets of unequal devices, each replica as fast as its slowest; else none."""
    peaks = [rate for pool in cluster.parts for rate in [pool.device.peak.get(dtype)] * pool.count]
    if not cluster.unequal or None in peaks:
        return ()
    ordered = [peaks[i] for i in plan.device_order] if plan.device_order else peaks
    size = plan.devices // plan.groups
    slowest = [min(rate or 0.0 for rate in ordered[i : i + size]) for i in range(0, plan.devices, size)]
    return tuple(rate / sum(slowest) for rate in slowest)

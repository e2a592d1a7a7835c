"""The order of a plan's gradient sums, chosen on the simulator from what the cost model says of its parts (eq. 11)."""

import dataclasses

import numpy as np

from planners.machines.topology import Cluster
from planners.plan import Plan, Workload
from planners.prices.assumptions import Assumptions
from planners.prices.comm import calibrated, group
from planners.prices.footprint import footprint
from planners.schedules.durations import Duration
from planners.schedules.profiling import Profile
from planners.schedules.schedule import Chosen, choose, replica_options
from planners.wishes import Search

MICROBATCHES = 3
"""Microbatches that are simulated at most: from the second on each meets the sums of the one before it."""

COMBINE = "xla_gpu_all_reduce_combine_threshold_bytes"
"""XLA's option for the most bytes that one joined all-reduce holds."""

SHOWN = 3
"""Orders that the plan's assumptions tell of, the chosen one first."""

PASSES = ("compute", "elementwise", "recompute", "loss_recompute", "dispatch", "tensor_parallel", "context_ring")
"""Parts of a step that are spent in forward and backward passes."""


def ordered(plan: Plan, workload: Workload, cluster: Cluster, search: Search, assumptions: Assumptions) -> Plan:
    """The plan with the order of its gradient sums, where the search asks for `simulated` and several replicas sum.

    XLA on a GPU obeys: it is told to join neighbouring all-reduces up to the size of a bucket, in the order in which
    gradients are made, unless the search's own options say otherwise. XLA on a CPU has no such option.
    """
    if search.schedule != "simulated" or (chosen := simulate(plan, workload, cluster, assumptions)) is None:
        return plan
    size = chosen.schedule.bucket_bytes
    every = plan.batch.accumulation if _once(plan) else 1
    schedule = dataclasses.replace(plan.schedule, bucket_bytes=size, reduce_every=every)
    told = {} if cluster.device.kind == "cpu" or size is None else {COMBINE: max(size, 1)}
    made = dataclasses.replace(plan.compile, options=told | plan.compile.options)
    record = plan.assumptions | {"order of gradient sums": "; ".join(chosen.lines()[:SHOWN])}
    return dataclasses.replace(plan, schedule=schedule, compile=made, assumptions=record)


def simulate(plan: Plan, workload: Workload, cluster: Cluster, assumptions: Assumptions) -> Chosen | None:
    """Every bucket size of this plan, in the order that XLA can be told, judged.

    None where no gradient is summed over data or zone.
    A layer's passes take an equal part of the predicted compute, of which forward is one part of three, of four with
    recomputation. Embedding and head count as a layer before the first, whose gradient is complete last.
    """
    axes = [axis for axis in ("zone", "data") if plan.mesh[axis] > 1]
    if not axes or plan.predicted is None:
        return None
    where = footprint(workload, plan.mesh)
    fsdp = plan.mesh["fsdp"]
    layer, others = (int(np.max(size) / fsdp) for size in (where.layer, where.others))
    layers = (others, *[layer] * workload.layers)
    accumulation = 1 if _once(plan) else min(plan.batch.accumulation, MICROBATCHES)
    busy = sum(plan.predicted.seconds.get(part, 0.0) for part in PASSES) / plan.batch.accumulation / workload.layers
    forward = busy / (4.0 if plan.predicted.seconds.get("recompute") else 3.0)
    links = calibrated(cluster, assumptions)
    rings = [group(links, plan.mesh, axis, assumptions.order) for axis in axes]
    made = replica_options(1, layers, accumulation, overlap=not cluster.shared, every=(1,))
    options = [option for option in made if option.schedule.bucket_order == "reverse"]
    known = {"launch": Duration(0.0), "update": Duration(0.0)}
    for i in range(len(layers)):
        known |= {f"forward/{i}": Duration(forward if i else 0.0)}
        known |= {f"backward/{i}": Duration(busy - forward if i else 0.0)}
    for kind in {op.kind for option in options for op in option.graph.operations if op.kind.startswith("all_reduce/")}:
        size = float(kind.partition("/")[2])
        known[kind] = Duration(sum(float(ring.all_reduce(size)[0]) for ring in rings))
    return choose(options, Profile(known), draws=1)


def _once(plan: Plan) -> bool:
    """Whether replicas sum their gradients once per step; a plain step sums after every microbatch."""
    return plan.batch.balance is not None

"""Which plan a run follows, and what it is expected to cost."""

import dataclasses
from pathlib import Path

from jaxlm.config import Run
from jaxlm.folder import Folder
from jaxlm.ledger import constants
from planners.machines.topology import Cluster
from planners.plan import Plan, Workload
from planners.search import beyond, check
from planners.search import plan as search_plan


def choose_plan(
    run: Run, before: Run | None, folder: Folder, file: Path | None, workload: Workload, cluster: Cluster
) -> tuple[Plan, str]:
    """The plan to follow and where it comes from: a file, this run's own, or a new search. Raises PlanError."""
    if file is not None:
        plan = Plan.load(file)
        check(plan, workload, cluster)
        return plan, f"replayed from {file}"
    if before is not None and before.plan == run.plan and folder.plan.exists():
        plan = Plan.load(folder.plan)
        if plan.devices == cluster.count:
            check(plan, workload, cluster)
            return plan, "as this run was started"
    plan = calibrated_plan(run, workload, cluster)
    better = beyond(plan, workload, cluster, run.plan, constants(cluster, workload, run.plan)[0])
    return plan, "searched for the devices found" + (f"; {better}" if better else "")


def calibrated_plan(run: Run, workload: Workload, cluster: Cluster) -> Plan:
    """The plan of a search with the constants that runs on this kind of machine have taught; it says which."""
    assumptions, learnt = constants(cluster, workload, run.plan)
    plan = search_plan(workload, cluster, run.plan, assumptions)
    return dataclasses.replace(plan, assumptions={"calibration": learnt, **plan.assumptions})


def beside(plan: Plan, cluster: Cluster, extra: int, fraction: float) -> str:
    """What an exchange of gradients keeps on each device, which the plan's prediction knows nothing of: `extra` bytes;
    a warning where both do not fit into the share of a device's memory that a plan may use."""
    said = f"the exchange of gradients keeps {extra:,} bytes per device (by count; in no plan's prediction)"
    if plan.predicted is None:
        return said
    memory, most = plan.predicted.memory_bytes, fraction * cluster.device.memory
    if memory + extra <= most:
        return said
    return (
        f"warning: {said}; with the {memory / 2**30:.2f} GiB that are predicted that is more than the "
        f"{most / 2**30:.2f} GiB a plan may use, and training may run out of memory: take another scheme, smaller "
        "microbatches or more fsdp"
    )


def predicted(plan: Plan, cluster: Cluster) -> str:
    """What the cost model expects, in one line, and where the rest is written."""
    if plan.predicted is None:
        return "no prediction: the plan was made by hand"
    memory, capacity = plan.predicted.memory_bytes, cluster.device.memory
    rival = f"; next best: {plan.alternatives[0].summary}" if plan.alternatives else ""
    return (
        f"predicted: {memory / 2**30:.2f} of {capacity / 2**30:.1f} GiB per device, "
        f"{plan.predicted.step_seconds:.3g} s per step{rival} (why: plan.txt in the run directory)"
    )

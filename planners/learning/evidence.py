"""What earlier runs on a machine tell the agent about the plans of this one."""

from collections.abc import Sequence

from planners.learning.arms import sizes
from planners.learning.belief import Evidence
from planners.learning.ledger import Entry, item, latest
from planners.learning.together import apart
from planners.machines.topology import Cluster
from planners.plan import Workload
from planners.prices.assumptions import Assumptions


def job(workload: Workload, cluster: Cluster) -> str:
    """Names what runs have in common whose plans can be compared directly: the work of a step, and the devices."""
    return (
        f"{workload.name}, {workload.parameter_count} parameters, {workload.batch} x {workload.sequence}, "
        f"{workload.compute_dtype} {workload.kernel}, {cluster.count} devices"
    )


def evidence(entries: Sequence[Entry], assumptions: Assumptions) -> tuple[Evidence, ...]:
    """The runs of one machine beside what the cost model says of them now.

    They are priced anew with the constants that price the plans to choose among: what those have learnt from the same
    runs already must not count twice. Left out are runs that the cost model has no price for, and of runs that repeat a
    plan for the same work all but the latest.
    """
    runs = latest(entries)
    parts = apart([item(entry) for entry in runs])(assumptions)
    return tuple(
        Evidence(
            job=job(entry.workload, entry.cluster),
            parts={name: float(seconds[row]) for name, seconds in parts.items()},
            sizes=sizes(entry.plan, entry.workload),
            seconds=entry.measured.step_seconds,
        )
        for row, entry in enumerate(runs)
    )

"""Tables beside a plan: what rules of thumb would have picked, which plans trade memory for time, uneven splits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planners.explain import duration, gib, table
from planners.machines.topology import Cluster
from planners.plan import Plan, Workload
from planners.prices.assumptions import Assumptions
from planners.prices.paper_cost import c_comm_eq7
from planners.space.baselines import BASELINES
from planners.space.choices import Choices, priced_choices, summarise
from planners.space.mixed import Uneven, uneven
from planners.space.ranking import pareto
from planners.wishes import Search

COMMUNICATION = ("tensor_parallel", "context_ring", "pipeline_hops", "fsdp_gather", "gradient_sync", "weight_gather")
"""Parts of the seconds that are communication, as far as compute does not hide it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """One plan among all choices of its search."""

    plan: Plan
    workload: Workload
    cluster: Cluster
    choices: Choices
    splits: Sequence[Uneven]
    gradient_norm: float = 1.0

    @property
    def best(self) -> float:
        """Predicted seconds of the plan."""
        assert self.plan.predicted is not None
        return self.plan.predicted.step_seconds

    def baselines(self) -> dict[str, int | None]:
        """Row that each rule of thumb picks among the choices that fit."""
        return {name: pick(self.choices.candidates, self.choices.fits) for name, pick in BASELINES.items()}

    def front(self) -> np.ndarray:
        """Rows that fit and that no other beats in both time and memory, fastest first."""
        rows = np.flatnonzero(self.choices.fits)
        prices = self.choices.prices
        return rows[pareto(prices.step_seconds[rows], prices.memory_bytes[rows])]

    @property
    def eq7(self) -> tuple[float, float]:
        """Communication of the plan: C_comm of eq. 7 as printed, and the seconds that are priced instead."""
        assert self.plan.predicted is not None
        at = self.choices.candidates
        mine = np.ones(len(at), bool)
        for axis, size in self.plan.mesh.items():
            mine &= at.sizes[axis] == size
        rows = at.take(np.flatnonzero(mine & (at.microbatch == self.plan.batch.microbatch))[:1])
        printed = c_comm_eq7(rows, self.cluster, self.gradient_norm, np.array([self.plan.batch.accumulation]))
        priced = sum(self.plan.predicted.seconds.get(name, 0.0) for name in COMMUNICATION)
        return float(printed[0]) if len(printed) else 0.0, priced

    def text(self) -> str:
        """All tables for a terminal."""
        rows = []
        for name, row in self.baselines().items():
            if row is None:
                rows.append((name, "finds nothing that fits", "", "", ""))
                continue
            choice = self.choices[row]
            seconds = choice.predicted.step_seconds
            rows.append(
                (
                    name,
                    summarise(choice, self.workload),
                    duration(seconds),
                    gib(choice.predicted.memory_bytes),
                    f"{seconds / self.best - 1.0:+.1%}",
                )
            )
        sections = [table(("what rules of thumb pick", "", "predicted step", "predicted memory", "slower"), rows)]
        lines = []
        for row in thinned(self.front(), 8):
            choice = self.choices[row]
            lines.append(
                (
                    summarise(choice, self.workload),
                    duration(choice.predicted.step_seconds),
                    gib(choice.predicted.memory_bytes),
                )
            )
        sections.append(table(("less memory for more time", "predicted step", "predicted memory"), lines))
        printed, priced = self.eq7
        sections.append(
            f"c_comm_eq7 {printed:.4g} (eq. 7 as printed, no unit; gradient norm {self.gradient_norm:g}); "
            f"priced instead: {duration(priced)} of communication that compute does not hide"
        )
        if self.splits:
            found = [
                (
                    summarise(self.choices[one.row], self.workload),
                    one.describe(self.cluster),
                    duration(one.seconds),
                    f"{1.0 - one.seconds / one.even:.0%}",
                )
                for one in self.splits
            ]
            sections.append(table(("unequal devices", "split", "predicted step", "faster than even"), found))
        return "\n\n".join(sections)

    def facts(self) -> dict[str, Any]:
        """Plain data of the same."""

        def row(at: int) -> dict[str, Any]:
            choice = self.choices[at]
            return {
                "summary": summarise(choice, self.workload),
                "step_seconds": choice.predicted.step_seconds,
                "memory_bytes": choice.predicted.memory_bytes,
            }

        printed, priced = self.eq7
        return {
            "baselines": {name: None if at is None else row(at) for name, at in self.baselines().items()},
            "pareto": [row(int(at)) for at in self.front()],
            "c_comm_eq7": printed,
            "priced_communication_seconds": priced,
            "uneven": [
                row(one.row) | {"kind": one.kind, "seconds": one.seconds, "even": one.even, "counts": list(one.counts)}
                for one in self.splits
            ],
        }


def compare(
    plan: Plan,
    workload: Workload,
    cluster: Cluster,
    search: Search,
    axes: Sequence[str],
    *,
    gradient_norm: float = 1.0,
    assumptions: Assumptions | None = None,
) -> Comparison:
    """The plan among all choices over the same axes; on unequal devices also what uneven splits would bring."""
    assumptions = assumptions or Assumptions()
    choices = priced_choices(workload, cluster, search, assumptions, axes)
    splits = uneven(
        workload,
        cluster,
        choices.candidates,
        memory_fraction=search.fraction(cluster.device.memory),
        unroll=search.unroll,
        assumptions=assumptions,
        count=5,
    )
    return Comparison(
        plan=plan,
        workload=workload,
        cluster=cluster,
        choices=choices,
        splits=splits,
        gradient_norm=gradient_norm,
    )


def thinned(rows: np.ndarray, count: int) -> list[int]:
    """At most `count` of the rows, evenly spread, first and last among them."""
    if len(rows) <= count:
        return [int(row) for row in rows]
    return [int(rows[at]) for at in np.linspace(0, len(rows) - 1, count).round().astype(int)]

"""The same problem as a mixed-integer linear program, solved by HiGHS: the oracle that the dynamic program must equal.

Positions 1..S hold at most one run each, in any order of the policies, so that nothing is assumed of the best order.
"""

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_array

from planners.plan import PlanError
from planners.remat.least import least
from planners.remat.policy import Mix, Problem, Run
from planners.remat.refusal import refusal


def solve(problem: Problem) -> Mix:
    """The mix of the fewest extra seconds that fits. Raises PlanError when none does."""
    program = _Program(problem)
    found = milp(
        program.cost,
        integrality=np.ones(program.size),
        bounds=Bounds(np.zeros(program.size), program.most),  # pyright: ignore[reportArgumentType]
        constraints=program.constraints(),
        options={"mip_rel_gap": 0.0},
    )
    if found.status == 2:
        raise PlanError(refusal(problem, least(problem)))
    if found.x is None:
        raise PlanError(f"remat: HiGHS found no answer: {found.message}")
    return Mix.of(program.runs(np.round(found.x).astype(int)), problem.classes)


class _Program:
    """Variables: for each position and choice whether the choice stands there, then how many groups it has there."""

    def __init__(self, problem: Problem):
        self.problem, self.positions = problem, problem.most_segments
        self.choices = [(k, policy) for k, kind in enumerate(problem.classes) for policy in kind.policies]
        self.half, self.size = (self.positions * len(self.choices) * n for n in (1, 2))
        counts = [problem.classes[k].count // p.group for k, p in self.choices] * self.positions
        seconds = [p.group * p.seconds for _, p in self.choices] * self.positions
        self.cost = np.concatenate([np.zeros(self.half), seconds])
        self.most = np.concatenate([np.ones(self.half), counts])
        # Bytes in units near 1, so that the solver's absolute tolerance is a relative one.
        self.unit = max(problem.budget, 1e-300)

    def stands(self, position: int, choice: int) -> int:
        return position * len(self.choices) + choice

    def groups(self, position: int, choice: int) -> int:
        return self.half + self.stands(position, choice)

    def constraints(self) -> LinearConstraint:
        rows: list[dict[int, float]] = []
        low: list[float] = []
        high: list[float] = []

        def add(row: dict[int, float], least: float, most: float) -> None:
            rows.append(row)
            low.append(least)
            high.append(most)

        for position in range(self.positions):
            add({self.stands(position, c): 1.0 for c in range(len(self.choices))}, -np.inf, 1.0)
            for c, (k, policy) in enumerate(self.choices):
                most = self.problem.classes[k].count // policy.group
                shortest = -(-self.problem.least(k, policy) // policy.group)
                add({self.groups(position, c): 1.0, self.stands(position, c): -float(most)}, -np.inf, 0.0)
                add({self.groups(position, c): 1.0, self.stands(position, c): -float(shortest)}, 0.0, np.inf)
            if position:
                self._follows(position, add)
            self._fits(position, add)
        for k, kind in enumerate(self.problem.classes):
            layers = {
                self.groups(s, c): float(policy.group)
                for s in range(self.positions)
                for c, (of, policy) in enumerate(self.choices)
                if of == k
            }
            add(layers, kind.count, kind.count)
        table = lil_array((len(rows), self.size))
        for i, row in enumerate(rows):
            for column, value in row.items():
                table[i, column] = value
        return LinearConstraint(table.tocsr(), low, high)  # pyright: ignore[reportArgumentType]

    def _follows(self, position: int, add) -> None:
        """No gap between positions, and the classes in their order: a run of class k stands behind one of k or less."""
        for last in range(len(self.problem.classes)):
            row = {self.stands(position - 1, c): 1.0 for c, (k, _) in enumerate(self.choices) if k <= last}
            row |= {self.stands(position, c): -1.0 for c, (k, _) in enumerate(self.choices) if k <= last}
            add(row, 0.0, np.inf)

    def _fits(self, position: int, add) -> None:
        """Bytes while the run at this position goes back; at an empty one less is asked than at the last run."""
        row: dict[int, float] = {}
        for c, (k, policy) in enumerate(self.choices):
            kind = self.problem.classes[k]
            for s in range(self.positions):
                held = kind.in_flight - 1 + (s <= position)
                size = policy.group * (held * policy.kept + (kind.freed if s >= position else 0.0))
                row[self.groups(s, c)] = size / self.unit
            row[self.stands(position, c)] = policy.transient / self.unit
        add(row, -np.inf, self.problem.budget / self.unit)

    def runs(self, values: np.ndarray) -> list[Run]:
        found = []
        for s in range(self.positions):
            for c, (k, policy) in enumerate(self.choices):
                if groups := int(values[self.groups(s, c)]):
                    found.append(Run(k, policy, groups * policy.group))
        return found

"""The sets of values that a block with many names may keep, by integer programs: as `Block.front`, without trying all.

Variables: whether a value is kept, whether an operation runs again. A value that is read is kept or made again, and an
operation that runs again needs each of its inputs in the same way. The front is walked from the fastest set to the
leanest: the fewest seconds within the bytes allowed, the fewest bytes for those seconds, then one step less is allowed.
"""

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from planners.plan import PlanError
from planners.remat.block import Block
from planners.remat.policy import ROUNDING


def front(block: Block) -> np.ndarray:
    """[set, name] the sets that no other one beats or equals in bytes and seconds, fewest bytes first."""
    table, low = _needs(block)
    names, operations = len(block.names), len(block.operations)
    sizes = np.concatenate([block.sizes, np.zeros(operations)])
    seconds = np.concatenate([np.zeros(names), block.seconds])
    # In units near 1: the solver's tolerances are absolute.
    sizes, seconds = sizes / max(sizes.sum(), 1e-300), seconds / max(seconds.sum(), 1e-300)
    step = _step(block.sizes) / max(block.sizes.sum(), 1e-300)

    def solve(cost: np.ndarray, limits: list[tuple[np.ndarray, float]]) -> np.ndarray | None:
        rows = [table, *(csr_array(row[None]) for row, _ in limits)]
        constraints = [LinearConstraint(rows[0], low, np.inf)]  # pyright: ignore[reportArgumentType]
        constraints += [LinearConstraint(row, -np.inf, most) for row, (_, most) in zip(rows[1:], limits, strict=True)]
        found = milp(
            cost,
            integrality=np.ones(names + operations),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None and found.status != 2:
            raise PlanError(f"remat: HiGHS found no answer for a block of {names} values: {found.message}")
        return None if found.x is None else np.round(found.x)

    allowed, sets = np.inf, []
    while True:
        fastest = solve(seconds, [(sizes, allowed)] if allowed < np.inf else [])
        if fastest is None:
            break
        leanest = solve(sizes, [(seconds, float(seconds @ fastest) + ROUNDING)])
        best = fastest if leanest is None else leanest
        sets.append(best[:names] > 0.5)
        allowed = float(sizes @ best) - step / 2
        if allowed < 0:
            break
    return np.array(sets[::-1])


def _step(sizes: np.ndarray) -> float:
    """Bytes by which two sets differ at least, if they differ."""
    whole = np.round(sizes).astype(np.int64)
    if np.any(whole != sizes):
        raise PlanError(f"remat: the bytes of a block with {len(sizes)} values must be whole numbers, not {sizes}")
    return float(np.gcd.reduce(whole[whole > 0])) if np.any(whole > 0) else 1.0


def _needs(block: Block) -> tuple[csr_array, np.ndarray]:
    """Rows table @ (kept, runs) >= low: what is needed is kept or made."""
    names, made = {name: i for i, name in enumerate(block.names)}, {}
    for i, operation in enumerate(block.operations):
        made |= {name: len(names) + i for name in operation.outputs}
    rows, low = [], []

    def need(value: str, unless: int | None) -> None:
        row = np.zeros(len(names) + len(block.operations))
        row[made[value]] = 1.0
        if value in names:
            row[names[value]] = 1.0
        if unless is not None:
            row[unless] -= 1.0
        rows.append(row)
        low.append(0.0 if unless is not None else 1.0)

    for value in sorted(block.read):
        need(value, None)
    for i, operation in enumerate(block.operations):
        for value in operation.inputs:
            if value in made:
                need(value, len(names) + i)
    return csr_array(np.array(rows)), np.array(low)

"""Plans chosen without a cost model: the simple rule, Megatron's heuristic, data parallelism only, and chance."""

from collections.abc import Callable, Sequence

import numpy as np

from experiments.benchmarks.published.judge import mean_regret
from experiments.benchmarks.published.tables import Table

Key = Callable[[dict[str, np.ndarray]], Sequence[np.ndarray]]

RULES: dict[str, Key] = {
    "simple rule (least tp x pp, least tp, largest microbatch)": lambda c: (c["tp"] * c["pp"], c["tp"], -c["mbs"]),
    "simple rule (least tp x pp, least tp, microbatch next to 4)": lambda c: (c["tp"] * c["pp"], c["tp"], c["near"]),
    "Megatron rule (largest tp up to 8, least pp, smallest microbatch)": lambda c: (c["big"], c["pp"], c["mbs"]),
    "Megatron rule (largest tp up to 8, least pp, microbatch next to 4)": lambda c: (c["big"], c["pp"], c["near"]),
    "data parallel only (largest dp, microbatch next to 4)": lambda c: (-c["dp"], c["near"], c["tp"]),
}
"""Name -> columns by which plans are sorted, the first one first."""


def regrets(table: Table, measured: np.ndarray, members: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """What every rule, and a random plan on average, lose against the best measured plan, %, per group."""
    tp, dp, pp, mbs = (table.numbers(name) for name in ("tp", "dp", "pp", "micro_batch"))
    columns = {"tp": tp, "dp": dp, "pp": pp, "mbs": mbs, "near": np.abs(np.log2(mbs) - 2.0)}
    columns["big"] = np.where(tp <= 8, -tp, np.inf)
    found = {"random plan (mean of all)": mean_regret(measured, members)}
    for name, key in RULES.items():
        lost = []
        for rows in members:
            order = np.lexsort([column[rows] for column in reversed(key(columns))])
            lost.append(100.0 * (measured[rows[order[0]]] / np.min(measured[rows]) - 1.0))
        found[name] = np.array(lost)
    return found

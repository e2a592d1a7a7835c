"""Inside one block: which values to store (z = 1), which to compute once more, which to put into host memory.

The backward pass reads some values of the forward pass. What is not kept is computed again from what is: the slice of
the operations that leads from the kept values and the block's input, which is always kept, to those that are read.
Sets of kept values that no other one beats in bytes and seconds are the policies among which the layers of a stage
choose (Checkmate inside a block, arXiv:1910.02653; Rockmate, ICML 2023). Every set is tried up to MOST names, beyond
that an integer program finds them (`block_program`).
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from planners.plan import Operation, PlanError, Tensor, Workload
from planners.remat.policy import ROUNDING

MOST = 15
"""Names of which every set is tried: 32,768 of them."""

UNNAMED = "residual_"
"""How values begin that have no name in the program: they cannot be saved by name."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """The forward pass of one block as its backward pass sees it, on one device.

    Attributes:
        operations: in the order in which they run.
        read: names of the values that the backward pass reads, the block's input left out.
        names: of the values that may be kept, in the order in which they are computed.
        sizes: bytes of each of `names`.
        seconds: of running each operation once more.
    """

    operations: tuple[Operation, ...]
    read: frozenset[str]
    names: tuple[str, ...]
    sizes: np.ndarray
    seconds: np.ndarray

    @classmethod
    def of(cls, workload: Workload, size: Callable[[Tensor], float], seconds: Callable[[Operation], float]) -> "Block":
        """The block of a workload; `size`: bytes of a value on one device, `seconds`: of an operation there.

        Raises PlanError where the workload does not say what its blocks compute.
        """
        if not workload.operations:
            raise PlanError(
                f"{workload.name} does not say what its blocks compute, so nothing can be rematerialised by value"
            )
        made = {name for operation in workload.operations for name in operation.outputs}
        read = frozenset(tensor.name for tensor in workload.activations if tensor.name in made)
        used = read | {name for operation in workload.operations for name in operation.inputs}
        values = [t for t in workload.values if not t.name.startswith(UNNAMED) and t.name in used]
        return cls(
            operations=workload.operations,
            read=read,
            names=tuple(tensor.name for tensor in values),
            sizes=np.array([size(tensor) for tensor in values], float),
            seconds=np.array([seconds(operation) for operation in workload.operations], float),
        )

    @property
    def made(self) -> frozenset[str]:
        """Names of the values that the operations compute."""
        return frozenset(name for operation in self.operations for name in operation.outputs)

    def chosen(self, names: Sequence[str]) -> np.ndarray:
        """[1, name] the set of these names. Raises PlanError for a name that may not be kept."""
        if unknown := sorted(set(names) - set(self.names)):
            raise PlanError(
                f"remat keeps {', '.join(unknown)}, which the block does not name; it names {', '.join(self.names)}"
            )
        return np.array([[name in names for name in self.names]])

    def reruns(self, chosen: np.ndarray) -> np.ndarray:
        """[set, operation] which operations run once more when only the `chosen` ([set, name]) values are kept."""
        at = {name: column for column, name in enumerate(self.names)}
        no = np.zeros(len(chosen), bool)
        kept = lambda name: chosen[:, at[name]] if name in at else no
        made = self.made
        missing = {name: ~kept(name) for name in made}
        wanted = {name: missing[name] if name in self.read else no for name in made}
        found = np.zeros((len(chosen), len(self.operations)), bool)
        for column in reversed(range(len(self.operations))):
            operation = self.operations[column]
            runs = functools.reduce(np.logical_or, (wanted[name] for name in operation.outputs))
            found[:, column] = runs
            for name in made.intersection(operation.inputs):
                wanted[name] = wanted[name] | (runs & missing[name])
        return found

    def subsets(self) -> np.ndarray:
        """[set, name] every set of names."""
        return ((np.arange(2 ** len(self.names))[:, None] >> np.arange(len(self.names))) & 1).astype(bool)

    def front(self) -> np.ndarray:
        """[set, name] the sets that no other one beats or equals in bytes and seconds, fewest bytes first."""
        if len(self.names) > MOST:
            from planners.remat.block_program import front

            return front(self)
        chosen = self.subsets()
        seconds = self.reruns(chosen) @ self.seconds
        return chosen[unbeaten(chosen @ self.sizes, seconds, chosen.sum(axis=1))]


def unbeaten(held: np.ndarray, seconds: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Rows that no other row beats or equals in both; of equal ones that with the fewest `ties`. Fewest bytes first."""
    seconds = np.round(seconds / max(float(seconds.max()) * ROUNDING, 1e-300))
    order = np.lexsort([ties, seconds, held])
    best = np.minimum.accumulate(seconds[order])
    return order[np.append(True, seconds[order][1:] < best[:-1])]

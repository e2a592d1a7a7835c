"""The operations of one training step: where each runs, what it waits for, and an order in which they run.

The graph has operations as nodes, not devices: links between devices are cyclic, a step is not (paper, section 3.3 and
eq. 11).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

Order: TypeAlias = Mapping[str, Sequence[str]]
"""Resource -> names of its operations, first to last."""


class NeverEnds(ValueError):
    """Operations that wait for each other in a circle."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A piece of compute on a device, or a message or collective on a link.

    Attributes:
        name: unique in its graph.
        kind: which duration it has; operations of one kind are drawn from one distribution.
        where: resources that it holds while it runs, e.g. a device, a link, or both where a link's work needs the
            device's cores.
        after: names of the operations that must have ended.
    """

    name: str
    kind: str
    where: tuple[str, ...]
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """Operations of one step. Raises ValueError for a repeated name or for waiting for an unknown operation."""

    operations: tuple[Operation, ...]

    def __post_init__(self) -> None:
        if len(self.index) != len(self.operations):
            raise ValueError("two operations of one graph have the same name")
        for operation in self.operations:
            for name in operation.after:
                if name not in self.index:
                    raise ValueError(f"operation {operation.name} waits for {name}, which is not in the graph")

    @cached_property
    def index(self) -> dict[str, int]:
        """Name -> position in `operations`."""
        return {operation.name: i for i, operation in enumerate(self.operations)}

    @cached_property
    def resources(self) -> dict[str, list[str]]:
        """Resource -> names of what runs there, in the order of `operations`."""
        found: dict[str, list[str]] = {}
        for operation in self.operations:
            for resource in operation.where:
                found.setdefault(resource, []).append(operation.name)
        return found

    @cached_property
    def waits(self) -> list[tuple[int, ...]]:
        """Positions of the operations that each operation waits for."""
        return [tuple(self.index[name] for name in operation.after) for operation in self.operations]

    def check(self, order: Order) -> None:
        """Raises ValueError unless `order` names exactly the operations of every resource."""
        for resource, names in self.resources.items():
            if resource not in order:
                raise ValueError(f"the order says nothing of {resource}")
            if sorted(order[resource]) != sorted(names):
                odd = sorted(set(order[resource]) ^ set(names))
                what = f"{odd[0]} is missing or does not run there" if odd else "an operation stands twice"
                raise ValueError(f"order of {resource}: {what}")


def sorted_waits(waits: Sequence[Iterable[int]], names: Sequence[str]) -> list[int]:
    """Positions so that each comes after what it waits for (Kahn). Raises NeverEnds naming operations in a circle."""
    left = [len(set(before)) for before in waits]
    then: list[list[int]] = [[] for _ in waits]
    for i, before in enumerate(waits):
        for j in set(before):
            then[j].append(i)
    ready = [i for i, count in enumerate(left) if count == 0]
    done: list[int] = []
    while ready:
        i = ready.pop()
        done.append(i)
        for j in then[i]:
            left[j] -= 1
            if left[j] == 0:
                ready.append(j)
    if len(done) < len(left):
        stuck = [names[i] for i, count in enumerate(left) if count > 0][:4]
        raise NeverEnds(f"this order never ends: {', '.join(stuck)} wait for each other")
    return done


def tails(graph: Graph, seconds: np.ndarray) -> np.ndarray:
    """Seconds from the start of each operation to the end of the step along the longest chain of waits, for ranks."""
    names = [operation.name for operation in graph.operations]
    found = seconds.astype(float).copy()
    for i in reversed(sorted_waits(graph.waits, names)):
        for j in graph.waits[i]:
            found[j] = max(found[j], seconds[j] + found[i])
    return found

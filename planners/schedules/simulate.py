"""How long a step takes when its operations run in a given order, and a list scheduler that makes orders.

An order is static, as a compiled program's is: each resource runs its operations one after another as listed and waits
where an operation is not ready. Then the end of every operation is the longest path to it, and many draws of the
durations are followed at once.
"""

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from planners.schedules.dag import Graph, NeverEnds, Order, sorted_waits, tails


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """One order under n draws of the durations.

    Attributes:
        start: seconds [operations, draws] at which each operation begins.
        end: seconds [operations, draws].
    """

    start: np.ndarray
    end: np.ndarray

    @property
    def makespan(self) -> np.ndarray:
        """Seconds of the step in each draw."""
        return self.end.max(axis=0)


def run(graph: Graph, order: Order, seconds: np.ndarray) -> Timeline:
    """Follows `order` with durations `seconds` [operations, draws]. Raises ValueError for an order that never ends."""
    graph.check(order)
    waits = [list(before) for before in graph.waits]
    for names in order.values():
        for before, after in itertools.pairwise(names):
            waits[graph.index[after]].append(graph.index[before])
    start, end = np.zeros_like(seconds), np.zeros_like(seconds)
    for i in sorted_waits(waits, [operation.name for operation in graph.operations]):
        for j in waits[i]:
            np.maximum(start[i], end[j], out=start[i])
        np.add(start[i], seconds[i], out=end[i])
    return Timeline(start, end)


def list_schedule(graph: Graph, seconds: np.ndarray, priority: Sequence[float] | np.ndarray | None = None) -> Order:
    """An order in which no resource stays idle while something could run there (Graham's list scheduling).

    Args:
        seconds: expected duration of each operation [operations].
        priority: of each operation; the greatest goes first. By default the longest chain that follows it.
    """
    rank = tails(graph, seconds) if priority is None else np.asarray(priority, dtype=float)
    then: list[list[int]] = [[] for _ in graph.operations]
    left = []
    for i, before in enumerate(graph.waits):
        left.append(len(set(before)))
        for j in set(before):
            then[j].append(i)
    key = lambda i: (-rank[i], i)
    ready = sorted((i for i, count in enumerate(left) if count == 0), key=key)
    busy: set[str] = set()
    running: list[tuple[float, int]] = []
    order: dict[str, list[str]] = {resource: [] for resource in graph.resources}
    now = 0.0
    while ready or running:
        waiting = []
        for i in ready:
            operation = graph.operations[i]
            if busy.intersection(operation.where):
                waiting.append(i)
                continue
            busy.update(operation.where)
            for resource in operation.where:
                order[resource].append(operation.name)
            heapq.heappush(running, (now + seconds[i], i))
        ready = waiting
        if not running:
            break
        now, i = heapq.heappop(running)
        ended = [i]
        while running and running[0][0] <= now:
            ended.append(heapq.heappop(running)[1])
        for i in ended:
            busy.difference_update(graph.operations[i].where)
            for j in then[i]:
                left[j] -= 1
                if left[j] == 0:
                    ready.append(j)
        ready.sort(key=key)
    return order


def search_order(graph: Graph, seconds: np.ndarray, *, tries: int = 50, seed: int = 0) -> Order:
    """The shortest of many list schedules, then changed by moving one operation at a time while that shortens it.

    The longest chain knows nothing of resources that stand idle, so now and then another operation had better go first;
    and a list schedule never waits on purpose, which the best order sometimes does. For graphs of tens of operations.
    """
    rank, rng = tails(graph, seconds), np.random.default_rng(seed)
    length, best = np.inf, {}
    for attempt in range(tries):
        spread = 2.0 * attempt / tries
        order = list_schedule(graph, seconds, rank * np.exp(spread * rng.standard_normal(len(rank))))
        taken = _length(graph, order, seconds)
        if taken < length * (1 - 1e-9):
            length, best = taken, order
    while True:
        for moved in _neighbours(best):
            taken = _length(graph, moved, seconds)
            if taken < length * (1 - 1e-9):
                length, best = taken, moved
                break
        else:
            return best


def _length(graph: Graph, order: Order, seconds: np.ndarray) -> float:
    """Seconds of the step; infinite for an order that never ends."""
    try:
        return float(run(graph, order, seconds[:, None]).makespan[0])
    except NeverEnds:
        return np.inf


def _neighbours(order: Order) -> Iterator[Order]:
    """The orders in which one operation stands elsewhere on its resource."""
    for resource, names in order.items():
        for i, name in enumerate(names):
            others = [*names[:i], *names[i + 1 :]]
            for j in range(len(names)):
                if j not in (i, i + 1):
                    yield {**order, resource: [*others[:j], name, *others[j:]]}

"""What the profiling agents of a job have seen: durations of operations, and devices or links that have become slow."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from planners.schedules.dag import Graph
from planners.schedules.durations import Duration


@dataclass(frozen=True, slots=True)
class Profile:
    """Distributions that orders are judged by; every method returns a new one.

    Attributes:
        durations: by kind of operation.
        slow: resource -> factor by which everything that holds it takes longer, e.g. a device that is hot or a link
            that lost bandwidth; 1 where nothing is said.
    """

    durations: Mapping[str, Duration]
    slow: Mapping[str, float] = field(default_factory=dict)

    def measured(self, kind: str, seconds: float) -> "Profile":
        """One operation of `kind` took `seconds`: a sample more, the oldest forgotten."""
        known = self.durations.get(kind, Duration(seconds))
        return dataclasses.replace(self, durations={**self.durations, kind: known.observe(seconds)})

    def slowed(self, resource: str, factor: float) -> "Profile":
        """Everything on `resource` now takes `factor` times as long as its durations say; 1 ends the event."""
        if factor <= 0:
            raise ValueError(f"{resource}: slowed by {factor:g}; the factor must be positive")
        return dataclasses.replace(self, slow={**self.slow, resource: factor})

    def draw(self, graph: Graph, draws: int, seed: int) -> np.ndarray:
        """Seconds [operations, draws]. Raises ValueError naming a kind without a duration."""
        kinds: dict[str, list[int]] = {}
        for i, operation in enumerate(graph.operations):
            kinds.setdefault(operation.kind, []).append(i)
        seconds = np.empty((len(graph.operations), draws))
        for kind, rows in kinds.items():
            if kind not in self.durations:
                raise ValueError(f"no duration of {kind!r}; known: {', '.join(sorted(self.durations))}")
            seconds[rows] = self.durations[kind].draw([graph.operations[i].name for i in rows], draws, seed)
        if self.slow:
            factors = [max(self.slow.get(r, 1.0) for r in op.where) for op in graph.operations]
            seconds *= np.array(factors)[:, None]
        return seconds

    def expected(self, graph: Graph) -> np.ndarray:
        """Mean seconds of every operation [operations]."""
        means = Profile({kind: Duration(d.mean) for kind, d in self.durations.items()}, self.slow)
        return means.draw(graph, 1, 0)[:, 0]

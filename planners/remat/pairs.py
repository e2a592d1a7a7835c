"""The last two runs of a stage in closed form: of all ways to share what is left between two policies, the best.

Of R layers left, y get policy b and R - y policy a, which runs before b. The extra seconds and every byte count are
linear in y, so what fits is an interval of y and the best y is one of its ends.
"""

from dataclasses import dataclass
from math import lcm

import numpy as np

from planners.remat.labels import Runs
from planners.remat.policy import ROUNDING, Problem


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """Ordered pairs of policies of the first class: `front` runs before `back`; one entry per pair."""

    front: np.ndarray
    back: np.ndarray
    kept: np.ndarray
    transient: np.ndarray
    seconds: np.ndarray
    least: np.ndarray
    rank: np.ndarray
    """Of the back policy, where each policy has one."""
    flights: int
    freed: float
    step: np.ndarray
    """Layers between two counts that both groups divide."""
    start: np.ndarray
    """[pair, layers left] -> the least multiple of the back policy's group that leaves one of the front's, or -1."""

    @classmethod
    def of(cls, problem: Problem, runs: Runs) -> "Pairs":
        layers, policies = problem.classes[0], runs.policies
        many = len(policies)
        front, back = (grid.ravel() for grid in np.meshgrid(np.arange(many), np.arange(many), indexing="ij"))
        rank = np.zeros(many, int)
        rank[runs.policy] = runs.rank
        if runs.once:
            good = rank[front] < rank[back]
            front, back = front[good], back[good]
        groups = np.array([p.group for p in policies])
        kinds, which = np.unique(np.stack([groups[front], groups[back]], axis=1), axis=0, return_inverse=True)
        starts = np.array([_starts(int(a), int(b), layers.count) for a, b in kinds]).reshape(-1, layers.count + 1)
        column = lambda name: np.array([getattr(p, name) for p in policies], float)
        return cls(
            front=front,
            back=back,
            kept=column("kept"),
            transient=column("transient"),
            seconds=column("seconds"),
            least=np.array([problem.least(0, p) for p in policies]),
            rank=rank[back],
            flights=layers.in_flight,
            freed=layers.freed,
            step=np.array([lcm(int(a), int(b)) for a, b in kinds])[which.ravel()],
            start=starts[which.ravel()],
        )

    def best(
        self,
        pair: np.ndarray,
        left: np.ndarray,
        held: np.ndarray,
        waiting: np.ndarray,
        seconds: np.ndarray,
        limit: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """For label i and pair[i]: the layers of the back policy, and the seconds of the whole mix (inf where none
        fits).

        Args:
            pair: entries of this table.
            left, held, waiting, seconds: of the labels.
            limit: bytes.
        """
        a, b = self.front[pair], self.back[pair]
        ma, mb, flights, g = self.kept[a], self.kept[b], self.flights, self.freed
        # Bytes while the label's own layers, the back run and the front run go back: at y = 0, and per y.
        moments = (
            (held + flights * ma * left, flights * (mb - ma)),
            (waiting + self.transient[b] + flights * ma * left, flights * (mb - ma) + g),
            (waiting + self.transient[a] + (flights * ma + g) * left, (flights - 1) * mb - flights * ma),
        )
        low, high = self.least[b].astype(float), (left - self.least[a]).astype(float)
        good = low <= high
        for start, slope in moments:
            room = limit - start
            with np.errstate(divide="ignore", invalid="ignore"):
                most = room / slope
            high = np.where(slope > 0, np.minimum(high, most * (1 + ROUNDING)), high)
            low = np.where(slope < 0, np.maximum(low, most * (1 - ROUNDING)), low)
            good &= (slope != 0) | (room >= 0)
        offset, step = self.start[pair, left], self.step[pair]
        least = offset + np.ceil((low - offset) / step) * step
        largest = offset + np.floor((high - offset) / step) * step
        good &= (offset >= 0) & (least <= largest)
        gain = self.seconds[b] - self.seconds[a]
        back = np.where(gain < 0, largest, least)
        total = seconds + self.seconds[a] * left + gain * back
        return np.where(good, back, 0).astype(int), np.where(good, total, np.inf)


def _starts(front: int, back: int, count: int) -> np.ndarray:
    """For each number of layers left: the least multiple of `back` that leaves a multiple of `front`, or -1."""
    found = np.full(count + 1, -1)
    for y in range(0, lcm(front, back), back):
        rows = np.arange(count + 1)
        found[(found < 0) & ((rows - y) % front == 0)] = y
    return found

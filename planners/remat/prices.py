"""Prices per byte, and what layers must cost at least at each: the Lagrangian dual of eq. 10 with eqs. 8-9 as limit.

Dropping transients and order, a stage asks for n_k layers of each policy with sum F n_k m_k <= M. For any price
lambda >= 0 its seconds are at least sum over layers of min_k (t_k + lambda F m_k) - lambda M. The best price makes this
the linear relaxation; it is a slope of the lower convex hull of (F m_k, t_k).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planners.remat.policy import Policy, Problem

TRIED = 9
"""Prices whose bounds are compared: that of the whole stage and its neighbours."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prices:
    """Some prices, and the bounds they give.

    Attributes:
        price: seconds per byte.
        cost: per class, [policy, price] what one layer costs: seconds, and bytes at that price.
        layer: per class, the least that one layer costs at each price.
        before: per class, the least that all layers of the classes before it cost at each price.
        kept: per class, the least bytes of one layer.
        kept_before: per class, the least bytes of all layers of the classes before it.
        budget: bytes.
    """

    price: np.ndarray
    cost: list[np.ndarray]
    layer: list[np.ndarray]
    before: list[np.ndarray]
    kept: list[float]
    kept_before: list[float]
    budget: float

    def bounds(self, kind: int, left: np.ndarray, held: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        """[price, label] least seconds of any mix that ends in each label; each price gives a valid bound."""
        price = self.price[:, None]
        rest = self.before[kind][:, None] + self.layer[kind][:, None] * left
        return seconds + rest - price * (self.budget - held)

    def least(self, kind: int, left: np.ndarray) -> np.ndarray:
        """Bytes that the layers without a policy keep at least."""
        return self.kept_before[kind] + self.kept[kind] * left


def hull(kept: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Rows of the lower convex hull of (kept, seconds), by rising bytes and falling seconds."""
    found: list[int] = []
    for row in np.lexsort([seconds, kept]):
        if found and seconds[row] >= seconds[found[-1]]:
            continue
        while len(found) > 1:
            a, b = found[-2], found[-1]
            turn = (seconds[b] - seconds[a]) * (kept[row] - kept[a]) - (seconds[row] - seconds[a]) * (kept[b] - kept[a])
            if turn < 0:
                break
            found.pop()
        found.append(int(row))
    return np.array(found)


def slopes(problem: Problem, policies: Sequence[Sequence[Policy]]) -> tuple[np.ndarray, np.ndarray]:
    """Falling prices at which some layer changes its policy, and the bytes that the stage asks for just below each."""
    price, more, held = [], [], 0.0
    for kind, choices in zip(problem.classes, policies, strict=True):
        kept = kind.in_flight * np.array([p.kept for p in choices], float)
        seconds = np.array([p.seconds for p in choices], float)
        corners = hull(kept, seconds)
        held += kind.count * kept[corners[0]]
        bytes_, gain = np.diff(kept[corners]), -np.diff(seconds[corners])
        price.append(gain / bytes_)
        more.append(kind.count * bytes_)
    prices, extra = np.concatenate(price), np.concatenate(more)
    order = np.argsort(-prices, kind="stable")
    return prices[order], held + np.cumsum(extra[order])


def prices_of(problem: Problem, policies: Sequence[Sequence[Policy]]) -> Prices:
    """The prices around that at which the stage would just fill its budget."""
    falling, asked = slopes(problem, policies)
    at = int(np.searchsorted(asked, problem.budget))
    low = max(0, min(at - TRIED // 2, len(falling) - TRIED + 1))
    price = np.unique(np.append(falling[low : low + TRIED - 1], 0.0))[::-1]
    cost, kept = [], []
    for kind, choices in zip(problem.classes, policies, strict=True):
        sizes = kind.in_flight * np.array([p.kept for p in choices], float)
        seconds = np.array([p.seconds for p in choices], float)
        cost.append(seconds[:, None] + price * sizes[:, None])
        kept.append(float(sizes.min()))
    layer = [each.min(axis=0) for each in cost]
    before, kept_before = [np.zeros(len(price))], [0.0]
    for kind, each, size in zip(problem.classes, layer, kept, strict=True):
        before.append(before[-1] + kind.count * each)
        kept_before.append(kept_before[-1] + kind.count * size)
    return Prices(
        price=price,
        cost=cost,
        layer=layer,
        before=before[:-1],
        kept=kept,
        kept_before=kept_before[:-1],
        budget=problem.budget,
    )

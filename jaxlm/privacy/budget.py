"""A budget as it is declared, and the exact arithmetic in which it is spent.

Costs are whole numbers of 1e-15 nats, each rounded up, and allowances are rounded down: sums never drift.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

from jaxlm.privacy.accounting import conversion, costs
from jaxlm.privacy.errors import PrivacyError
from jaxlm.privacy.mechanisms import Mechanism

RELATION = "add-or-remove-one"
_DIGITS = Decimal("1e15")
Units = tuple[int | None, ...]
"""Per declared order; None is infinite."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Epsilon and delta, and the Renyi orders with which they are enforced.

    A charge passes while the sum at one order at least stays within that order's allowance. With several orders each
    has a share of delta: whatever the order that holds at the end, and however the queries were chosen, the ways to end
    at order i have probability at most e**epsilon times that on the neighbouring rows plus share_i * delta, since up to
    there the interaction is one that the filter of order i alone would have let pass; over all orders the shares add up
    to delta. One order, chosen for what is planned, wastes nothing.

    Attributes:
        epsilon, delta: of everything together, for one protected unit added or removed.
        shares: declared order -> share of delta; `math.inf` is pure DP and needs none of it.
        unit: what is protected, in words.

    Raises:
        PrivacyError: naming what cannot be.
    """

    epsilon: float
    delta: float
    shares: Mapping[float, float] = field(default_factory=lambda: {8.0: 1.0})
    unit: str = "one row"

    def __post_init__(self) -> None:
        if not _number(self.epsilon) or self.epsilon <= 0:
            raise PrivacyError(f"epsilon={self.epsilon} must be a finite number above 0")
        if not _number(self.delta) or not 0 <= self.delta < 1:
            raise PrivacyError(f"delta={self.delta} must be at least 0 and below 1")
        if not self.shares:
            raise PrivacyError("a budget needs at least one declared Renyi order")
        for order, share in self.shares.items():
            if not order > 1 or not (_number(share) and 0 < share <= 1):
                raise PrivacyError(f"order {order} with share {share} of delta: orders lie above 1, shares in (0, 1]")
        if math.fsum(self.shares.values()) > 1 + 1e-12:
            raise PrivacyError(f"the shares of delta add up to {math.fsum(self.shares.values()):g}, more than 1")
        if all(allowance == 0 for allowance in self.allowances):
            raise PrivacyError(
                f"epsilon={self.epsilon} at delta={self.delta} leaves nothing to spend at the orders "
                f"{', '.join(f'{order:g}' for order in self.orders)}; declare higher ones"
            )

    @property
    def orders(self) -> tuple[float, ...]:
        return tuple(sorted(self.shares))

    @property
    def allowances(self) -> tuple[int, ...]:
        """Most units that may be spent at each order."""
        found = []
        for order in self.orders:
            beside = conversion(order, self.shares[order] * self.delta)
            whole = Decimal(repr(self.epsilon)) - Decimal(repr(beside)) if math.isfinite(beside) else Decimal(0)
            found.append(max(0, int((whole * _DIGITS).to_integral_value(ROUND_FLOOR))))
        return tuple(found)

    def cost(self, mechanism: Mechanism, count: int = 1) -> Units:
        """Units of `count` queries at each order."""
        return tuple(
            None if math.isinf(cost) else count * int((Decimal(repr(cost)) * _DIGITS).to_integral_value(ROUND_CEILING))
            for cost in costs(mechanism, self.orders)
        )

    def fits(self, spent: Units) -> bool:
        pairs = zip(spent, self.allowances, strict=True)
        return any(sum is not None and sum <= most for sum, most in pairs if most > 0)

    def epsilon_of(self, spent: Units) -> float:
        """What the filter says is spent: the smallest epsilon over the declared orders."""
        if not any(spent):
            return 0.0
        found = [
            float(Decimal(units) / _DIGITS) + conversion(order, self.shares[order] * self.delta)
            for units, order in zip(spent, self.orders, strict=True)
            if units is not None
        ]
        return max(0.0, min(found, default=math.inf))

    def to_json(self) -> dict[str, Any]:
        """As a log and a ledger hold it; infinity as text."""
        shares = [[order if math.isfinite(order) else "inf", self.shares[order]] for order in self.orders]
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "orders": shares,
            "unit": self.unit,
            "relation": RELATION,
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> "Budget":
        """Raises PrivacyError where it is not one."""
        try:
            shares = {float(order): float(share) for order, share in said["orders"]}
            if said["relation"] != RELATION:
                raise PrivacyError(f"the neighbouring relation {said['relation']!r} is not {RELATION}")
            return cls(float(said["epsilon"]), float(said["delta"]), shares, str(said["unit"]))
        except (KeyError, TypeError, ValueError) as error:
            raise PrivacyError(f"this is no budget: {error}") from None


def nothing(budget: Budget) -> Units:
    return (0,) * len(budget.orders)


def plus(some: Units, more: Units) -> Units:
    """The sum at each order."""
    return tuple(None if a is None or b is None else a + b for a, b in zip(some, more, strict=True))


def dumped(spent: Units) -> list[str]:
    """Units as JSON holds them: whole numbers of any size as text."""
    return ["inf" if units is None else str(units) for units in spent]


def loaded(said: Sequence[str]) -> Units:
    return tuple(None if units == "inf" else int(units) for units in said)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""What mechanisms cost: Renyi divergences for enforcing a budget, privacy loss distributions for reporting it.

The figures are dp-accounting's (extra `privacy`), and this is the only module that imports it. A budget is enforced
with Renyi divergences of orders that were declared in advance: their sum stays valid when what is asked next depends on
the answers so far (https://arxiv.org/abs/2008.11193) and when mechanisms run at the same time
(https://arxiv.org/abs/2309.05901). Composition of privacy loss distributions is tighter and assumes that the parameters
were fixed beforehand, so it reports.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from jaxlm.privacy.errors import PrivacyError
from jaxlm.privacy.mechanisms import Mechanism

ORDERS: tuple[float, ...] = (*(order / 10 for order in range(11, 110)), *range(11, 65), 128, 256, 512, 1024)
"""From which a plan picks, and over which reports look: dp-accounting's own. At fractional orders its 0.6.0 returns an
upper bound up to 3e-5 above the exact figure, which other libraries report."""

_INTERVAL = 1e-4
"""Grid of privacy losses; estimates are pessimistic, so a coarser one only reports more."""


def library(name: str) -> Any:
    """A module of dp-accounting. Raises PrivacyError where the extra is not installed."""
    try:
        return import_module(f"dp_accounting.{name}" if name else "dp_accounting")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("dp_accounting"):
            raise
        raise PrivacyError("accounting needs dp-accounting: install the extra with uv sync --extra privacy") from None


def costs(mechanism: Mechanism, orders: Sequence[float]) -> tuple[float, ...]:
    """Renyi divergence of one query at each order, in nats; infinite where it has none. `math.inf` as an order means
    pure DP."""
    finite = [order for order in orders if order != math.inf]
    found = dict(zip(finite, _renyi(mechanism, finite), strict=True)) if finite else {}
    found[math.inf] = {"gaussian": math.inf, "laplace": 1.0 / mechanism.noise, "pure": mechanism.noise}[mechanism.kind]
    return tuple(found[order] for order in orders)


def _renyi(mechanism: Mechanism, orders: Sequence[float]) -> list[float]:
    if mechanism.kind == "pure":
        # An epsilon-DP mechanism is epsilon**2 / 2 zCDP: https://arxiv.org/abs/1605.02065, proposition 1.4.
        return [min(mechanism.noise, order * mechanism.noise**2 / 2) for order in orders]
    rdp, events = library("rdp"), library("")
    noise = {"gaussian": events.GaussianDpEvent, "laplace": events.LaplaceDpEvent}[mechanism.kind]
    event = noise(mechanism.noise)
    if mechanism.rate < 1:
        event = events.PoissonSampledDpEvent(mechanism.rate, event)
    accountant = rdp.RdpAccountant(list(orders), events.NeighboringRelation.ADD_OR_REMOVE_ONE)
    # Orders at which its series does not converge come out infinite, which is right and no news.
    with _quiet("absl"):
        accountant.compose(event)
    return [max(float(value), 0.0) for value in accountant._rdp]  # there is no public name for the vector


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def conversion(order: float, delta: float) -> float:
    """What has to be added to a Renyi divergence of this order to get epsilon at `delta`: proposition 12 of
    https://arxiv.org/abs/2004.00010. Infinite where there is no such epsilon."""
    if order == math.inf:
        return 0.0
    return math.log1p(-1 / order) - math.log(delta * order) / (order - 1) if delta > 0 else math.inf


def rdp_epsilon(spent: Iterable[tuple[Mechanism, int]], delta: float, orders: Sequence[float] = ORDERS) -> float:
    """The smallest epsilon over the orders; a bound where parameters or order were fixed beforehand."""
    total = [0.0] * len(orders)
    for mechanism, count in spent:
        total = [sum + count * cost for sum, cost in zip(total, costs(mechanism, orders), strict=True)]
    if not any(total):
        return 0.0
    return max(0.0, min(sum + conversion(order, delta) for sum, order in zip(total, orders, strict=True)))


def pld_epsilon(spent: Iterable[tuple[Mechanism, int]], delta: float) -> float:
    """Epsilon at `delta` by composing privacy loss distributions, pessimistic. Raises PrivacyError without the
    extra."""
    plds, total = library("pld.privacy_loss_distribution"), None
    for mechanism, count in spent:
        match mechanism.kind:
            case "gaussian" if mechanism.rate == 1:  # a sum of Gaussian losses is one Gaussian loss
                made = plds.from_gaussian_mechanism(
                    mechanism.noise / math.sqrt(count), value_discretization_interval=_INTERVAL
                )
            case "gaussian":
                made = plds.from_gaussian_mechanism(
                    mechanism.noise, value_discretization_interval=_INTERVAL, sampling_prob=mechanism.rate
                ).self_compose(count)
            case "laplace":
                made = plds.from_laplace_mechanism(
                    mechanism.noise, value_discretization_interval=_INTERVAL
                ).self_compose(count)
            case _:
                pair = library("pld.common").DifferentialPrivacyParameters(mechanism.noise, 0.0)
                made = plds.from_privacy_parameters(pair, value_discretization_interval=_INTERVAL).self_compose(count)
        total = made if total is None else total.compose(made)
    return 0.0 if total is None else float(total.get_epsilon_for_delta(delta))


def best_order(query: Mechanism, epsilon: float, delta: float, orders: Sequence[float] = ORDERS) -> float:
    """The order at which the most of these queries fit into a budget: what a plan declares. Raises PrivacyError where
    none fits at any."""
    room = [epsilon - conversion(order, delta) for order in orders]
    fit = [left / max(cost, 1e-15) for left, cost in zip(room, costs(query, orders), strict=True)]
    if max(fit) < 1:
        raise PrivacyError(
            f"not one query of {query.to_json()} fits into epsilon {epsilon:g} at delta {delta:g}; it needs more noise"
        )
    return orders[fit.index(max(fit))]


def calibrated(rate: float, steps: int, epsilon: float, delta: float) -> float:
    """The smallest noise multiplier, to three digits upwards, with which so many Poisson-sampled Gaussian steps stay
    within the budget at one order.

    Raises:
        PrivacyError: no noise up to 1e4 does.
    """
    fits = lambda noise: rdp_epsilon([(Mechanism("gaussian", noise, rate), steps)], delta) <= epsilon
    low, high = 1e-2, 1e4
    if not fits(high):
        raise PrivacyError(f"no noise keeps {steps:,} steps within epsilon {epsilon:g} at delta {delta:g}")
    while high / low > 1.0005:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    step = 10.0 ** (math.floor(math.log10(high)) - 2)
    noise = math.ceil(high / step) * step
    return float(f"{noise:.6g}")

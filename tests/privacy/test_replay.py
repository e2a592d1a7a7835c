"""What a third party finds in a log whose charges were edited, left out, or made up."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from jaxlm.governance.entries import FIRST, Entry
from jaxlm.privacy.budget import Budget, nothing, plus
from jaxlm.privacy.errors import PrivacyError
from jaxlm.privacy.mechanisms import Mechanism
from jaxlm.privacy.replay import replayed

pytest.importorskip("dp_accounting", reason="needs the extra: uv sync --extra privacy")

QUERY = Mechanism("gaussian", 1.0, 0.01)
BUDGET = Budget(3.2, 1e-5, {4.0: 1.0})
Bodies = list[tuple[str, dict[str, Any]]]


def log(steps: int = 3, budget: Budget = BUDGET, query: Mechanism = QUERY) -> Bodies:
    """Bodies of a run of so many steps, each charged and taken."""
    said: dict[str, Any] = {"state": "declared", "ledger": "L", "budget": budget.to_json(), "epsilon": 0.0}
    bodies: Bodies = [("dp.charge", said | {"mechanism": query.to_json()})]
    spent = nothing(budget)
    for step in range(1, steps + 1):
        spent = plus(spent, budget.cost(query))
        charge = {"state": "reserved", "charge": f"c{step}", "number": step, "ledger": "L", "count": 1, "step": step}
        charge |= {"mechanism": query.to_json(), "epsilon": budget.epsilon_of(spent)}
        bodies += [("dp.charge", charge), ("train.step", {"step": step, "loss": 1.0, "batch": ""})]
    return bodies


def entries(bodies: Bodies) -> list[Entry]:
    return [Entry(i, kind, body, "h", "b", i, FIRST, 0.0, 0.0) for i, (kind, body) in enumerate(bodies)]


def test_a_log_comes_to_what_its_queries_cost():
    found = replayed(entries(log(5)))
    assert found.faults == []
    assert found.queries == [(QUERY, 5)]
    assert found.filter == found.said == BUDGET.epsilon_of(BUDGET.cost(QUERY, 5))
    assert (found.others, found.ledger) == (0, "L")


def _without_charge(bodies: Bodies) -> None:
    del bodies[3]


def _less(bodies: Bodies) -> None:
    bodies[5][1]["epsilon"] /= 2


def _more_noise(bodies: Bodies) -> None:
    bodies[3][1]["mechanism"]["noise_multiplier"] = 50.0


def _shuffled(bodies: Bodies) -> None:
    bodies[3][1]["mechanism"]["sampling"] = "shuffled"


def _twice(bodies: Bodies) -> None:
    bodies[3][1]["charge"] = "c1"


def _taken_back(bodies: Bodies) -> None:
    bodies.append(("dp.charge", {"state": "void", "charge": "c9", "mechanism": None, "epsilon": 0.0}))


def _declared_again(bodies: Bodies) -> None:
    larger = Budget(100.0, 1e-5, {4.0: 1.0}).to_json()
    bodies.append(("dp.charge", bodies[0][1] | {"budget": larger}))


def _reordered(bodies: Bodies) -> None:
    bodies[1][1]["number"], bodies[3][1]["number"] = 2, 1


def _other(bodies: Bodies) -> None:
    bodies[3][1]["ledger"] = "M"


def _negative(bodies: Bodies) -> None:
    bodies[3][1]["count"] = -1


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (_without_charge, "step 2 was taken and not charged"),
        (_less, "the charges up to it come to"),
        (_more_noise, "the charges up to it come to"),
        (_shuffled, "no Poisson samples"),
        (_twice, "repeats the charge c1"),
        (_taken_back, "void of a charge that is not there"),
        (_declared_again, "declares a budget again"),
        (_reordered, "not in the order"),
        (_other, "another ledger"),
        (_negative, "charges -1 queries"),
    ],
)
def test_an_edited_log_does_not_add_up(edit: Callable[[Bodies], None], why: str):
    bodies = copy.deepcopy(log())
    edit(bodies)
    assert any(why in fault for fault in replayed(entries(bodies)).faults)


def test_a_log_that_overspends_is_found_out():
    fit = next(n for n in range(1, 10_000) if not BUDGET.fits(BUDGET.cost(QUERY, n)))
    assert replayed(entries(log(fit - 1))).faults == []
    assert any("overspend the budget" in fault for fault in replayed(entries(log(fit))).faults)


def test_a_charge_that_was_given_back_is_not_counted():
    bodies = log()
    bodies.append(("dp.charge", {"state": "void", "charge": "c3", "mechanism": None, "epsilon": 0.0}))
    found = replayed(entries(bodies))
    assert found.queries == [(QUERY, 2)]
    assert found.filter == BUDGET.epsilon_of(BUDGET.cost(QUERY, 2))


def test_a_log_without_a_budget_has_nothing_to_add_up():
    with pytest.raises(PrivacyError, match="declares no privacy budget"):
        replayed(entries(log()[2:3]))

"""What an audit log says was spent, computed from its entries alone: for a third party, and for a run that goes on.

The bodies of `dp.charge` are of four states. `declared` names the ledger, its budget, and what a step does; `reserved`
is a charge; `settled` says that it ran, which changes nothing; `void` gives it back.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxlm.governance.entries import Entry
from jaxlm.privacy.accounting import pld_epsilon, rdp_epsilon
from jaxlm.privacy.budget import Budget, nothing, plus
from jaxlm.privacy.errors import PrivacyError
from jaxlm.privacy.mechanisms import Mechanism, mechanism

_SAME = 1e-9


@dataclass
class Logged:
    """The charges in a log.

    Attributes:
        ledger: id of the ledger; None before anything is declared.
        budget: as it was declared.
        query: what a step of the run asks.
        charges: bodies by id, in the order of the log.
        void: ids of charges that were given back.
        faults: what does not fit together.
    """

    ledger: str | None = None
    budget: Budget | None = None
    query: Mechanism | None = None
    charges: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    void: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "Logged":
        """Reads the entries of a log, in order; those of other types are passed over, but no step of training may come
        without a charge of its own before it."""
        found, paid = cls(), Counter[Any]()
        for entry in entries:
            if entry.kind == "dp.charge":
                found._add(entry)
                if entry.body["state"] == "reserved":
                    paid[entry.body.get("step")] += 1
            elif entry.kind == "train.step" and found.ledger is not None:
                step = entry.body["step"]
                if not paid[step]:
                    found.faults.append(f"entry {entry.index}: step {step} was taken and not charged")
                else:
                    paid[step] -= 1
        return found

    def _add(self, entry: Entry) -> None:
        said, where = entry.body, f"entry {entry.index}"
        state, id = said["state"], said.get("charge")
        try:
            if state == "declared":
                budget, query = Budget.from_json(said["budget"]), mechanism(said["mechanism"])
                if self.ledger is not None:
                    self.faults.append(f"{where} declares a budget again")
                else:
                    self.ledger, self.budget, self.query = said["ledger"], budget, query
            elif self.ledger is None:
                self.faults.append(f"{where} charges before a budget is declared")
            elif state == "reserved":
                if said["ledger"] != self.ledger:
                    self.faults.append(f"{where} charges another ledger than the one declared")
                if id in self.charges:
                    self.faults.append(f"{where} repeats the charge {id}")
                elif not isinstance(said["count"], int) or said["count"] < 1:
                    self.faults.append(f"{where} charges {said['count']} queries")
                else:
                    mechanism(said["mechanism"])
                    self.charges[str(id)] = said
            elif id not in self.charges or state not in ("settled", "void"):
                self.faults.append(f"{where}: {state} of a charge that is not there")
            elif state == "void":
                self.void.add(id)
        except (PrivacyError, KeyError) as error:
            self.faults.append(f"{where}: {error}")

    def queries(self) -> list[tuple[Mechanism, int]]:
        """How many of each mechanism count."""
        counts = Counter[Mechanism]()
        for id, said in self.charges.items():
            if id not in self.void:
                counts[mechanism(said["mechanism"])] += said["count"]
        return list(counts.items())


@dataclass(frozen=True, slots=True)
class Replayed:
    """What was spent by a log.

    Attributes:
        budget: as declared.
        ledger: its id.
        queries: how many of each mechanism.
        filter: epsilon of the declared orders, by which the budget was enforced.
        rdp: epsilon of the best of all orders.
        pld: epsilon by privacy loss distributions, the tightest; holds for parameters that were fixed beforehand.
        said: epsilon of the ledger at its last entry here.
        others: charges by other runs of the same ledger that lie between those of this log, by their numbers.
        faults: what does not hold.
    """

    budget: Budget
    ledger: str
    queries: list[tuple[Mechanism, int]]
    filter: float
    rdp: float
    pld: float
    said: float
    others: int
    faults: list[str]


def replayed(entries: Iterable[Entry]) -> Replayed:
    """Adds up every charge of a log. Raises PrivacyError where it declares no budget."""
    found = Logged.of(entries)
    if found.budget is None or found.ledger is None:
        raise PrivacyError("the log declares no privacy budget: the run was not trained with privacy.enabled")
    budget, faults, spent = found.budget, list(found.faults), nothing(found.budget)
    numbers = [said.get("number") for said in found.charges.values()]
    ordered = [number for number in numbers if isinstance(number, int)]
    if ordered != sorted(set(ordered)) or len(ordered) != len(numbers):
        faults.append("the charges are not in the order in which the ledger numbered them")
    others = max(ordered, default=0) - len(ordered)
    costs = {query: budget.cost(query) for query, _ in found.queries()}
    said = 0.0
    for id, body in found.charges.items():
        said = body["epsilon"]
        if id in found.void:
            continue
        cost = costs[mechanism(body["mechanism"])]
        spent = plus(spent, tuple(None if units is None else units * body["count"] for units in cost))
        # A ledger that others use too, or that took a charge back since, says another sum than this run's own.
        if others == 0 and not found.void and abs(said - budget.epsilon_of(spent)) > _SAME * max(1.0, abs(said)):
            faults.append(
                f"charge {id} (step {body.get('step')}) says epsilon {said:.9g}, and the charges up to it come to "
                f"{budget.epsilon_of(spent):.9g}"
            )
            break
    if not budget.fits(spent):
        faults.append(f"the charges overspend the budget: epsilon {budget.epsilon_of(spent):.6g} of {budget.epsilon:g}")
    queries = found.queries()
    return Replayed(
        budget,
        found.ledger,
        queries,
        budget.epsilon_of(spent),
        rdp_epsilon(queries, budget.delta),
        pld_epsilon(queries, budget.delta),
        said,
        others,
        faults,
    )

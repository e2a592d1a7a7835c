"""The privacy budget of a run that trains: where its steps, the ledger and the audit trail meet.

Of each step, first the ledger takes the charge out of the budget, then the trail of the run holds it, then the sample
is read. So a step that was stopped anywhere is in both, or in the ledger alone, from which the next start of the run
writes it into the trail; and whoever has the trail finds the epsilon of the ledger without it.
"""

from collections.abc import Callable
from typing import Any

from jaxlm.auditing import Auditing, Unaudited
from jaxlm.checkpoints.processes import first_does
from jaxlm.config import Run
from jaxlm.folder import Folder
from jaxlm.privacy.accounting import best_order, calibrated
from jaxlm.privacy.budget import Budget
from jaxlm.privacy.commitment import committed
from jaxlm.privacy.errors import BudgetSpent, PrivacyError
from jaxlm.privacy.ledger import SETTLED, VOID, Charge, Ledger
from jaxlm.privacy.mechanisms import Mechanism, mechanism
from jaxlm.privacy.replay import Logged
from jaxlm.replaying import ledger_path

UNIT = "one document of the training split (a row of data.mode=truncate)"


class Spending:
    """Charges the steps of a run. All processes make one and call it alike; process 0 has the ledger.

    Args:
        run: its configuration, with privacy.enabled.
        folder: of the run.
        documents: in the training split, which counts as known to all.
        audit: the trail of this process.
        say: is told what the run has to spend.

    Attributes:
        multiplier: noise over sensitivity, decided when the run began.
        rate: chance of each document to be in the sample of a step.

    Raises:
        PrivacyError: the ledger and the trail disagree, the budget is another, or delta is too large.
    """

    def __init__(
        self, run: Run, folder: Folder, documents: int, audit: Auditing | Unaudited, say: Callable[[str], None]
    ):
        self.rate = run.train.batch / documents
        check_sizes(run, documents)
        self._held: Charge | None = None
        self._ledger: Ledger | None = None
        self._trail = audit.trail if isinstance(audit, Auditing) and audit.leader else None

        def begin() -> float:
            return self._begin(run, folder, say)

        self.multiplier: float = first_does(begin)
        self.query = Mechanism("gaussian", self.multiplier, self.rate)

    def __call__(self, step: int) -> None:
        """Charges the step after `step` finished ones, before anything of its sample is read. Raises BudgetSpent, on
        every process."""

        def charge() -> str | None:
            try:
                self._charge(step)
            except BudgetSpent as spent:
                return str(spent)
            return None

        if (refused := first_does(charge)) is not None:
            raise BudgetSpent(refused)

    def close(self) -> None:
        """Settles the last charge: its step was computed."""
        if self._ledger is not None and self._held is not None:
            self._ledger.settle(self._held)
            self._record({"state": SETTLED, "charge": self._held.id, "mechanism": None, "epsilon": self._held.epsilon})
            self._held = None

    def facts(self) -> dict[str, float]:
        """What rules may read, on process 0: epsilon spent, the step under way included, and the budget."""
        assert self._ledger is not None
        spent = self._ledger.spending().epsilon if self._held is None else self._held.epsilon
        return {"spent": spent, "budget": self._ledger.budget.epsilon}

    def _begin(self, run: Run, folder: Folder, say: Callable[[str], None]) -> float:
        assert self._trail is not None  # privacy.enabled asks for governance.enabled
        path = ledger_path(run.privacy.ledger, folder.path)
        known = Logged.of(self._trail.history)
        if known.faults:
            raise PrivacyError(f"the audit log does not add up: {known.faults[0]}")
        if known.ledger is not None and not path.is_file():
            raise PrivacyError(
                f"{path} is gone, and the audit log holds {len(known.charges):,} charges of it: without the ledger "
                "this run does not go on. Take it back from a backup that is no older than the log"
            )
        ledger = Ledger(path) if path.is_file() and path.stat().st_size else None
        noise = run.privacy.noise_multiplier if known.query is None else known.query.noise
        if noise is None:
            noise = calibrated(self.rate, run.train.steps, run.privacy.epsilon, run.privacy.delta)
        query = Mechanism("gaussian", noise, self.rate)
        self._ledger = ledger = ledger or Ledger(path, declared(run, query))
        require_same(run, ledger)
        self._agree(ledger, known)
        if known.ledger is None:
            self._declare(ledger, run, query)
        found = ledger.spending()
        if run.parent is not None:
            say(f"privacy: what {run.parent.run} has learned is not covered; the run that trained it has to say")
        say(
            f"privacy: epsilon {ledger.budget.epsilon:g} at delta {ledger.budget.delta:g} for {UNIT}, "
            f"{found.epsilon:.4g} of it spent; noise {noise:g} x sensitivity {run.privacy.sensitivity:.4g}, each "
            f"document sampled with chance {self.rate:.3g}"
        )
        return noise

    def _declare(self, ledger: Ledger, run: Run, query: Mechanism) -> None:
        said = {
            "state": "declared",
            "ledger": ledger.id,
            "budget": ledger.budget.to_json(),
            "mechanism": query.to_json(),
            "epsilon": 0.0,
            "clip_norm": run.privacy.clip_norm,
            "sensitivity": run.privacy.sensitivity,
            "expected": run.train.batch,
        }
        self._commit(said)

    def _agree(self, ledger: Ledger, known: "Logged") -> None:
        """The ledger holds every charge that the log holds; those of this run that it has beyond are logged now."""
        if known.ledger is None:
            return
        if known.ledger != ledger.id:
            raise PrivacyError(
                f"{ledger.path} is not the ledger that the audit log knows ({ledger.id[:12]}, not "
                f"{known.ledger[:12]}): a new ledger does not bring back what was spent"
            )
        assert self._trail is not None
        there = {charge.id: charge for charge in ledger.charges()}
        for id, said in known.charges.items():
            if id not in there or there[id].mechanism != mechanism(said["mechanism"]):
                raise PrivacyError(
                    f"{ledger.path} lacks a charge that the audit log holds (of step {said.get('step')}): it was "
                    "rolled back or edited. Take back one that is no older than the log"
                )
        for charge in there.values():
            ours = charge.who.get("run") == self._trail.run and charge.state != VOID
            if ours and charge.id not in known.charges:
                self._commit(entry_of(charge, ledger) | {"late": True})

    def _charge(self, step: int) -> None:
        assert self._ledger is not None
        assert self._trail is not None
        before = self._held
        who = {"run": self._trail.run, "step": step + 1}
        charge = self._ledger.reserve(self.query, who=who, settles=before)
        # Kept before it is logged: what fails from here on leaves a charge that is never settled, and spent.
        self._held = charge
        said = entry_of(charge, self._ledger)
        self._commit(said if before is None else said | {"settles": before.id})

    def _record(self, body: dict[str, Any]) -> None:
        assert self._trail is not None
        self._trail.record("dp.charge", body)

    def _commit(self, body: dict[str, Any]) -> None:
        assert self._trail is not None
        self._trail.commit("dp.charge", body)


def entry_of(charge: Charge, ledger: Ledger) -> dict[str, Any]:
    """The body of the entry of a charge."""
    return {
        "state": "reserved",
        "charge": charge.id,
        "number": charge.number,
        "ledger": ledger.id,
        "mechanism": charge.mechanism.to_json(),
        "count": charge.count,
        "epsilon": charge.epsilon,
        "step": charge.who.get("step"),
    }


def hidden(audit: Auditing | Unaudited, digest: str) -> str:
    """What stands for the digest of protected text in everything that this run writes; the same on all processes."""

    def commit() -> str:
        assert isinstance(audit, Auditing)
        assert audit.trail is not None
        return committed(audit.trail.keys.folder, audit.trail.run, digest)

    return first_does(commit)


def declared(run: Run, query: Mechanism) -> Budget:
    """The budget of a new ledger."""
    said = run.privacy
    orders = said.orders or (best_order(query, said.epsilon, said.delta),)
    return Budget(said.epsilon, said.delta, {float(order): 1 / len(orders) for order in orders}, UNIT)


def require_same(run: Run, ledger: Ledger) -> None:
    """Raises PrivacyError where the ledger has another budget than the configuration."""
    said, budget = run.privacy, ledger.budget
    for name, ours, theirs in (("epsilon", said.epsilon, budget.epsilon), ("delta", said.delta, budget.delta)):
        if ours != theirs:
            raise PrivacyError(
                f"privacy.{name}={ours:g}, and {ledger.path} was declared with {theirs:g}: a budget is declared before "
                f"the first query and stays. Set privacy.{name} to {theirs:g}"
            )
    if budget.unit != UNIT:
        raise PrivacyError(f"{ledger.path} protects {budget.unit!r}, and a run protects {UNIT!r}: use another ledger")
    if said.orders and tuple(sorted(said.orders)) != budget.orders:
        orders = ", ".join(f"{order:g}" for order in budget.orders)
        raise PrivacyError(f"privacy.orders={list(said.orders)}, and {ledger.path} was declared with {orders}")


def check_sizes(run: Run, documents: int) -> None:
    """Raises PrivacyError where delta or the batch make no sense for so many documents."""
    if run.privacy.delta * documents >= 1:
        raise PrivacyError(
            f"privacy.delta={run.privacy.delta:g} is no promise for {documents:,} documents: one of them could be "
            f"published with that chance each. Set it well below {1 / documents:.1g}"
        )
    if run.train.batch > documents:
        raise PrivacyError(f"train.batch={run.train.batch} is more than the {documents:,} documents of the split")

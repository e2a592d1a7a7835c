"""What a run has spent of a privacy budget, replayed from its log, and beside it what the ledger says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.folder import open_run
from jaxlm.governance.audit import read_log
from jaxlm.privacy.ledger import VOID, Ledger
from jaxlm.privacy.mechanisms import mechanism
from jaxlm.privacy.replay import Logged, Replayed, replayed


@dataclass(frozen=True, slots=True)
class Report:
    """The log by itself, and what the ledger says of all who spend from it; None where it does not lie here."""

    log: Replayed
    ledger: float | None
    path: Path
    faults: list[str]


def replay_run(path: Path, ledger: Path | None = None) -> Report:
    """Adds up the charges in the log of a run, verified against its own head.

    Raises:
        GovernanceError: the log does not hold, or declares no budget; or `ledger` is no ledger.
    """
    folder, run = open_run(path)
    log = read_log(folder.audit, keys=None, full=True)
    found, logged = replayed(log.entries), Logged.of(log.entries)
    faults = list(found.faults)
    where = ledger or ledger_path(run.privacy.ledger, folder.path)
    if ledger is None and not where.is_file():
        return Report(found, None, where, faults)
    book = Ledger(where, read_only=True)
    there = {charge.id: charge for charge in book.charges()}
    if book.id != found.ledger:
        faults.append(f"{where} is another ledger than the log declares ({book.id[:12]}, not {found.ledger[:12]})")
    for id, said in logged.charges.items():
        charge = there.get(id)
        if charge is None or charge.mechanism != mechanism(said["mechanism"]) or charge.count != said["count"]:
            faults.append(f"{where} lacks the charge of step {said.get('step')}, which the log holds")
            break
    ours = {id for id, charge in there.items() if charge.who.get("run") == log.run and charge.state != VOID}
    if len(ours - logged.charges.keys()) > 1:  # the newest one of a run that was stopped may not be logged yet
        faults.append(f"the log lacks {len(ours - logged.charges.keys())} charges that {where} holds of this run")
    spent = book.spending().epsilon
    if found.others == 0 and not ours - logged.charges.keys() and abs(spent - found.filter) > 1e-9 * max(1.0, spent):
        faults.append(f"{where} says epsilon {spent:.9g}, and the log comes to {found.filter:.9g}")
    return Report(found, spent, where, faults)


def ledger_path(said: str | None, folder: Path) -> Path:
    """Where the ledger of a run lies, by its configuration."""
    return folder / "privacy.ledger" if said is None else Path(said).expanduser()


def as_text(report: Report) -> str:
    """For a person."""
    log, budget = report.log, report.log.budget
    orders = ", ".join(f"{order:g}" for order in budget.orders)
    lines = [
        f"budget: epsilon {budget.epsilon:g} at delta {budget.delta:g} for {budget.unit}, added or removed",
        *(f"charged: {count:,} x {_text(query.to_json())}" for query, count in log.queries),
        f"spent: epsilon {log.filter:.6g} by the filter that enforces it (Renyi order {orders})",
        f"       epsilon {log.rdp:.6g} by the best of all Renyi orders, {log.pld:.6g} by privacy loss distributions; "
        "both hold for parameters that were fixed beforehand",
    ]
    if log.others:
        lines.append(f"others have made {log.others:,} charges to the same ledger, which are not in this log")
    if report.ledger is not None:
        lines.append(f"ledger {report.path}: epsilon {report.ledger:.6g}, all that was spent from it")
    return "\n".join([*lines, *(f"FAULT: {fault}" for fault in report.faults)])


def as_json(report: Report) -> dict[str, Any]:
    """For a program."""
    log = report.log
    return {
        "budget": log.budget.to_json(),
        "ledger_id": log.ledger,
        "queries": [{**query.to_json(), "count": count} for query, count in log.queries],
        "epsilon": {"filter": log.filter, "rdp": log.rdp, "pld": log.pld},
        "ledger_epsilon": report.ledger,
        "others": log.others,
        "faults": report.faults,
    }


def _text(said: dict[str, Any]) -> str:
    return " ".join(str(value) if key in ("kind", "sampling") else f"{key}={value:.6g}" for key, value in said.items())

"""What a run's policy says to commands that read the run: who may be answered, and what waits for a decision."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm.decode import ConfigError
from jaxlm.folder import Folder, open_run
from jaxlm.governance import approvals, node
from jaxlm.governance.approvals import Approval, Open
from jaxlm.governance.audit import Known, read_log
from jaxlm.governance.engine import Engine, EngineFailed
from jaxlm.governance.errors import Denied, GovernanceError
from jaxlm.governance.keys import Keys, private_key
from jaxlm.governance.notes import LogKey
from jaxlm.governance.policy import Loaded
from jaxlm.governance.verdicts import ENGINE, Standing, Verdict
from jaxlm.reading import readers


def policy_of(path: Path) -> Loaded | None:
    """The policy that the log of a run names as the one it obeys. Raises GovernanceError where its copy is gone."""
    folder, _ = open_run(path)
    return _in_force(folder)


def waiting(path: Path) -> tuple[Known, list[Open]]:
    """The log of a run and the verdicts that wait for a decision."""
    folder, _ = open_run(path)
    log = read_log(folder.audit, keys=Keys())
    return log, approvals.undecided(log.entries)


def approve(
    path: Path, key: Path, reason: str, index: int | None = None, *, reject: bool = False
) -> list[tuple[Open, str]]:
    """Signs a decision on the verdicts that wait, or on the one at `index`, and leaves it where the run takes it.

    Returns:
        Each verdict, and the name under which its policy lists the key.

    Raises:
        GovernanceError: nothing waits, or the key is not one of those that may decide.
    """
    folder, _ = open_run(path)
    log, found = waiting(path)
    chosen = [each for each in found if index in (None, each.index)]
    if not chosen:
        known = ", ".join(str(each.index) for each in found) or "none"
        raise GovernanceError(f"no verdict {'' if index is None else f'{index} '}of {path} waits (waiting: {known})")
    private, done = private_key(key), []
    public = private.public_key().public_bytes_raw()
    for verdict in chosen:
        listed = approvals.kept(folder.audit, verdict.body["policy"]).approvers
        names = [approver.name for approver in listed if approver.key == public]
        if not names:
            who = ", ".join(approver.name for approver in listed)
            raise GovernanceError(f"--key {key} is none of the approvers of verdict {verdict.index} ({who})")
        decision = "reject" if reject else "approve"
        signed = Approval(log.run, verdict.index, verdict.digest, decision, reason, int(time.time()))
        approvals.write(folder.audit, signed, LogKey(names[0], private))
        done.append((verdict, names[0]))
    return done


def consult(folder: Folder, request: Mapping[str, Any]) -> None:
    """Asks the policy that a run obeys whether a request may be answered; says and logs what it denies.

    The newest policy that the run's log names is asked, by the copy of it that lies beside the log: what the
    configuration says now does not matter. Where there is none, or it has no rules over requests, nothing is asked.

    Raises:
        Denied: a rule denies it, or it cannot be judged and the policy does not merely alert on failures.
    """
    if not folder.audit.exists():
        return
    try:
        loaded = _in_force(folder)
    except (GovernanceError, ConfigError) as error:
        raise Denied(f"denied, because the policy of this run cannot be read: {error}") from None
    if loaded is None or not (rules := loaded.rules(requests=True)):
        return
    fail, sandbox = ("alert" if loaded.policy.fail == "alert" else "deny"), []
    try:
        with Engine(rules, loaded.policy.deadline_seconds) as engine:
            said = engine.judge({"request": dict(request)})
            sandbox = engine.sandbox
        found = Standing().verdicts(rules, said, fail, {"request": request})
    except EngineFailed as error:
        found = [Verdict(ENGINE, fail, str(error), failed=True)]
    if found:
        _act(folder, loaded, found, {"request": request["command"], "account": node.account(), "sandbox": sandbox})


def _act(folder: Folder, loaded: Loaded, found: list[Verdict], facts: Mapping[str, Any]) -> None:
    try:
        with readers(folder) as trail:
            for verdict in found:
                trail.commit("policy.verdict", verdict.body(loaded.digest, **facts))
    except (GovernanceError, OSError) as error:
        raise Denied(f"denied: a verdict on this request cannot be logged ({error})") from None
    denies = [verdict for verdict in found if verdict.action == "deny"]
    if denies:
        raise Denied("denied by its policy: " + "; ".join(f"rule {each.rule}: {each.why}" for each in denies))


def _in_force(folder: Folder) -> Loaded | None:
    digest = approvals.in_force(read_log(folder.audit, keys=Keys()).entries)
    return None if digest is None else approvals.kept(folder.audit, digest, compiled=True)

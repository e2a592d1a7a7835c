"""What a stranger checks about the policy of a run, from its log: which one, who approved what, and if it obeyed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxlm.decode import ConfigError
from jaxlm.governance import approvals
from jaxlm.governance.approvals import Open
from jaxlm.governance.entries import Entry
from jaxlm.governance.errors import GovernanceError

_IN_FLIGHT = 1
"""Steps that were under way when a verdict was logged, and end before it acts."""


@dataclass
class Checked:
    """What holds, what is odd, and what does not hold."""

    lines: list[str] = field(default_factory=list)
    alerts: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def check(audit: Path, run: str, entries: Sequence[Entry]) -> Checked:
    """Checks every entry of the log of a run that is about a policy; all of its entries must be given."""
    found = Checked()
    loads = [entry for entry in entries if entry.kind == "policy.load"]
    if not loads and not any(entry.kind == "policy.approval" for entry in entries):
        return found
    digests = dict.fromkeys(entry.body["policy"] for entry in loads if entry.body["policy"] is not None)
    for digest in digests:
        try:
            approvals.kept(audit, digest)
        except (GovernanceError, ConfigError) as error:
            found.faults.append(str(error))
    for entry in loads:
        if "refused" in entry.body:
            found.alerts.append(f"entry {entry.index}: the policy file became one that cannot be followed")
        elif entry.body["policy"] is None:
            found.alerts.append(f"entry {entry.index}: the run obeys no policy from here on, and did before")
    _decisions(found, audit, run, entries)
    _obeyed(found, entries)
    verdicts = [entry.body["action"] for entry in entries if entry.kind == "policy.verdict"]
    counted = ", ".join(f"{verdicts.count(each)} {each}" for each in dict.fromkeys(verdicts)) or "no verdict"
    judged = sum(entry.body["steps"] for entry in entries if entry.kind == "policy.judged")
    found.lines.append(f"policy: {len(digests)} followed, {judged:,} steps judged, {counted}")
    found.alerts += [f"verdict {each.index} waits for a decision: {each}" for each in approvals.undecided(entries)]
    return found


def _decisions(found: Checked, audit: Path, run: str, entries: Sequence[Entry]) -> None:
    """Every approval is signed by an approver that the policy of its verdict lists, over what that verdict says."""
    verdicts = {entry.index: entry for entry in entries if entry.kind == "policy.verdict"}
    for entry in entries:
        if entry.kind != "policy.approval":
            continue
        try:
            verdict = verdicts.get(entry.body["verdict"])
            if verdict is None or verdict.index > entry.index:
                raise GovernanceError(f"there is no verdict {entry.body['verdict']} before it")
            about = Open(verdict.index, verdict.body)
            listed = approvals.kept(audit, verdict.body["policy"]).approvers
            said, by = approvals.read(str(entry.body["note"]).encode(), run, about, listed)
            if said.decision != entry.body["decision"]:
                raise GovernanceError(f"{by.name} signed {said.decision}, and the entry says {entry.body['decision']}")
            found.lines.append(f"entry {entry.index}: {by.name} signed {said.decision} on verdict {verdict.index}")
        except (GovernanceError, ConfigError) as error:
            found.faults.append(f"entry {entry.index} (policy.approval): {error}")


def _obeyed(found: Checked, entries: Sequence[Entry]) -> None:
    """No step was taken between a verdict that waits for a decision and the decision."""
    waiting: dict[int, int] = {}
    for entry in entries:
        match entry.kind:
            case "policy.verdict":
                for index in entry.body.get("resolves", []):
                    waiting.pop(index, None)
                if entry.body.get("approval") is True:
                    waiting[entry.index] = 0
            case "policy.approval":
                waiting.pop(entry.body["verdict"], None)
            case "train.step":
                for index in waiting:
                    waiting[index] += 1
                    if waiting[index] == _IN_FLIGHT + 1:
                        found.faults.append(
                            f"training went on at entry {entry.index} though verdict {index} waited for a decision"
                        )

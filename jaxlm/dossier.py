"""What `jaxlm audit report` says of a run: everything that its audit trail knows, as plain values."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxlm.auditor import ABSENT, VERIFIED, Report, cosigned_head, own_witnesses, verify_run
from jaxlm.folder import Folder
from jaxlm.governance import controls, entries
from jaxlm.governance.audit import Known, body_text
from jaxlm.governance.controls import CONSISTENT, CONTROLS, EXPORTABLE, STAGES, WITNESSED, ByKind, Control
from jaxlm.governance.entries import Entry
from jaxlm.governance.errors import GovernanceError
from jaxlm.governance.notes import Note
from jaxlm.governance.trust import Trust, without
from jaxlm.replaying import as_json, as_text, replay_run

MOST = 5000
"""Rows of the timeline; of a longer one the oldest rows are left out, which is said."""
_STEPS = ("train.step", "train.layer", "dp.charge")
_LAST = 20
"""Charges that are shown one by one."""
NO_EVIDENCE = "no evidence in this run"


def facts(path: Path, trust: Trust, *, pins: bool = True) -> dict[str, Any]:
    """All of the report as JSON values.

    Args:
        path: the run directory.
        trust: whose word counts, as for `verify_run`.
        pins: as for `verify_run`.

    Raises:
        ConfigError: there is no such run.
    """
    report, folder = verify_run(path, trust, pins=pins), Folder(path)
    main = report.logs.get("log")
    witnesses = _witnesses(folder, report, trust)
    whole = {
        WITNESSED: any(each["verified"] for each in witnesses["signatures"]) and witnesses["quorum"] == "met",
        CONSISTENT: report.consistent,
        EXPORTABLE: report.consistent and main is not None and main.head.size > 0,
    }
    known = {name: log.entries for name, log in report.logs.items()}
    kinds = controls.by_kind(known)
    rows, left = _timeline(known)
    return {
        "run": {"id": None if main is None else main.run, "folder": folder.path.name, **_about(known)},
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "verification": {
            "state": "faults" if report.faults else "anchored" if report.anchored else "signer unknown",
            "holds": report.lines,
            "alerts": report.alerts,
            "faults": report.faults,
        },
        "logs": [_log(name, log) for name, log in report.logs.items()],
        "counts": _counts(known),
        "losses": _losses(known.get("log", [])),
        "timeline": rows,
        "timeline_left_out": left,
        "verdicts": _of_kind(known, "policy.verdict"),
        "approvals": _of_kind(known, "policy.approval"),
        "policies": _of_kind(known, "policy.load"),
        "privacy": _privacy(path, known),
        "checkpoints": _checkpoints(report, known.get("log", [])),
        "copies": _of_kind(known, "ckpt.snapshot"),
        "witnesses": witnesses,
        "stages": list(STAGES),
        "controls": [_control(control, kinds, whole) for control in CONTROLS],
    }


def _about(known: Mapping[str, list[Entry]]) -> dict[str, Any]:
    starts = [entry for entry in known.get("log", []) if entry.kind == "run.start"]
    newest = starts[-1].body if starts else {}
    nodes = [entry.body["node"] for log in known.values() for entry in log if entry.kind == "run.start"]
    return {
        "name": newest.get("name"),
        "stage": newest.get("stage"),
        "parent": newest.get("parent"),
        "starts": len(starts),
        "nodes": [node for index, node in enumerate(nodes) if node not in nodes[:index]],
    }


def _log(name: str, log: Known) -> dict[str, Any]:
    return {
        "name": name,
        "origin": log.key.name,
        "key": str(log.key),
        "size": log.head.size,
        "root": log.head.root.hex(),
        "handovers": [{"index": index, "old": str(old)} for index, old in log.keys.log],
    }


def _counts(known: Mapping[str, list[Entry]]) -> dict[str, int]:
    found = dict.fromkeys(entries.KINDS, 0)
    for log in known.values():
        for entry in log:
            found[entry.kind] += 1
    return {kind: count for kind, count in found.items() if count}


def _losses(log: Iterable[Entry]) -> list[list[float]]:
    """Step and loss, of a step that was repeated the last."""
    found = {e.body["step"]: e.body["loss"] for e in log if e.kind == "train.step"}
    numbers = {k: v for k, v in found.items() if isinstance(k, int) and isinstance(v, int | float)}
    return [[step, numbers[step]] for step in sorted(numbers)]


def _timeline(known: Mapping[str, list[Entry]]) -> tuple[list[dict[str, Any]], int]:
    """One row per entry by the clock of its host, steps in a row being one; and how many rows were left out."""
    rows: list[dict[str, Any]] = []
    for name, log in known.items():
        steps: list[Entry] = []
        for entry in log:
            if entry.kind in _STEPS:
                steps.append(entry)
                continue
            rows += _several(name, steps)
            steps = []
            rows.append(_row(name, entry, entry.kind, str(entry.index), body_text(entry)))
        rows += _several(name, steps)
    order = {name: number for number, name in enumerate(known)}
    rows.sort(key=lambda row: (row["t_wall"], order[row["log"]], row["first"]))
    return rows[-MOST:], max(0, len(rows) - MOST)


def _several(name: str, steps: list[Entry]) -> list[dict[str, Any]]:
    if not steps:
        return []
    first, last = steps[0], steps[-1]
    numbers = [entry.body["step"] for entry in steps if "step" in entry.body]
    losses = [entry.body["loss"] for entry in steps if entry.kind == "train.step"]
    layers = sum(entry.kind == "train.layer" for entry in steps)
    charges = sum(entry.kind == "dp.charge" for entry in steps)
    text = f"steps {numbers[0]} to {numbers[-1]}" if numbers else ""
    text += f", loss {_short(losses[0])} to {_short(losses[-1])}" if losses else ""
    text += f", norms of tensors {layers} times" if layers else ""
    text += f", {charges:,} charges to the privacy budget" if charges else ""
    where = str(first.index) if first is last else f"{first.index}-{last.index}"
    kind = "train.step" if losses or layers else "dp.charge"
    return [_row(name, first, kind, where, text.removeprefix(", "))]


def _short(loss: object) -> str:
    return f"{loss:.5g}" if isinstance(loss, int | float) else str(loss)


def _row(name: str, entry: Entry, kind: str, where: str, text: str) -> dict[str, Any]:
    return {
        "log": name,
        "index": where,
        "first": entry.index,
        "type": kind,
        "host": entry.host,
        "t_wall": entry.t_wall,
        "stage": controls.stage_of(entry),
        "text": text,
    }


def _of_kind(known: Mapping[str, list[Entry]], kind: str) -> list[dict[str, Any]]:
    found = [(name, entry) for name, log in known.items() for entry in log if entry.kind == kind]
    return [{"log": name, "index": e.index, "t_wall": e.t_wall, "body": entries.finite(e.body)} for name, e in found]


def _privacy(path: Path, known: Mapping[str, list[Entry]]) -> dict[str, Any]:
    """The budget as it adds up from the log alone, and the newest charges."""
    charges = _of_kind(known, "dp.charge")
    found: dict[str, Any] = {"charges": len(charges), "newest": charges[-_LAST:], "replayed": None, "words": None}
    if charges:
        try:
            replayed = replay_run(path)
            found |= {"replayed": as_json(replayed), "words": as_text(replayed)}
        except GovernanceError as error:
            found["words"] = f"cannot be added up: {error}"
    return found


def _checkpoints(report: Report, log: Iterable[Entry]) -> list[dict[str, Any]]:
    commits = {entry.body["step"]: entry for entry in log if entry.kind == "ckpt.commit"}
    found = []
    for step, state in sorted(report.checkpoints.items()):
        entry = commits.get(step)
        body = {} if entry is None else entry.body
        found.append(
            {
                "step": step,
                "index": None if entry is None else entry.index,
                "state": {VERIFIED: "verified", ABSENT: "absent"}.get(state, "faulty" if entry else "unlogged"),
                "words": state,
                **{key: body.get(key) for key in ("payload", "tensor_root", "files", "bytes")},
            }
        )
    return found


def _witnesses(folder: Folder, report: Report, trust: Trust) -> dict[str, Any]:
    """Who cosigned the log of process 0, and which of these signatures a policy of the reader's own vouches for."""
    nothing = {"quorum": "no policy given", "signatures": [], "size": None}
    if (log := report.logs.get("log")) is None:
        return nothing
    try:
        seen: list[Note] = [*cosigned_head(folder, "log", log), log.note]
    except GovernanceError as error:
        return nothing | {"quorum": str(error)}
    note = seen[0]
    quorum, valid = "no policy given", []
    if trust.policy is not None:
        policy = without(trust.policy, own_witnesses(report.logs))
        try:
            trust.judge(log.key, seen, own_witnesses(report.logs), log.keys.former)
            quorum = "met"
        except GovernanceError as error:
            quorum = str(error)
        try:
            valid = list(note.signed_by(policy.witnesses.values()).values())
        except GovernanceError as error:
            quorum = str(error)
    signatures = []
    for signature in note.signatures:
        if signature.name == log.key.name:
            continue
        known = signature in valid  # the time of another one could be anything
        signatures.append({"name": signature.name, "time": signature.time if known else None, "verified": known})
    return {"quorum": quorum, "signatures": signatures, "size": int(note.text.split("\n")[1])}


def _control(control: Control, known: ByKind, whole: Mapping[str, bool]) -> dict[str, Any]:
    found = controls.supports(control, known, whole)
    return {
        "framework": control.framework,
        "number": control.number,
        "title": control.title,
        "status": "supports" if found else NO_EVIDENCE,
        "stages": controls.by_stage(control, known),
        "whole": [each.evidence.kind for each in found if not each.entries],
        "evidence": [
            {"type": e.evidence.kind, "words": e.evidence.words, "count": e.count, "entries": list(e.entries)}
            for e in found
        ],
    }

"""The audit report: what it says is what the log says, it loads nothing, and nothing in the log can become code."""

import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from jaxlm.config import Run
from jaxlm.dossier import NO_EVIDENCE, facts
from jaxlm.dossier_page import page
from jaxlm.folder import Folder
from jaxlm.governance import controls, entries, quorum
from jaxlm.governance.controls import CONTROLS, FRAMEWORKS, STAGES
from jaxlm.governance.keys import Keys
from jaxlm.governance.notes import LogKey, WitnessKey
from jaxlm.governance.trail import Trail
from jaxlm.governance.trust import Trust
from jaxlm.governance.witnessing import cosigned
from tests.governance.test_going_back import START, keys, run  # noqa: F401  (keys and run are fixtures)
from tests.governance.test_run import jaxlm

EVIL = "</td></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u202e\u0007"


@pytest.fixture
def logged(run: Path, keys: Keys) -> Path:  # noqa: F811
    """A run with entries of many types, some of which hold what an attacker would write."""
    with Trail(run / "audit", keys=keys) as trail:
        start = next(entry for entry in trail.history if entry.kind == "run.start").body
        trail.record("run.start", {**START, "signer": start["signer"], "name": EVIL, "node": {"host": EVIL}})
        for step in range(1, 7):
            trail.record("train.step", {"step": step, "loss": 5.0 / step, "batch": "00"})
        trail.record("policy.verdict", {"rule": EVIL, "policy": EVIL, "action": "halt", "why": {EVIL: [EVIL]}})
        trail.record("eval", {"step": 6, "loss": 1.0})
    with Trail(run / "audit", "readers", keys=keys) as trail:
        trail.record("access", {"command": EVIL, "account": EVIL})
        trail.commit("ckpt.snapshot", {"step": 20, "payload": "00", "name": EVIL, "digest": EVIL})
    Folder(run).write_config(Run())
    return run


def _control(found: dict[str, Any], number: str) -> dict[str, Any]:
    return next(control for control in found["controls"] if control["number"] == number)


def test_it_says_which_entries_support_which_control_and_where_there_are_none(logged: Path):
    found = facts(logged, Trust())
    assert found == json.loads(json.dumps(found)), "plain values"
    inventory = _control(found, "A.5.9")
    assert inventory["status"] == "supports"
    commits = next(e for e in inventory["evidence"] if e["type"] == "ckpt.commit")
    assert (commits["entries"], commits["count"]) == (["log/1", "log/2"], 2)
    assert inventory["stages"] == {"design and development": 4, "verification and validation": 0}
    assert _control(found, "A.8.13")["evidence"][0]["entries"] == ["readers/1"]
    assert _control(found, "A.6.2.4")["stages"] == {"verification and validation": 1}
    erasure = _control(found, "A.8.10")
    assert (erasure["status"], erasure["evidence"]) == (NO_EVIDENCE, [])
    assert _control(found, "Art. 13, 14")["evidence"][0]["entries"] == ["log/10"]
    protected = _control(found, "A.5.33")
    assert [e["type"] for e in protected["evidence"]] == ["consistent"], "no witness, and so no evidence of one"
    assert {c["step"]: c["state"] for c in found["checkpoints"]} == {10: "verified", 20: "verified"}
    assert found["verification"]["state"] == "faults"  # of the configuration, which the log does not name here
    steps = [row for row in found["timeline"] if row["type"] == "train.step"]
    assert [(row["index"], row["text"]) for row in steps] == [("4-9", "steps 1 to 6, loss 5 to 0.83333")]


def test_every_control_has_a_place_and_evidence_that_could_exist():
    whole = {controls.WITNESSED, controls.CONSISTENT, controls.EXPORTABLE}
    for control in CONTROLS:
        assert control.framework in FRAMEWORKS
        assert set(control.stages) <= set(STAGES)
        assert control.evidence
        assert {evidence.kind for evidence in control.evidence} <= whole | entries.KINDS.keys(), control.number
    assert {control.framework for control in CONTROLS} == set(FRAMEWORKS)
    assert len({(control.framework, control.number) for control in CONTROLS}) == len(CONTROLS)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _read(text: str) -> _Reader:
    reader = _Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def test_what_somebody_wrote_into_the_log_stays_text(
    logged: Path,
    keys: Keys,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    with Trail(logged / "audit", keys=keys) as trail:
        trail.record("policy.load", {"policy": EVIL, "before": EVIL})
        trail.record("dp.charge", {"mechanism": {"kind": EVIL}, "epsilon": EVIL, "state": "spent"})
        trail.record("policy.approval", {"verdict": 10, "decision": EVIL, "note": EVIL})
    found = facts(logged, Trust())
    text = page(found)
    reader = _read(text)
    names = [tag for tag, _ in reader.tags]
    assert (names.count("script"), names.count("img")) == (1, 0)
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert "<script>alert" not in text
    assert "\u202e" not in text
    assert "\\u{202e}" in text
    assert text.count("&lt;script&gt;alert(1)") >= 8, "name, host, verdict, charge, access and copy are shown"
    policy = next(a["content"] for t, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    monkeypatch.setattr("jaxlm.dossier_page._text", str)  # the defence off
    assert "<script>alert(1)</script>" in page(found)


def test_the_page_loads_nothing(logged: Path):
    reader = _read(page(facts(logged, Trust())))
    links = [a[key] for _, a in reader.tags for key in ("src", "href", "srcset", "data") if key in a]
    assert links
    assert all(link and re.fullmatch(r"#[a-z]+", link) for link in links)
    assert {tag for tag, _ in reader.tags}.isdisjoint({"link", "iframe", "object", "embed", "img"})


def test_witnesses_count_when_a_policy_of_the_reader_knows_them(logged: Path, keys: Keys):  # noqa: F811
    witness = WitnessKey("w.example", keys.log())
    with Trail(logged / "audit", keys=keys) as trail:
        note, key = trail._log.note, trail.verifier
    other = WitnessKey("w.example", Keys(logged.parent / "w").witness())
    cosigned(logged / "audit/log").write_bytes(bytes(note.add([other.cosign(note.text, 1_700_000_000)])))
    policy = quorum.parse(f"log {key}\nwitness w {other.verifier}\nquorum w\n".encode())
    found = facts(logged, Trust(policy=policy))
    assert found["witnesses"]["quorum"] == "met"
    assert found["witnesses"]["signatures"] == [{"name": "w.example", "time": 1_700_000_000, "verified": True}]
    assert [e["type"] for e in _control(found, "A.5.33")["evidence"]] == ["consistent", "witnessed"]
    unknown = facts(logged, Trust())["witnesses"]["signatures"]
    assert unknown == [{"name": "w.example", "time": None, "verified": False}]
    assert witness.verifier != other.verifier


def test_the_command_writes_the_page_also_where_something_does_not_hold(
    logged: Path,
    keys: Keys,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    (tmp_path / "node.vkey").write_text(str(LogKey("node", keys.log()).verifier))
    with Trail(logged / "audit", keys=keys) as trail:
        digest = hashlib.sha256((logged / "config.yaml").read_bytes()).hexdigest()
        start = next(entry for entry in trail.history if entry.kind == "run.start").body
        trail.commit("run.start", {**START, "signer": start["signer"], "config": digest})
    out = tmp_path / "r.html"
    jaxlm("audit", "report", logged, "--key", tmp_path / "node.vkey", "--out", out)
    assert "everything holds" in out.read_text()
    capsys.readouterr()
    jaxlm("audit", "report", logged, "--json")
    assert json.loads(capsys.readouterr().out)["verification"]["state"] == "signer unknown"

    path = max((logged / "checkpoints/20").rglob("d/*"), key=lambda p: p.stat().st_size)
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    shutil.rmtree(logged / "checkpoints/10")
    jaxlm("audit", "report", logged, "--out", out, code=1)
    text = out.read_text()
    _read(text)
    assert "refused" in text
    assert "not here any more" in text

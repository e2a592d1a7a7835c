"""The audit report of a run as one HTML page that asks nothing of any network.

Everything that comes from a log is text of strangers: it goes through `_text` and nowhere else, and the page forbids
itself every script but its own, by the SHA-256 of it.
"""

import base64
import hashlib
import html
import math
import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxlm.dossier_style import SCRIPT, STYLE
from jaxlm.governance.controls import FRAMEWORKS

_BADGES = {
    "anchored": ("good", "everything holds", "A key or policy of the reader's own vouches for the log."),
    "signer unknown": (
        "warn",
        "self-consistent, signer unknown",
        "Whoever can write the run directory could have made all of it: give --key or --policy.",
    ),
    "faults": ("bad", "does not hold", "See below what does not."),
}
_STATES = {
    "verified": ("good", "verified"),
    "absent": ("quiet", "not here"),
    "faulty": ("bad", "refused"),
    "unlogged": ("warn", "not in the log"),
}
_CAVEAT = (
    "Which entries of the log support which control, by stage of the life of the system (ISO/IEC 22989). Support is no "
    "conformity: what an organisation does beside its log is not in it. Numbers of ISO/IEC 27001 and 42001 are those "
    "of public lists; clauses of 23894 and 38507 need checking against a licensed copy. Article 12 of the AI Act asks "
    "for records, and proofs against tampering go beyond it. Numbers count entries; a plain green mark means that the "
    "trail as a whole supports it; a dashed one, that this stage is asked about and nothing is there."
)


def page(facts: Mapping[str, Any]) -> str:
    """The page for what `dossier.facts` returns."""
    run = facts["run"]
    name = run["name"] or run["folder"]
    sha = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{sha}'; base-uri 'none'"
    body = "".join(
        [
            _head(facts, name),
            _section("verification", "Verification", _verification(facts)),
            _section("timeline", "Timeline", _timeline(facts)),
            _section("verdicts", "Policy verdicts", _verdicts(facts)),
            _section("privacy", "Privacy budget", _privacy(facts["privacy"])),
            _section("checkpoints", "Checkpoints", _checkpoints(facts)),
            _section("witnesses", "Logs and witnesses", _witnesses(facts)),
            _section("controls", "Controls", _controls(facts)),
        ]
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_text(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>Audit report: {_text(name)}</title><style>{STYLE}</style></head>"
        f"<body>{body}<script>{SCRIPT}</script></body></html>\n"
    )


def _text(value: object) -> str:
    """Any value as text that is only text: escaped, and without letters that nobody sees or that turn others around."""
    shown = (f"\\u{{{ord(c):x}}}" if c not in "\n\t" and unicodedata.category(c) in _UNSEEN else c for c in str(value))
    return html.escape("".join(shown), quote=True)


_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def _section(key: str, title: str, content: str) -> str:
    return f'<section id="{key}"><h2>{title}</h2>{content}</section>'


def _badge(kind: str, words: object) -> str:
    return f'<span class="badge {kind}">{_text(words)}</span>'


def _none(words: str) -> str:
    return f'<p class="none">{_text(words)}</p>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], attributes: str = "") -> str:
    """Cells are HTML already."""
    top = "".join(f"<th>{_text(head)}</th>" for head in heads)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table {attributes}><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def _when(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):  # a host may write any number
        return str(seconds)


def _code(value: object, length: int = 16) -> str:
    text = str(value)
    return f'<code title="{_text(text)}">{_text(text[:length])}{"&hellip;" if len(text) > length else ""}</code>'


def _pairs(value: Any) -> str:
    """A JSON value, one line per key of an object."""
    if isinstance(value, Mapping):
        return "".join(f'<div class="pair"><b>{_text(k)}</b> {_pairs(v)}</div>' for k, v in value.items())
    return _text(value)


def _head(facts: Mapping[str, Any], name: str) -> str:
    run, kind = facts["run"], _BADGES[facts["verification"]["state"]]
    counts, controls = facts["counts"], facts["controls"]
    supported = sum(control["status"] == "supports" for control in controls)
    tiles = [
        (f"{sum(counts.values()):,}", "entries"),
        (f"{counts.get('ckpt.commit', 0):,}", "checkpoints logged"),
        (f"{len(facts['verdicts']):,}", "verdicts"),
        (f"{sum(s['verified'] for s in facts['witnesses']['signatures'])}", "witnesses verified"),
        (f"{supported} of {len(controls)}", "controls with support"),
    ]
    boxes = "".join(f'<div class="tile"><b>{_text(number)}</b>{_text(words)}</div>' for number, words in tiles)
    about = f"run {_text(run['id'] or 'unknown')} &middot; {_text(run['stage'] or 'no start logged')}"
    about += f" &middot; made {_text(facts['made'])}"
    links = ("verification", "timeline", "verdicts", "privacy", "checkpoints", "witnesses", "controls")
    nav = "".join(f'<a href="#{link}">{link}</a>' for link in links)
    return (
        f'<header><div><p class="over">Audit report</p><h1>{_text(name)}</h1><p class="about">{about}</p></div>'
        f'<div class="state">{_badge(kind[0], kind[1])}<p>{_text(kind[2])}</p></div></header>'
        f'<nav>{nav}</nav><div class="tiles">{boxes}</div>{_chart(facts)}'
    )


def _chart(facts: Mapping[str, Any]) -> str:
    """Loss by step, with the checkpoints below."""
    points = [(step, loss) for step, loss in facts["losses"] if math.isfinite(loss)]
    if len(points) < 2:
        return ""
    points = points[:: max(1, len(points) // 600)]
    (first, last), losses = (points[0][0], points[-1][0]), [loss for _, loss in points]
    low, high = min(losses), max(losses)
    across = lambda step: 1000 * (step - first) / max(1, last - first)
    line = " ".join(f"{across(s):.1f},{110 - 100 * (v - low) / ((high - low) or 1):.1f}" for s, v in points)
    marks = "".join(
        f'<circle class="{_STATES[c["state"]][0]}" cx="{across(c["step"]):.1f}" cy="124" r="5">'
        f"<title>checkpoint {c['step']}: {_text(c['words'])}</title></circle>"
        for c in facts["checkpoints"]
        if isinstance(c["step"], int) and first <= c["step"] <= last
    )
    return (
        '<figure><svg viewBox="-10 0 1020 132" preserveAspectRatio="none" role="img" aria-label="loss by step">'
        f'<polyline fill="none" points="{line}"/>{marks}</svg>'
        f"<figcaption>loss by step as logged, {_text(f'{losses[0]:.4g}')} to "
        f"{_text(f'{losses[-1]:.4g}')} over steps {first} to {last}; below, checkpoints</figcaption></figure>"
    )


def _verification(facts: Mapping[str, Any]) -> str:
    said = facts["verification"]
    kinds = (("bad", "does not hold", "faults"), ("warn", "alert", "alerts"), ("good", "holds", "holds"))
    lines = [(kind, word, line) for kind, word, key in kinds for line in said[key]]
    return "<ul>" + "".join(f"<li>{_badge(kind, word)} {_text(line)}</li>" for kind, word, line in lines) + "</ul>"


def _timeline(facts: Mapping[str, Any]) -> str:
    rows = facts["timeline"]
    kinds = sorted({row["type"] for row in rows})
    chips = "".join(
        f'<label class="chip"><input type="checkbox" value="{_text(kind)}" checked> {_text(kind)}</label>'
        for kind in kinds
    )
    lines = "".join(
        f'<tr data-type="{_text(row["type"])}"><td class="time">{_text(_when(row["t_wall"]))}</td>'
        f'<td class="place"><code>{_text(row["log"])}/{_text(row["index"])}</code></td><td>{_text(row["host"])}</td>'
        f'<td><span class="kind">{_text(row["type"])}</span></td><td class="body">{_text(row["text"])}</td></tr>'
        for row in rows
    )
    cut = f"<p>{facts['timeline_left_out']:,} older rows are left out.</p>" if facts["timeline_left_out"] else ""
    top = "".join(f"<th>{head}</th>" for head in ("UTC, by its host", "entry", "host", "type", "what it says"))
    return (
        f'{cut}<div class="filters" data-for="entries"><input type="search" placeholder="filter by any text">{chips}'
        f'<span class="shown"></span></div><div class="wide tall"><table id="entries"><thead><tr>{top}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _verdicts(facts: Mapping[str, Any]) -> str:
    verdicts = facts["verdicts"]
    policies = _others(facts["policies"], "Policies in force")
    if not verdicts:
        return _none("no verdict in this run") + policies
    colours = {"halt": "bad", "review": "warn", "alert": "warn", "deny": "warn"}
    rows = [
        (
            _text(_when(v["t_wall"])),
            f"<code>{_text(v['log'])}/{v['index']}</code>",
            _badge(colours.get(str(v["body"].get("action")), "quiet"), v["body"].get("action")),
            _text(v["body"].get("rule")),
            _pairs({k: w for k, w in v["body"].items() if k not in ("action", "rule", "policy")}),
            _code(v["body"].get("policy")),
        )
        for v in verdicts
    ]
    made = _table(("UTC", "entry", "action", "rule", "what else", "policy"), rows)
    return made + _others(facts["approvals"], "What people decided") + policies


def _others(found: Sequence[Mapping[str, Any]], title: str) -> str:
    if not found:
        return ""
    rows = [
        (_text(_when(each["t_wall"])), f"<code>{_text(each['log'])}/{each['index']}</code>", _pairs(each["body"]))
        for each in found
    ]
    return f"<h3>{title}</h3>" + _table(("UTC", "entry", "what it says"), rows)


def _privacy(budget: Mapping[str, Any]) -> str:
    if not (charges := budget["newest"]):
        return _none("nothing was charged to a privacy budget in this run")
    rows = [
        (
            _text(_when(c["t_wall"])),
            f"<code>{_text(c['log'])}/{c['index']}</code>",
            _text(c["body"].get("state")),
            _text(c["body"].get("epsilon")),
            _pairs(c["body"].get("mechanism")),
            _pairs({k: w for k, w in c["body"].items() if k not in ("state", "epsilon", "mechanism")}),
        )
        for c in charges
    ]
    words = "".join(f"<li>{_text(line)}</li>" for line in budget["words"].splitlines())
    more = f"<p>The newest {len(rows)} of {budget['charges']:,} entries:</p>"
    return f"<ul>{words}</ul>{more}" + _table(("UTC", "entry", "state", "epsilon", "mechanism", "what else"), rows)


def _checkpoints(facts: Mapping[str, Any]) -> str:
    if not facts["checkpoints"]:
        return _none("no checkpoint is there or in the log")
    rows = [
        (
            _text(c["step"]),
            _badge(*_STATES[c["state"]]),
            _text(c["words"]),
            "" if c["index"] is None else f"<code>log/{c['index']}</code>",
            _code(c["payload"] or ""),
            _code(c["tensor_root"] or ""),
            "" if c["bytes"] is None else f"{_text(c['files'])} files, {_text(c['bytes'])} bytes",
        )
        for c in facts["checkpoints"]
    ]
    made = _table(("step", "state", "why", "entry", "signed payload", "tensor root", "size"), rows)
    if not facts["copies"]:
        return made
    copies = [
        (
            _text(c["body"].get("step")),
            _text(c["body"].get("name")),
            f"<code>{_text(c['log'])}/{c['index']}</code>",
            _code(c["body"].get("digest")),
        )
        for c in facts["copies"]
    ]
    return made + "<h3>Encrypted copies</h3>" + _table(("step", "file", "entry", "SHA-256"), copies)


def _witnesses(facts: Mapping[str, Any]) -> str:
    logs = [
        (
            _text(log["name"]),
            f"{log['size']:,}",
            _code(log["root"]),
            f"<code>{_text(log['key'])}</code>",
            ", ".join(f"entry {each['index']}" for each in log["handovers"]) or "none",
        )
        for log in facts["logs"]
    ]
    made = _table(("log", "entries", "root", "public key", "handed over at"), logs)
    seen = facts["witnesses"]
    quorum = f"<p>Quorum: {_text(seen['quorum'])}.</p>"
    if not seen["signatures"]:
        return made + "<h3>Witnesses</h3>" + quorum + _none("no witness has cosigned the log")
    rows = [
        (
            _text(s["name"]),
            _badge("good", "verified") if s["verified"] else _badge("warn", "key not known to the reader"),
            _text("" if s["time"] is None else _when(s["time"])),
            _text(seen["size"]),
        )
        for s in seen["signatures"]
    ]
    return (
        made + "<h3>Witnesses</h3>" + quorum + _table(("witness", "state", "UTC, by its clock", "entries seen"), rows)
    )


def _controls(facts: Mapping[str, Any]) -> str:
    options = "".join(f'<option value="{_text(name)}">{_text(name)}</option>' for name in FRAMEWORKS)
    heads = ["control", "state", *facts["stages"], "supported by"]
    top = "".join(f'<th class="{"stage" if h in facts["stages"] else ""}">{_text(h)}</th>' for h in heads)
    lines, before = [], None
    for control in facts["controls"]:
        if control["framework"] != before:
            before = control["framework"]
            name = _text(before)
            lines.append(f'<tr class="framework" data-type="{name}"><th colspan="{len(heads)}">{name}</th></tr>')
        lines.append(_control(control, facts["stages"]))
    return (
        f"<p>{_text(_CAVEAT)}</p>"
        '<div class="filters" data-for="mapping"><input type="search" placeholder="filter by any text">'
        f'<select><option value="">all of them</option>{options}</select>'
        '<label class="chip"><input type="checkbox" class="only"> only with support</label>'
        f'<span class="shown"></span></div><div class="wide"><table id="mapping"><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _control(control: Mapping[str, Any], stages: Sequence[str]) -> str:
    supported = control["status"] == "supports"
    cells = []
    for stage in stages:
        asked, count = stage in control["stages"], control["stages"].get(stage, 0)
        dot = f'<i class="full">{count:,}</i>' if count else '<i class="half"></i>' if control["whole"] else "<i></i>"
        cells.append(f'<td class="stage">{dot if asked else ""}</td>')
    found = "".join(
        f"<li><b>{_text(e['type'])}</b> {_text(e['words'])}"
        + (f": {e['count']:,}, <code>{_text(', '.join(e['entries']))}</code>" if e["entries"] else "")
        + (" &hellip;" if e["count"] > len(e["entries"]) > 0 else "")
        + "</li>"
        for e in control["evidence"]
    )
    return (
        f'<tr data-type="{_text(control["framework"])}" data-supported="{int(supported)}">'
        f"<td><b>{_text(control['number'])}</b><br>{_text(control['title'])}</td>"
        f"<td>{_badge('good' if supported else 'quiet', control['status'])}</td>{''.join(cells)}"
        f"<td>{f'<ul>{found}</ul>' if found else ''}</td></tr>"
    )

"""What was found, as one web page that needs nothing else: no script from elsewhere, no font, no picture.

Every text that comes from data is escaped, and data for the script is written so that it cannot end the script.
"""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.explain.rules import Rule, Template, Terms

HEADS = (
    "rule", "support", "coverage", "precision to the model", "at least (95 %, all rules tried)", "precision to people",
    "finding",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """One text on the page.

    Attributes:
        words: of the text.
        probabilities: float [C] by class.
        scores: method -> float [W].
        label: what people say; None where unknown.
        rationale: bool [W], what people marked; None where nobody was asked.
        rules: numbers of the rules that hold in it.
    """

    words: Sequence[str]
    probabilities: np.ndarray
    scores: Mapping[str, np.ndarray]
    label: int | None = None
    rationale: np.ndarray | None = None
    rules: tuple[int, ...] = ()


def page(
    title: str,
    classes: Sequence[str],
    texts: Sequence[Explained],
    rules: Sequence[Rule] = (),
    *,
    template: Template = Template(),
    terms: Terms | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The page. Filters: class, a word, right or wrong, a rule; a method is shown by itself or beside all others."""
    methods = list(dict.fromkeys(name for text in texts for name in text.scores))
    data = [_facts(text) for text in texts]
    escape = html.escape

    def choice(name: str, shown: str, options: Sequence[tuple[str, str]]) -> str:
        made = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options)
        return f'<label>{shown} <select id="{name}">{made}</select></label>'

    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_file("page.css")}</style></head><body>
<h1>{escape(title)}</h1>
<p class="notes">{"<br>".join(map(escape, notes))}</p>
<div class="bar">
{choice("method", "method", [("", "all, side by side"), *((m, m) for m in methods)])}
{choice("says", "model says", [("", "any"), *((str(i), c) for i, c in enumerate(classes))])}
{choice("right", "is", [("", "right or wrong"), ("1", "right"), ("0", "wrong")])}
<label>with the word <input id="word" type="search"></label>
<span id="count"></span></div>
<h2>Rules</h2>{_rules(rules, classes, template, terms or {})}
<h2>Texts</h2><div id="texts"></div>
<script type="application/json" id="data">{_safe({"classes": list(classes), "texts": data})}</script>
<script>{_file("page.js")}</script></body></html>
"""


def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _safe(value: Any) -> str:
    return json.dumps(value).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _facts(text: Explained) -> dict[str, Any]:
    return {
        "words": list(text.words),
        "p": [round(float(p), 4) for p in text.probabilities],
        "scores": {name: [round(float(v), 4) for v in _scaled(scores)] for name, scores in text.scores.items()},
        "label": text.label,
        "marked": None if text.rationale is None else [int(m) for m in text.rationale],
        "rules": list(text.rules),
    }


def _scaled(scores: np.ndarray) -> np.ndarray:
    """Largest size 1; the sign stays."""
    size = np.max(np.abs(scores), initial=0.0)
    return scores / size if size else scores


def _rules(rules: Sequence[Rule], classes: Sequence[str], template: Template, terms: Terms) -> str:
    if not rules:
        return "<p>No rule: give a file of texts with --data to mine some.</p>"
    rows = []
    for number, rule in enumerate(rules):
        found = rule.chosen_on
        people = "-" if found.people is None else f"{found.precision_to_people:.2f}"
        finding = f"bias: identity term ({rule.group})" if rule.group else ""
        cells = [
            template.render(rule.clause, classes, terms), str(found.support), f"{found.coverage:.1%}",
            f"{found.precision:.2f}", f"{rule.bound:.2f}", people, finding,
        ]  # fmt: skip
        rows.append(f'<tr data-rule="{number}">' + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>")
    heads = "".join(f"<th>{name}</th>" for name in HEADS)
    tried = f"<p>Counted on validation texts; {rules[0].tried} rules were tried. Click a rule to see its texts.</p>"
    return f'{tried}<table id="rules"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'

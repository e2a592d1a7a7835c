"""What rules are worth: fidelity beside other lists of equal size, bounds on unseen texts, flips, identity terms."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.explained import Splits, gold_of, paired
from experiments.report import Row
from jaxlm.explain import rules, surrogates
from jaxlm.explain.fidelity import agreement
from jaxlm.explain.methods import METHODS
from jaxlm.explain.rules import Judged, Rule
from jaxlm.explain.subject import Subject
from jaxlm.explain.texts import Example
from jaxlm.explaining import identity_terms

LEAST = 10
"""Texts on which a rule must stand to be spoken of."""


def mined(subject: Subject, seen: Judged, name: str = "ours, not smoothed") -> list[rules.Clause]:
    """Clauses of a method's relevance on the training texts."""
    return rules.mine(seen, METHODS[name](subject, seen.texts, seen.says))


def judged(subject: Subject, texts: Sequence[Example]) -> Judged:
    labels = np.array([-1 if e.label is None else e.label for e in texts])
    return rules.judged(subject, [e.words for e in texts], labels)


OURS, BAG, SHUFFLED, TREE = "rule list, ours", "rule list, bag of words", "rule list, shuffled attention", "tree"


def fidelity_rows(subject: Subject, seen: Judged, held: Judged, size: int) -> list[Row]:
    """Lists and a tree of equal size, learned on the training texts, judged on the test texts.

    Lists are made in two ways. `chosen`: each next rule is the one of all candidates that gains most agreement with the
    model; the candidates matter little then, since the model's own answers pick among them. `as ranked`: the first
    clauses in the order of the method that proposed them, nothing picked: this is what the attention, or the weights,
    know by themselves, and where a shuffled attention has to fall to the most frequent class.
    """
    proposed = {
        OURS: mined(subject, seen),
        BAG: surrogates.weighted_clauses(seen),
        SHUFFLED: mined(subject, seen, "shuffled attention"),
    }
    default = int(np.bincount(seen.says).argmax())
    usual = (held.says == default).astype(float)
    rows = [Row(what="most frequent class", quantity="fidelity to the model", measured=float(usual.mean()))]
    same: dict[tuple[str, str], np.ndarray] = {}
    for name, clauses in proposed.items():
        for way, found in (
            ("chosen", rules.rule_list(clauses, seen, size)),
            ("as ranked", rules.RuleList(tuple(clauses[:size]), default)),
        ):
            same[name, way] = (found.predict(held.texts) == held.says).astype(float)
    grown = surrogates.tree(seen, size)
    same[TREE, "chosen"] = (np.array([grown.says(s) for s in held.sets()]) == held.says).astype(float)
    for (name, way), right in same.items():
        note = f"{way}; {size} rules or words asked"
        rows.append(Row(what=name, quantity="fidelity to the model", measured=float(right.mean()), note=note))
    for name, way in same:
        if name != OURS:
            rows.append(paired(OURS, name, f"fidelity difference, {way}", same[OURS, way], same[name, way]))
    for way in ("chosen", "as ranked"):
        gain, left = (float((same[name, way] - usual).mean()) for name in (OURS, SHUFFLED))
        kept = left / gain if gain > 0 else float("nan")
        note = f"{way}; ours {gain:+.3f}, shuffled {left:+.3f}; 0: collapsed to that class, 1: nothing lost"
        quantity = "share of ours above the most frequent class"
        rows.append(Row(what=SHUFFLED, quantity=quantity, measured=kept, note=note))
    return rows


def chosen_rows(subject: Subject, chosen: Sequence[Rule], held: Judged, test: Sequence[Example]) -> list[Row]:
    """The rules that validation chose, on the test texts."""
    kept, many = rules.bounds_held(chosen, held, least=LEAST)
    share = kept / many if many else float("nan")
    tried = chosen[0].tried if chosen else 0
    verdict = "met" if share >= 0.95 else "MISSED"
    note = f"{verdict}: target .95; {len(chosen)} chosen of {tried} tried, {many} with {LEAST} test texts"
    rows = [Row(what="rules", quantity="bounds that hold on test", measured=share, note=note)]
    flip = rules.flips(subject, [r.clause for r in chosen], held)
    verdict = "met" if flip.p < 0.01 else "MISSED"
    note = f"{verdict}: random deletion {flip.random:.3f}, p = {flip.p:.2g} over {flip.texts} texts"
    rows.append(Row(what="rules", quantity="flip rate", measured=flip.rule, note=note))
    identity = sum(r.group is not None for r in chosen)
    rows.append(Row(what="rules", quantity="with an identity term", measured=identity, note="a finding of bias"))
    marks = [rules.marks([r.clause for r in chosen if r.clause.label > 0], e.words) for e in test]
    iou = agreement([m.astype(float) for m in marks], gold_of(test), marks).iou
    note = "words of the rules that hold; paper's satisfaction 89.2 %: no participants here"
    return [*rows, Row(what="rules", quantity="token IoU", paper=0.61, measured=iou, note=note)]


def rule_rows(
    subject: Subject, splits: Splits, test: Sequence[Example], *, most: int, size: int, floor: float
) -> tuple[list[Row], list[Rule], Judged]:
    """Mined on at most `most` training texts, chosen on validation, judged on the test split."""
    seen = rules.judged(subject, [e.words for e in splits.train[:most]])
    valid, held = judged(subject, splits.valid), judged(subject, splits.test)
    chosen = rules.choose(mined(subject, seen), valid, floor=floor, least=LEAST, terms=identity_terms())
    rows = [*fidelity_rows(subject, seen, held, size), *chosen_rows(subject, chosen, held, test)]
    return rows, chosen, held


def before_and_after(chosen: Sequence[Rule], held: Judged, other: Subject) -> list[Row]:
    """The rules of one model, counted under another on the same test texts."""
    after, rows = Judged(held.texts, other.predict(held.texts), held.labels), []
    changes = [c for c in rules.compared(chosen, held, after) if c.before.support >= LEAST]
    for name, identity in (("an identity term", True), ("no identity term", False)):
        part = [c for c in changes if (c.group is not None) == identity]
        value: Any = np.mean([c.after.precision for c in part]) if part else None
        before = f"{np.mean([c.before.precision for c in part]):.3f} before debiasing; " if part else ""
        note = f"{before}{len(part)} rules"
        measured = None if value is None else float(value)
        rows.append(Row(what=f"rules with {name}", quantity="precision after debiasing", measured=measured, note=note))
    return rows

"""`jaxlm explain`: a trained classifier opened, its texts explained by every method asked for, and the page written."""

import difflib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.data.config import DataError
from jaxlm.data.labelled.corpus import read_labelled
from jaxlm.data.labelled.lists import LISTS
from jaxlm.data.labelled.rows import TRAIN, VALID, Labelled, words
from jaxlm.data.labelled.vocabulary import MASK
from jaxlm.decode import ConfigError
from jaxlm.explain import study
from jaxlm.explain.methods import METHODS
from jaxlm.explain.page import Explained, page
from jaxlm.explain.rules import TEMPLATES, Rule, choose, judged, marks, mine
from jaxlm.explain.subject import NOTHING, Subject
from jaxlm.explain.texts import Example, WordEncoder
from jaxlm.files import write_whole
from jaxlm.folder import open_run
from jaxlm.inspect import load_classifier

SHOWN = ("ours", "vanilla attention", "rollout", "Grad-CAM", "gradient x input", "integrated gradients")
"""The methods on a page where none are named."""

ROWS = 64


@dataclass(frozen=True)
class Opened:
    """A run's classifier under explanation. Work inside `with opened.mesh():`."""

    subject: Subject
    session: Any
    path: Path

    def mesh(self) -> AbstractContextManager[Any]:
        return jax.set_mesh(self.session.mesh)


def open_subject(path: Path, step: int | None = None, *, allow_unverified: bool = False) -> Opened:
    """Raises ConfigError where the run is no classifier."""
    found = load_classifier(path, step, allow_unverified=allow_unverified)
    encoder = WordEncoder(found.vocabulary, longest=found.sequence, mask=MASK)
    replicas = found.session.plan.devices
    rows = -(-ROWS // replicas) * replicas
    return Opened(Subject(found.model, encoder, tuple(found.classes), rows), found.session, path)


def examples(data: Labelled, split: str | None = None) -> list[Example]:
    """The rows of a labelled data set, or of one split of it."""
    return [
        Example(p.words, p.label, None if p.rationale is None else np.array(p.rationale, bool), p.id)
        for p in data.posts
        if split in (None, p.split) and p.words
    ]


def identity_terms() -> dict[str, str]:
    """Word -> attribute/group, by the word lists of the fairness work; the first list that holds a word names it."""
    found: dict[str, str] = {}
    for attribute, groups in LISTS.items():
        for group, members in groups.items():
            for word in members:
                found.setdefault(word, f"{attribute}/{group}")
    return found


def mined_rules(
    subject: Subject, train: Sequence[Example], valid: Sequence[Example], *, most: int = 4000
) -> list[Rule]:
    """Rules of the model, mined on at most `most` training texts by our relevance, chosen on the validation texts."""
    train = train[:most]
    texts = [e.words for e in train]
    seen = judged(subject, texts)
    scores = METHODS["ours, not smoothed"](subject, texts, seen.says)
    labels = np.array([-1 if e.label is None else e.label for e in valid])
    held = judged(subject, [e.words for e in valid], labels)
    return choose(mine(seen, scores), held, terms=identity_terms())


def texts_of(path: Path, dataset: Any) -> list[Example]:
    """A file of texts: one per line (.txt), or of the format that the run was trained on. Raises DataError."""
    if path.suffix != ".txt":
        return examples(read_labelled(dataset, str(path)))
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--data {path} cannot be read: {error}") from error
    found = [Example(words(line)) for line in lines if words(line)]
    if not found:
        raise DataError(f"--data {path} holds no text")
    return found


def checked_methods(names: Sequence[str]) -> list[str]:
    """Raises ConfigError for a method that does not exist."""
    for name in names:
        if name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"--methods: there is no method {name!r}{hint} Known: {', '.join(METHODS)}")
    return list(names or SHOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What `jaxlm explain` was asked."""

    run: Path
    text: str | None = None
    data: Path | None = None
    html: Path | None = None
    methods: tuple[str, ...] = ()
    template: str = "general"
    limit: int = 200
    study: Path | None = None
    step: int | None = None
    allow_unverified: bool = False


def explain_run(asked: Request) -> tuple[str, dict[str, Any]]:
    """Explains, writes what was asked for, and says it: as text and as facts. Raises ConfigError and DataError."""
    if (asked.text is None) == (asked.data is None):
        raise ConfigError("say what to explain: --text TEXT or --data FILE, one of them")
    if asked.template not in TEMPLATES:
        raise ConfigError(f"--template {asked.template!r}: there are {', '.join(TEMPLATES)}")
    if asked.text is not None and not words(asked.text):
        raise ConfigError("--text holds no word")
    methods = checked_methods(asked.methods)
    _, run = open_run(asked.run)
    dataset = None if run.classify is None else run.classify.dataset
    given = [Example(words(asked.text))] if asked.text is not None else None
    opened = open_subject(asked.run, asked.step, allow_unverified=asked.allow_unverified)
    if given is None:
        assert asked.data is not None
        given = texts_of(asked.data, dataset)[: asked.limit]
    with opened.mesh():
        rules, note = _rules_of(opened.subject, run)
        found = _explained(opened.subject, given, methods, rules)
        facts = {
            "run": str(asked.run),
            "classes": list(opened.subject.classes),
            "texts": [_facts(opened.subject, each) for each in found],
            "rules": [_rule_facts(rule, opened.subject, asked.template) for rule in rules],
            "note": note,
        }
        if asked.html is not None:
            title = f"Why {asked.run.name} says what it says"
            notes = [note, "Colours are relative within each text and method. A method's claim is no proof of cause."]
            made = page(
                title, opened.subject.classes, found, rules,
                template=TEMPLATES[asked.template], terms=identity_terms(), notes=[n for n in notes if n],
            )  # fmt: skip
            write_whole(asked.html, made.encode())
            facts["html"] = str(asked.html)
        if asked.study is not None:
            facts["study"] = [str(path) for path in _study(opened.subject, given, rules, asked.study)]
    return _said(facts, found, methods), facts


def _rules_of(subject: Subject, run: Any) -> tuple[list[Rule], str]:
    """Rules from the data that the run was trained on, where it can still be read."""
    try:
        data = read_labelled(run.classify.dataset, run.data.path)
    except DataError as error:
        return [], f"no rules: the run's own texts cannot be read ({error})"
    return mined_rules(subject, examples(data, TRAIN), examples(data, VALID)), ""


def _explained(
    subject: Subject, given: Sequence[Example], methods: Sequence[str], rules: Sequence[Rule]
) -> list[Explained]:
    texts = [e.words for e in given]
    probabilities = subject.probabilities(texts)
    says = probabilities.argmax(-1)
    scores = {name: METHODS[name](subject, texts, says) for name in methods}
    return [
        Explained(
            words=e.words,
            probabilities=probabilities[i],
            scores={name: values[i] for name, values in scores.items()},
            label=e.label,
            rationale=e.rationale,
            rules=tuple(n for n, rule in enumerate(rules) if rule.clause.holds(frozenset(e.words))),
        )
        for i, e in enumerate(given)
    ]


def _study(
    subject: Subject, given: Sequence[Example], rules: Sequence[Rule], folder: Path, count: int = 12
) -> list[Path]:
    """Forms over the first texts that a rule speaks of; each arm points out as many words as the rules do."""
    clauses, shown = [rule.clause for rule in rules], []
    for example in given:
        label = int(subject.predict([example.words])[0])
        ours = marks(clauses, example.words, label)
        if not ours.any() or len(shown) == count:
            continue
        asked, pointed = np.array([NOTHING]), {"ours": ours}
        for arm in study.ARMS[1:]:
            (scores,) = METHODS[arm](subject, [example.words], asked)
            pointed[arm] = np.isin(np.arange(len(scores)), np.argsort(-scores)[: int(ours.sum())])
        shown.append(study.Shown(example.words, subject.classes[label], pointed))
    if not shown:
        raise ConfigError("--study: no rule holds in any of these texts; give more of them with --data")
    return study.export(folder, shown)


def _facts(subject: Subject, each: Explained) -> dict[str, Any]:
    return {
        "words": list(each.words),
        "probabilities": dict(zip(subject.classes, map(float, each.probabilities), strict=True)),
        "scores": {name: [float(v) for v in values] for name, values in each.scores.items()},
        "rules": list(each.rules),
    }


def _rule_facts(rule: Rule, subject: Subject, template: str) -> dict[str, Any]:
    found = rule.chosen_on
    return {
        "rule": TEMPLATES[template].render(rule.clause, subject.classes, identity_terms()),
        "words": list(rule.clause.words),
        "label": subject.classes[rule.clause.label],
        "support": found.support,
        "coverage": found.coverage,
        "precision": found.precision,
        "at_least": rule.bound,
        "precision_to_people": found.precision_to_people,
        "tried": rule.tried,
        "identity": rule.group,
    }


def _said(facts: dict[str, Any], found: Sequence[Explained], methods: Sequence[str]) -> str:
    """The first text in a terminal, and what was written."""
    first, lines = found[0], []
    label = facts["classes"][int(first.probabilities.argmax())]
    lines.append(f"{label} ({first.probabilities.max():.1%})")
    for name in methods:
        order = np.argsort(-first.scores[name], kind="stable")[:5]
        lines.append(f"  {name:<24} {', '.join(str(first.words[int(i)]) for i in order)}")
    for number in first.rules[:5]:
        rule = facts["rules"][number]
        bias = f"; bias finding: identity term {rule['identity']}" if rule["identity"] else ""
        lines.append(f"  {rule['rule']} (at least {rule['at_least']:.0%} of {rule['support']} texts{bias})")
    if len(found) > 1:
        lines.append(f"{len(found) - 1} more texts")
    lines += [facts["note"]] if facts["note"] else []
    lines += [f"saved {facts['html']}"] if "html" in facts else []
    lines += [f"saved {', '.join(facts['study'])}"] if "study" in facts else []
    return "\n".join(lines)

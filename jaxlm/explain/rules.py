"""Rules of the form IF words THEN label: mined on one split, chosen on a second, judged on a third.

A rule speaks of the *model*: precision is how often the model gives the label where the words stand. What people say is
shown beside it. Every number of a rule that is printed comes with the number of texts it stands on, and the bound on
its precision is corrected for how many rules were tried.

Axes: N texts, W words of a text, C classes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import beta, binomtest

from jaxlm.explain.bags import incidence
from jaxlm.explain.fidelity import top
from jaxlm.explain.subject import Subject, Words

Terms = Mapping[str, str]
"""A vocabulary: word -> the group it is a term of, e.g. an identity, a legal or a medical category."""


@dataclass(frozen=True, slots=True)
class Clause:
    """IF all these words stand in a text THEN the model says `label`."""

    words: tuple[str, ...]
    label: int

    def holds(self, words: frozenset[str]) -> bool:
        return all(word in words for word in self.words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """How a clause is put into words: `{words}`, `{context}`, `{label}`, and whatever vocabularies it names."""

    rule: str = "IF the text says {words}{context} THEN the model says {label}"
    joined: str = " and "
    context: str = " (a term of {group})"

    def render(self, clause: Clause, classes: Sequence[str], terms: Terms) -> str:
        groups = sorted({terms[word] for word in clause.words if word in terms})
        context = self.context.format(group=", ".join(groups)) if groups else ""
        named = self.joined.join(f'"{word}"' for word in clause.words)
        return self.rule.format(words=named, context=context, label=classes[clause.label])


TEMPLATES = {
    "general": Template(),
    "legal": Template(
        rule="WHERE the clause contains {words}{context}, the model classifies it as {label}",
        context=" (legal term: {group})",
    ),
    "medical": Template(
        rule="GIVEN {words}{context} in the note, the model suggests {label}", joined=" with ", context=" ({group})"
    ),
}
"""By domain; more may be given."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Texts with what the model and people say of them."""

    texts: Sequence[Words]
    says: np.ndarray
    labels: np.ndarray | None = None

    def sets(self) -> list[frozenset[str]]:
        return [frozenset(words) for words in self.texts]


def judged(subject: Subject, texts: Sequence[Words], labels: np.ndarray | None = None) -> Judged:
    """Asks the model."""
    return Judged(texts, subject.predict(texts), labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """A rule on some texts: how many hold its words, for how many of them the model, and people, say its label."""

    texts: int
    support: int
    model: int
    people: int | None

    @property
    def coverage(self) -> float:
        return self.support / self.texts if self.texts else 0.0

    @property
    def precision(self) -> float:
        return self.model / self.support if self.support else float("nan")

    @property
    def precision_to_people(self) -> float:
        return float("nan") if self.people is None or not self.support else self.people / self.support


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A clause that was kept.

    Attributes:
        clause: what it says.
        chosen_on: its counts on the validation split, where it was chosen.
        bound: lower bound on its precision to the model, from those counts, corrected for the rules tried.
        tried: how many rules were tried.
        group: the vocabulary group of its terms, None where it has none. Identity groups make it a finding of bias.
    """

    clause: Clause
    chosen_on: Counts
    bound: float
    tried: int
    group: str | None = None


def lower_bound(hits: int, of: int, *, tried: int = 1, level: float = 0.95) -> float:
    """Clopper-Pearson lower bound of a share, one-sided, at `level` for all `tried` rules at once (Bonferroni)."""
    return float(beta.ppf((1.0 - level) / tried, hits, of - hits + 1)) if hits else 0.0


def count(clause: Clause, data: Judged, sets: Sequence[frozenset[str]] | None = None) -> Counts:
    held = [i for i, words in enumerate(data.sets() if sets is None else sets) if clause.holds(words)]
    people = None if data.labels is None else int(np.count_nonzero(data.labels[held] == clause.label))
    model = int(np.count_nonzero(data.says[held] == clause.label))
    return Counts(texts=len(data.texts), support=len(held), model=model, people=people)


def mine(
    data: Judged,
    scores: Sequence[np.ndarray],
    *,
    k: int = 5,
    least: int = 10,
    longest: int = 2,
    most: int = 400,
    stop: frozenset[str] = frozenset(),
) -> list[Clause]:
    """Clauses out of the `k` most relevant words of each text, singly and in combination, that come up in at least
    `least` texts with one label; the most frequent `most` of them. `scores` are of the label that the model gives."""
    found: Counter[Clause] = Counter()
    for words, values, says in zip(data.texts, scores, data.says, strict=True):
        relevant = {words[int(i)] for i in np.flatnonzero(top(values, k) & (values > 0))} - stop
        for size in range(1, longest + 1):
            found.update(Clause(each, int(says)) for each in combinations(sorted(relevant), size))
    kept = [(clause, n) for clause, n in found.items() if n >= least]
    kept.sort(key=lambda pair: (-pair[1], pair[0].words, pair[0].label))
    return [clause for clause, _ in kept[:most]]


def choose(
    clauses: Sequence[Clause],
    valid: Judged,
    *,
    least: int = 10,
    floor: float = 0.6,
    terms: Terms | None = None,
    level: float = 0.95,
) -> list[Rule]:
    """The clauses whose precision on the validation split has a corrected lower bound of at least `floor`, on at least
    `least` texts, the surest first. A pair of words is left out where one of the two is at least as precise alone."""
    sets, terms = valid.sets(), terms or {}
    counted = {clause: count(clause, valid, sets) for clause in clauses}
    tried = max(1, sum(c.support >= least for c in counted.values()))
    rules = []
    for clause, found in counted.items():
        bound = lower_bound(found.model, found.support, tried=tried, level=level)
        shorter = [counted.get(Clause((word,), clause.label)) for word in clause.words] if len(clause.words) > 1 else []
        needless = any(s is not None and s.precision >= found.precision for s in shorter)
        if found.support >= least and bound >= floor and not needless:
            group = next((terms[w] for w in clause.words if w in terms), None)
            rules.append(Rule(clause=clause, chosen_on=found, bound=bound, tried=tried, group=group))
    return sorted(rules, key=lambda rule: (-rule.bound, rule.clause.words))


@dataclass(frozen=True, slots=True)
class RuleList:
    """The first rule whose words stand in a text decides; the default class where none does."""

    rules: tuple[Clause, ...]
    default: int

    def predict(self, texts: Sequence[Words]) -> np.ndarray:
        sets = [frozenset(words) for words in texts]
        return np.array([next((r.label for r in self.rules if r.holds(s)), self.default) for s in sets], int)

    def fidelity(self, data: Judged) -> float:
        """How often it says what the model says."""
        return float(np.mean(self.predict(data.texts) == data.says))


def standing(clauses: Sequence[Clause], texts: Sequence[Words]) -> np.ndarray:
    """bool [clauses, texts]: whether all words of a clause stand in a text."""
    words = sorted({word for clause in clauses for word in clause.words})
    held_VN = np.ascontiguousarray(incidence(texts, words).toarray().T > 0)
    places = {word: at for at, word in enumerate(words)}
    rows = [held_VN[[places[word] for word in clause.words]].all(0) for clause in clauses]
    return np.array(rows, bool).reshape(len(clauses), len(texts))


def rule_list(clauses: Sequence[Clause], data: Judged, size: int) -> RuleList:
    """Takes the clause that gains most agreement with the model on `data`, then the next, up to `size`; a new clause
    stands before the default and after those taken, and the default is the majority of what no clause holds."""
    holds = standing(clauses, data.texts)
    labels = np.array([clause.label for clause in clauses], int)
    right = holds & (labels[:, None] == data.says[None, :])
    free, taken = np.ones(len(data.texts), bool), []
    classes = int(max(data.says.max(initial=0), labels.max(initial=0))) + 1
    default = int(np.bincount(data.says, minlength=classes).argmax())
    while len(taken) < size and len(clauses):
        usual = free & (data.says == default)
        gain = np.count_nonzero(right & free, axis=1) - np.count_nonzero(holds & usual, axis=1)
        best = int(gain.argmax())
        if gain[best] <= 0:
            break
        taken.append(clauses[best])
        free &= ~holds[best]
        if free.any():
            default = int(np.bincount(data.says[free], minlength=classes).argmax())
    return RuleList(tuple(taken), default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """How often the model changes its mind when the words of a rule are deleted, and when as many other words are."""

    texts: int
    rule: float
    random: float
    p: float


def flips(subject: Subject, clauses: Sequence[Clause], data: Judged, *, most: int = 400, seed: int = 0) -> Flips:
    """Over texts where the first clause that holds agrees with the model; exact sign test, one-sided, over the texts
    where the two deletions differ."""
    random = np.random.default_rng(seed)
    whole, without, control = [], [], []
    for words, says in zip(data.texts, data.says, strict=True):
        held = frozenset(words)
        clause = next((c for c in clauses if c.holds(held) and c.label == says), None)
        if clause is None or len(whole) == most:
            continue
        ours = np.array([w in clause.words for w in words])
        others = np.flatnonzero(~ours)
        if not len(others) or ours.all():
            continue
        drop = set(random.choice(others, min(len(others), int(ours.sum())), replace=False).tolist())
        whole.append(int(says))
        without.append([w for w, out in zip(words, ours, strict=True) if not out])
        control.append([w for i, w in enumerate(words) if i not in drop])
    if not whole:
        return Flips(texts=0, rule=float("nan"), random=float("nan"), p=1.0)
    a, b = (subject.predict(texts) != np.array(whole) for texts in (without, control))
    only_rule, only_random = int((a & ~b).sum()), int((b & ~a).sum())
    differ = only_rule + only_random
    p = float(binomtest(only_rule, differ, 0.5, alternative="greater").pvalue) if differ else 1.0
    return Flips(texts=len(whole), rule=float(a.mean()), random=float(b.mean()), p=p)


def bounds_held(rules: Sequence[Rule], test: Judged, *, least: int = 10) -> tuple[int, int]:
    """(rules whose precision on the test split is at least their bound, rules with enough texts there to say)."""
    sets = test.sets()
    counted = [(rule, count(rule.clause, test, sets)) for rule in rules]
    judged = [(rule, found) for rule, found in counted if found.support >= least]
    return sum(found.precision >= rule.bound for rule, found in judged), len(judged)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One clause under the model before and after something was done to it."""

    clause: Clause
    before: Counts
    after: Counts
    group: str | None


def compared(rules: Sequence[Rule], before: Judged, after: Judged) -> list[Change]:
    """The rules of the model before, counted under both on the same texts: where debiasing works, those with an
    identity term lose precision and the others keep theirs."""
    one, other = before.sets(), after.sets()
    return [
        Change(
            clause=rule.clause,
            before=count(rule.clause, before, one),
            after=count(rule.clause, after, other),
            group=rule.group,
        )
        for rule in rules
    ]


def marks(clauses: Sequence[Clause], words: Words, label: int | None = None) -> np.ndarray:
    """bool [W]: the words of all clauses that hold in a text (of one label)."""
    held = frozenset(words)
    named = {w for c in clauses if c.holds(held) and label in (None, c.label) for w in c.words}
    return np.array([w in named for w in words], bool)

"""Rules: what they count, what their bounds promise, and what must collapse."""

import numpy as np
import pytest
from scipy.stats import binom

from jaxlm.explain import rules, surrogates
from jaxlm.explain.methods import METHODS
from jaxlm.explain.rules import Clause, Judged
from tests.explain.tiny import TROUBLE, examples, subject


def toy(seed: int, n: int = 800) -> Judged:
    """The model says 1 where `a` or `b` stands, and else 0; `c` is noise."""
    random = np.random.default_rng(seed)
    texts = [(*(w for w in "abcdefgh" if random.random() < 0.2), "x") for _ in range(n)]
    says = np.array([int("a" in t or "b" in t) for t in texts])
    flipped = random.random(n) < 0.05
    return Judged(texts, np.where(flipped, 1 - says, says), says)


def test_counts_and_the_clopper_pearson_bound():
    data = Judged([("a", "b"), ("a",), ("b",), ("c",)], np.array([1, 0, 1, 0]), np.array([1, 1, 0, 0]))
    found = rules.count(Clause(("a",), 1), data)
    assert (found.texts, found.support, found.model, found.people) == (4, 2, 1, 2)
    assert (found.coverage, found.precision, found.precision_to_people) == (0.5, 0.5, 1.0)
    assert rules.count(Clause(("a", "b"), 1), data).support == 1
    bound = rules.lower_bound(18, 20)
    assert binom.sf(17, 20, bound) == pytest.approx(0.05)
    assert rules.lower_bound(18, 20, tried=100) < bound
    assert rules.lower_bound(0, 20) == 0.0


def test_rules_are_mined_chosen_and_hold_on_texts_nobody_looked_at():
    train, valid, test = (toy(seed) for seed in range(3))
    scores = [np.array([float(w in "ab") for w in words]) for words in train.texts]
    mined = rules.mine(train, scores, longest=2)
    assert {c.words for c in mined if c.label == 1} == {("a",), ("b",), ("a", "b")}
    chosen = rules.choose(mined, valid, terms={"a": "religion"})
    assert [r.clause.words for r in chosen if r.clause.label == 1][:2] in ([("a",), ("b",)], [("b",), ("a",)])
    assert {r.group for r in chosen if "a" in r.clause.words} == {"religion"}
    assert all(rule.bound < rule.chosen_on.precision for rule in chosen)
    held, judged = rules.bounds_held(chosen, test)
    assert held == judged > 0
    taken = rules.rule_list([r.clause for r in chosen], train, 2)
    assert {c.words for c in taken.rules} == {("a",), ("b",)}
    assert taken.fidelity(test) > 0.9
    grown = surrogates.tree(train, 2)
    assert grown.size() == 2
    assert grown.fidelity(test) == pytest.approx(taken.fidelity(test), abs=0.02)
    bag = surrogates.weighted_clauses(train)
    assert {c.words[0] for c in bag if c.label == 1} >= {"a", "b"}


def test_templates_speak_of_any_domain():
    clause, classes = Clause(("lessee", "rent"), 1), ("other", "lease")
    terms = {"lessee": "party"}
    assert rules.TEMPLATES["legal"].render(clause, classes, terms) == (
        'WHERE the clause contains "lessee" and "rent" (legal term: party), the model classifies it as lease'
    )
    own = rules.Template(rule="{words} -> {label}", joined=" + ")
    assert own.render(clause, classes, {}) == '"lessee" + "rent" -> lease'
    assert rules.marks([clause], ("rent", "the", "lessee")).tolist() == [True, False, True]


@pytest.mark.slow
def test_rules_of_the_model_flip_it_and_shuffled_attention_collapses():
    train, valid = ([e.words for e in examples(n, seed)] for n, seed in ((160, 21), (240, 22)))
    seen, held_out = rules.judged(subject(), train), rules.judged(subject(), valid)

    def list_from(name: str) -> rules.RuleList:
        scores = METHODS[name](subject(), train, seen.says)
        return rules.rule_list([c for c in rules.mine(seen, scores, k=2, longest=1) if c.label == 1][:3], seen, 3)

    ours, shuffled = list_from("ours, not smoothed"), list_from("shuffled attention")
    assert {c.words[0] for c in ours.rules} == set(TROUBLE)
    assert ours.fidelity(held_out) > shuffled.fidelity(held_out) + 0.1
    found = rules.flips(subject(), ours.rules, held_out)
    assert found.rule > found.random + 0.3
    assert found.p < 0.01


def test_identity_rules_are_counted_before_and_after():
    before, after = toy(0), toy(0)
    after = Judged(after.texts, np.array([int("b" in t) for t in after.texts]), after.labels)
    rule = rules.choose([Clause(("a",), 1), Clause(("b",), 1)], before, terms={"a": "religion"})
    changes = {c.clause.words[0]: c for c in rules.compared(rule, before, after)}
    assert changes["a"].group == "religion"
    assert changes["a"].after.precision < 0.4 < changes["a"].before.precision
    assert changes["b"].after.precision == 1.0
    assert changes["b"].group is None

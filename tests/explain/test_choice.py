"""How many words are named: by what overlap the scores let expect, fitted on other texts."""

import numpy as np
import pytest

from jaxlm.explain.choice import Chooser, expected, fitted, of_runs
from jaxlm.explain.fidelity import token_iou

SURE, LIKELY, UNLIKELY = 4.0, 0.0, -4.0


def test_expected_overlap_by_hand():
    p = np.array([1.0, 0.5, 0.0])
    # First word: 1 hit of 1 named and 0.5 more expected; two words: 1.5 of 2; three: 1.5 of 3.
    np.testing.assert_allclose(expected(p, "iou"), [1 / 1.5, 1.5 / 2, 1.5 / 3])
    np.testing.assert_allclose(expected(p, "f1"), [2 / 2.5, 3 / 3.5, 3 / 4.5])


def test_half_likely_words_are_named_where_they_are_many():
    """At one threshold both texts would get the same treatment."""
    alone = Chooser()(np.array([SURE, SURE, SURE, LIKELY - 0.5, UNLIKELY]))
    many = Chooser()(np.array([LIKELY - 0.5] * 5))
    assert alone.tolist() == [True, True, True, False, False]
    assert many.all()


def test_naming_nothing_is_an_answer_where_it_may_be():
    scores = np.full(3, UNLIKELY)
    assert Chooser(overlap="f1")(scores).sum() >= 1
    assert not Chooser(overlap="f1", empty=True)(scores).any()
    assert Chooser()(np.zeros(0)).shape == (0,)


def test_the_chooser_fitted_undoes_a_shift_of_the_scores():
    random = np.random.default_rng(0)
    gold = [random.random(12) < share for share in random.uniform(0.1, 0.9, 60)]
    scores = [np.where(g, 1.0, -1.0) + 0.8 * random.standard_normal(12) + 1.5 for g in gold]
    judge = lambda i, chosen: token_iou(chosen, gold[i])
    mean = lambda chooser: np.mean([judge(i, chooser(s)) for i, s in enumerate(scores)])
    found = fitted(scores, judge)
    assert found.shift == pytest.approx(1.5, abs=0.75)
    assert mean(found) > mean(Chooser()) + 0.02


@pytest.mark.parametrize("overlap", ["iou", "f1"])
def test_runs_are_judged_as_sets_are(overlap):
    p = np.random.default_rng(0).random(6)
    found = of_runs(p, overlap)
    for start in range(6):
        for end in range(6):
            inside = p[start : end + 1].sum()
            size = end + 1 - start
            union = size + p.sum() - inside
            want = (inside / union if overlap == "iou" else 2 * inside / (size + p.sum())) if size > 0 else 0.0
            assert found[start, end] == pytest.approx(want)


def test_one_stroke_names_what_stands_between_two_sure_words():
    scores = np.array([UNLIKELY, SURE, UNLIKELY, SURE, UNLIKELY, UNLIKELY])
    assert Chooser()(scores).tolist() == [False, True, False, True, False, False]
    assert Chooser(run=True)(scores).tolist() == [False, True, True, True, False, False]
    assert not Chooser(run=True, empty=True)(np.full(3, UNLIKELY)).any()


def test_runs_are_chosen_where_people_marked_runs():
    random = np.random.default_rng(0)

    def stroke() -> np.ndarray:
        start, size = random.integers(0, 8), random.integers(2, 6)
        return (np.arange(12) >= start) & (np.arange(12) < start + size)

    gold = [stroke() for _ in range(60)]
    scores = [np.where(g, 1.0, -1.0) + 1.2 * random.standard_normal(12) for g in gold]
    judge = lambda i, chosen: token_iou(chosen, gold[i])
    mean = lambda chooser: np.mean([judge(i, chooser(s)) for i, s in enumerate(scores)])
    assert not fitted(scores, judge).run
    found = fitted(scores, judge, runs=True)
    assert found.run
    assert mean(found) > mean(fitted(scores, judge)) + 0.02

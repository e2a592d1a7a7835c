"""Agreement with people, and what the model loses without the words."""

import numpy as np
import pytest

from jaxlm.explain import fidelity
from jaxlm.explain.removal import faithfulness
from tests.explain.tiny import TROUBLE, examples, subject

GOLD = np.array([0, 1, 1, 0, 0, 1], bool)


def marks(text: str) -> np.ndarray:
    return np.array([c == "x" for c in text])


def test_overlap_of_tokens_by_hand():
    predicted = marks(".xx.x.")
    assert fidelity.token_iou(predicted, GOLD) == pytest.approx(2 / 4)
    assert fidelity.token_f1(predicted, GOLD) == pytest.approx(2 * 2 / 6)
    assert fidelity.token_iou(~GOLD & GOLD, ~GOLD & GOLD) == 1.0
    # Two texts: the span 1-3 is found whole; the span 5-6 is missed, one predicted span hits nothing.
    assert fidelity.eraser_iou_f1([predicted], [GOLD]) == pytest.approx(0.5)
    assert fidelity.eraser_iou_f1([marks("xxxx")], [marks(".x..")]) == 0.0
    assert fidelity.eraser_iou_f1([marks(".xx.")], [marks(".x..")]) == 1.0


def test_auprc_by_hand_with_ties_as_one_step():
    # Order: gold, other, gold. Points (recall, precision): (0, 1) (1/2, 1) (1/2, 1/2) (1, 2/3).
    assert fidelity.auprc(np.array([3.0, 2.0, 1.0]), np.array([1, 0, 1], bool)) == pytest.approx(0.5 + 0.5 * 7 / 12)
    assert fidelity.auprc(np.zeros(4), np.array([1, 0, 0, 1], bool)) == pytest.approx((1 + 0.5) / 2)
    assert np.isnan(fidelity.auprc(np.arange(3.0), np.zeros(3, bool)))
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn comes with the extra `explain`")
    random = np.random.default_rng(0)
    for _ in range(20):
        scores, gold = random.integers(0, 6, 12).astype(float), random.random(12) < 0.4
        gold[0] = True
        precision, recall, _ = sklearn.precision_recall_curve(gold, scores)
        assert fidelity.auprc(scores, gold) == pytest.approx(sklearn.auc(recall, precision), abs=1e-12)


def test_characters_and_ranks():
    assert fidelity.char_f1({1, 2, 3}, {2, 3, 4}) == pytest.approx(2 / 3)
    assert [fidelity.char_f1(set(), set()), fidelity.char_f1({1}, set()), fidelity.char_f1(set(), {1})] == [1, 0, 0]
    a, b = [np.array([1.0, 2, 3]), np.array([5.0])], [np.array([3.0, 2, 1]), np.array([0.0])]
    assert fidelity.rank_stability(a, a) == pytest.approx(1)
    assert fidelity.rank_stability(a, b) == pytest.approx(-1)


def test_a_share_and_a_threshold_come_from_the_rows_given():
    scores = [np.array([0.9, 0.8, 0.1, 0.0]), np.array([0.1, 0.7, 0.6, 0.2])]
    gold = [marks("xx.."), marks(".xx.")]
    assert fidelity.token_iou(fidelity.share(scores[0], fidelity.best_share(scores, gold)), gold[0]) == 1
    threshold = fidelity.best_threshold(scores, gold)
    assert all(fidelity.token_iou(fidelity.above(s, threshold), g) == 1 for s, g in zip(scores, gold, strict=True))
    assert fidelity.above(np.array([0.1, 0.3]), 0.5).tolist() == [False, True]


def test_a_paired_interval_holds_a_shift_and_excludes_zero():
    random = np.random.default_rng(1)
    base = random.random(400)
    mean, low, high = fidelity.paired_interval(base + 0.1 + 0.05 * random.standard_normal(400), base)
    assert low < 0.1 < high
    assert low > 0
    assert mean == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("removal", ["mask", "delete"])
def test_taking_out_the_words_that_matter_costs_more_than_others(removal):
    texts = [e.words for e in examples(40, 9) if e.label == 1]
    right = [np.array([float(w in TROUBLE) for w in words]) for words in texts]
    shares = (0.3, 0.5)
    good = faithfulness(subject(), texts, right, removal=removal, shares=shares)
    bad = faithfulness(subject(), texts, [-r for r in right], removal=removal, shares=shares)
    assert good.comprehensiveness > bad.comprehensiveness + 0.3
    assert good.sufficiency < bad.sufficiency - 0.3

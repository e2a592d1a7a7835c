"""Gaps, areas and calibration: by hand, and against fairlearn and AIF360 where they define the same."""

import warnings

import numpy as np
import pytest

from jaxlm.fairness import intervals, metrics, ranking

RNG = np.random.default_rng(3)
N = 1200
GROUPS = RNG.choice(["a", "b", "c"], N, p=[0.5, 0.3, 0.2])
LABELS = (RNG.random(N) < np.where(GROUPS == "a", 0.5, 0.3)).astype(int)
SCORES = np.clip(np.round(0.35 * LABELS + 0.1 * (GROUPS == "b") + RNG.random(N) * 0.6, 2), 0, 1)
DECISIONS = (SCORES >= 0.5).astype(int)
WEIGHTS = RNG.random(N) + 0.5


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_gaps_equal_fairlearn(weights):
    theirs = pytest.importorskip("fairlearn.metrics", reason="fairlearn is in the development group")
    ours = metrics.report(LABELS, DECISIONS, GROUPS, SCORES, weights=weights)
    column = dict(sensitive_features=GROUPS, sample_weight=weights)
    pairs = [
        (ours.demographic_parity, theirs.demographic_parity_difference(LABELS, DECISIONS, **column)),
        (ours.ratio("selection_rate"), theirs.demographic_parity_ratio(LABELS, DECISIONS, **column)),
        (ours.equalized_odds, theirs.equalized_odds_difference(LABELS, DECISIONS, **column)),
        (ours.average_odds, theirs.equalized_odds_difference(LABELS, DECISIONS, agg="mean", **column)),
        (ours.equal_opportunity, theirs.equal_opportunity_difference(LABELS, DECISIONS, **column)),
    ]
    for a, b in pairs:
        assert a == pytest.approx(b, abs=1e-9)
    for rate, theirs_rate in (("tpr", theirs.true_positive_rate), ("fpr", theirs.false_positive_rate)):
        parameters = None if weights is None else {"sample_weight": weights}
        given = dict(y_true=LABELS, y_pred=DECISIONS, sensitive_features=GROUPS)
        frame = theirs.MetricFrame(metrics=theirs_rate, sample_params=parameters, **given)
        for name, value in frame.by_group.items():
            assert ours.by_group[name][rate] == pytest.approx(value, abs=1e-9)
        assert ours.overall[rate] == pytest.approx(frame.overall, abs=1e-9)


def test_gaps_equal_aif360_up_to_its_sign():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pytest.importorskip("aif360.sklearn.metrics", reason="AIF360 is in the development group")
        pd = pytest.importorskip("pandas")
        kept = GROUPS != "c"
        index = pd.Index((GROUPS[kept] == "a").astype(int), name="g")
        y, d = pd.Series(LABELS[kept], index=index), pd.Series(DECISIONS[kept], index=index)
        want = {
            "parity": theirs.statistical_parity_difference(y, d, prot_attr="g"),
            "opportunity": theirs.equal_opportunity_difference(y, d, prot_attr="g"),
            "odds": theirs.average_odds_error(y, d, prot_attr="g"),
        }
    ours = metrics.report(LABELS[kept], DECISIONS[kept], GROUPS[kept], SCORES[kept])
    signed = lambda rate: ours.by_group["b"][rate] - ours.by_group["a"][rate]
    assert signed("selection_rate") == pytest.approx(want["parity"], abs=1e-9)
    assert signed("tpr") == pytest.approx(want["opportunity"], abs=1e-9)
    assert ours.average_odds == pytest.approx(want["odds"], abs=1e-9)


def test_areas_equal_scikit_learn_with_ties():
    theirs = pytest.importorskip("sklearn.metrics", reason="scikit-learn is in the extra fairness")
    assert ranking.auc(LABELS, SCORES) == pytest.approx(theirs.roc_auc_score(LABELS, SCORES), abs=1e-12)


def test_bias_aucs_are_those_of_their_definitions():
    member = GROUPS == "b"

    def pairs(positive, negative):
        difference = SCORES[positive][:, None] - SCORES[negative][None, :]
        return float(np.mean((difference > 0) + 0.5 * (difference == 0)))

    y = LABELS == 1
    found = ranking.bias(LABELS, SCORES, metrics.members(GROUPS))
    assert found.subgroup["b"] == pytest.approx(pairs(y & member, ~y & member), abs=1e-12)
    assert found.bpsn["b"] == pytest.approx(pairs(y & ~member, ~y & member), abs=1e-12)
    assert found.bnsp["b"] == pytest.approx(pairs(y & member, ~y & ~member), abs=1e-12)
    values = list(found.bpsn.values())
    assert found.mean("bpsn") == pytest.approx(np.mean(np.power(values, -5.0)) ** (-1 / 5), abs=1e-12)
    means = [found.mean(kind) for kind in ("subgroup", "bpsn", "bnsp")]
    assert found.score == pytest.approx(np.mean([found.overall, *means]))
    assert found.gap == pytest.approx(max(found.subgroup.values()) - min(found.subgroup.values()))


def test_small_groups_are_refused_with_the_reason():
    groups = np.where(np.arange(N) < 12, "few", GROUPS)
    found = metrics.report(LABELS, DECISIONS, groups, SCORES)
    assert np.isnan(found.by_group["few"]["tpr"])
    assert found.refused["few", "selection_rate"] == "12 rows, fewer than 30"
    assert found.demographic_parity == pytest.approx(
        metrics.report(LABELS[12:], DECISIONS[12:], groups[12:], SCORES[12:]).demographic_parity
    )
    areas = ranking.bias(LABELS, SCORES, metrics.members(groups))
    assert np.isnan(areas.bpsn["few"])
    assert areas.refused["few"] == "12 rows, fewer than 30"
    one_label = ranking.bias(np.where(groups == "c", 0, LABELS), SCORES, metrics.members(groups))
    assert one_label.refused["c"] == "no row of label 1"


def test_calibration_within_groups_is_the_worst_groups_error():
    scores = np.repeat([0.2, 0.8], 500)
    labels = np.concatenate([np.arange(500) < 100, np.arange(500) < 300]).astype(int)
    assert metrics.expected_calibration_error(labels, scores, bins=2) == pytest.approx((0 + 0.2) / 2)
    groups = np.repeat(["good", "bad"], 500)
    found = metrics.report(labels, (scores > 0.5).astype(int), groups, scores, bins=1)
    assert (found.by_group["good"]["ece"], found.cwg) == (pytest.approx(0, abs=1e-12), pytest.approx(0.2))
    table = metrics.reliability(labels, scores, bins=4)
    assert [b.rows for b in table] == [250] * 4
    assert [b.score for b in table] == pytest.approx([0.2, 0.2, 0.8, 0.8])


def test_a_randomised_predictor_has_no_calibration_and_says_so():
    found = metrics.report(LABELS, DECISIONS, GROUPS, None)
    assert np.isnan(found.cwg)
    assert np.isnan(found.auc_gap)
    assert "not applicable" in found.refused["a", "ece"]
    assert "not applicable" in found.note
    assert found.equalized_odds > 0


def test_odds_and_calibration_come_with_the_note_that_both_cannot_be_zero():
    found = metrics.report(LABELS, DECISIONS, GROUPS, SCORES)
    assert found.equalized_odds > 0
    assert found.cwg > 0
    assert "cannot both be zero" in found.note
    assert metrics.report(LABELS, LABELS, GROUPS, LABELS).note == ""
    assert "| a | 6" in found.table() or "| a | 5" in found.table()


def test_the_worst_cell_is_the_worst_of_group_and_label():
    found = metrics.report(LABELS, DECISIONS, GROUPS, SCORES)
    cells = [np.mean((DECISIONS == LABELS)[(g == GROUPS) & (y == LABELS)]) for g in "abc" for y in (0, 1)]
    assert found.worst_cell == pytest.approx(min(cells))


def test_the_bootstrap_covers_as_it_says_and_keeps_cells():
    hits = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        y = rng.random(400) < 0.3
        interval = intervals.bootstrap(lambda rows, y=y: float(y[rows].mean()), np.zeros(400), resamples=200, seed=seed)
        hits += interval.low <= 0.3 <= interval.high
    assert 50 <= hits <= 60
    strata = intervals.strata_of(GROUPS, LABELS)
    kept = intervals.bootstrap(lambda rows: float(np.mean(GROUPS[rows] == "a")), strata, resamples=50)
    assert kept.low == kept.high == kept.value
    assert "not defined" in intervals.bootstrap(lambda rows: float("nan"), strata).reason


def test_paired_comparisons_see_a_difference_that_seeds_hide():
    rng = np.random.default_rng(0)
    seed_effect = rng.normal(0, 1.0, 20)
    found = intervals.paired(seed_effect + 0.1 + rng.normal(0, 0.05, 20), seed_effect)
    assert found.better
    assert found.p < 0.001
    assert found.p_signs < 0.01
    assert not intervals.paired(seed_effect, seed_effect).better
    from scipy.stats import ttest_rel

    a, b = rng.normal(size=9), rng.normal(size=9)
    assert intervals.paired(a, b).p == pytest.approx(ttest_rel(a, b).pvalue)
    with pytest.raises(ValueError, match="at least 3 seeds"):
        intervals.paired(np.ones(2), np.ones(2))

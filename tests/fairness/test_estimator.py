"""The scikit-learn front door: what it promises, what it refuses, and that debiasing works."""

import pickle
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is in the extra fairness")

from jaxlm.fairness.estimator import FairClassifier
from jaxlm.fairness.metrics import report

RNG = np.random.default_rng(5)
N = 600
RACE = RNG.choice(["x", "y"], N)
Y = (RNG.random(N) < np.where(RACE == "x", 0.6, 0.35)).astype(int)
X = np.stack([Y + RNG.normal(size=N), (RACE == "x") + 0.5 * RNG.normal(size=N), RNG.normal(size=N)], axis=1)
SMALL = dict(hidden=(), adversary_hidden=(16,), epochs=15, batch_size=100, learning_rate=0.03, random_state=3)


def fair(**options) -> FairClassifier:
    return FairClassifier(**(SMALL | {"adversary_learning_rate": 0.01} | options))  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def base():
    return fair().fit(X, Y)


def odds(model, **given) -> float:
    return report(Y, model.predict(X, **given), RACE, None).equalized_odds


def test_the_baseline_is_not_debiased_and_strength_zero_is_it_bit_for_bit(base):
    zero = fair(strength=0.0).fit(X, Y, sensitive_features=RACE)
    assert (base.debiased_, zero.debiased_) == (False, False)
    for a, b in zip(base.parameters_, zero.parameters_, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "options",
    [
        dict(strength=4.0),
        pytest.param(dict(strength=4.0, mode="per_epoch"), marks=pytest.mark.slow),
        pytest.param(dict(strength=6.0, mode="blocks"), marks=pytest.mark.slow),
        dict(strength=0.0, witness_strength=10.0),
        pytest.param(dict(strength=0.0, witness_strength=10.0, memory=0.9), marks=pytest.mark.slow),
        dict(strength=0.0, witness_strength=10.0, witness="mmd", criterion="demographic_parity"),
    ],
    ids=["per_step", "per_epoch", "blocks", "decision", "remembered", "mmd"],
)
def test_every_way_of_debiasing_narrows_the_gap(base, options):
    model = fair(**options).fit(X, Y, sensitive_features=RACE)
    assert model.debiased_
    assert odds(model) < 0.75 * odds(base)
    assert np.mean(model.predict(X) == Y) > 0.6


@pytest.mark.slow
def test_the_bound_of_the_gradient_norm_acts_only_where_it_binds():
    given = dict(sensitive_features=RACE)
    free, loose, tight = (fair(clip_norm=c).fit(X, Y, **given).decision_function(X) for c in (0.0, 1e6, 1e-3))
    np.testing.assert_allclose(free, loose, atol=1e-4)
    assert np.abs(free - tight).max() > 1e-2


@pytest.mark.slow
def test_a_path_is_the_single_fits_side_by_side():
    many = fair().path(X, Y, [(0.5, 0.0), (2.0, 0.0)], sensitive_features=RACE)
    assert [m.strength for m in many] == [0.5, 2.0]
    alone = fair(strength=2.0).fit(X, Y, sensitive_features=RACE)
    np.testing.assert_allclose(many[1].decision_function(X), alone.decision_function(X), atol=1e-3)


def test_models_are_pickled_reproducible_and_take_labels_of_any_kind(base):
    copy = pickle.loads(pickle.dumps(base))
    np.testing.assert_array_equal(copy.predict_proba(X), base.predict_proba(X))
    named = fair().fit(X, np.where(Y == 1, "yes", "no"))
    assert named.classes_.tolist() == ["no", "yes"]
    assert set(named.predict(X)) == {"no", "yes"}
    np.testing.assert_array_equal(named.decision_function(X), base.decision_function(X))
    assert base.predict_proba(X).sum(1) == pytest.approx(np.ones(N))
    assert base.get_params()["epochs"] == 15


@pytest.mark.slow
def test_reweighting_multiplies_what_the_user_gives():
    weights = np.where(RACE == "x", 2.0, 1.0)
    model = fair(strength=0.0, reweighting="kamiran_calders").fit(X, Y, sensitive_features=RACE, sample_weight=weights)
    assert model.debiased_
    plain = fair(strength=0.0, reweighting="kamiran_calders").fit(X, Y, sensitive_features=RACE)
    assert np.abs(model.decision_function(X) - plain.decision_function(X)).max() > 1e-3


def test_the_attribute_may_be_an_input_and_unseen_groups_are_named():
    model = fair(use_attribute=True, strength=1.0).fit(X, Y, sensitive_features={"race": RACE})
    assert model.predict(X, sensitive_features={"race": RACE}).shape == (N,)
    with pytest.raises(ValueError, match="give predict sensitive_features"):
        model.predict(X)
    with pytest.raises(ValueError, match="race: group 'z' was not seen in training; known are x, y"):
        model.predict(X[:2], sensitive_features={"race": ["x", "z"]})


def test_several_attributes_have_their_own_criteria():
    age = RNG.choice(["old", "mid", "young"], N)
    criteria = {"race": "equalized_odds", "age": "demographic_parity"}
    model = fair(criterion=criteria, early_stopping=True).fit(X, Y, sensitive_features={"race": RACE, "age": age})
    assert [(a.name, a.criterion, a.heads) for a in model.attributes_] == [
        ("race", "equalized_odds", 1),
        ("age", "demographic_parity", 3),
    ]
    assert len(model.history_["discriminator_auc"]) == model.n_iter_
    assert np.all(model.history_["discriminator_auc"] >= 0.5)


BAD = {
    "one group": (np.full(N, "x"), "race has one group only"),
    "missing": (np.where(np.arange(N) == 7, np.nan, 1.0), r"race is missing \(None or NaN\) in 1 rows \(7\)"),
    "the label": (np.where(Y == 1, "a", "b"), "race equals the label"),
    "no positives": (np.where((Y == 0) & (np.arange(N) < 90), "few", RACE), "group 'few' has no positives"),
    "too short": (RACE[:-1], f"race has {N - 1} values for {N} rows"),
}


@pytest.mark.parametrize("case", BAD, ids=list(BAD))
def test_what_is_wrong_with_an_attribute_is_said_in_one_message(case):
    values, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        fair().fit(X, Y, sensitive_features={"race": values})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [dict(memory=1.0), dict(memory=-0.1), dict(sharpness=0.0)])
def test_a_witness_without_an_end_or_an_edge_is_refused(options):
    with pytest.raises(ValueError, match=r"sharpness=\S+ must be above 0, memory=\S+ in \[0, 1\)"):
        fair(witness_strength=1.0, **options).fit(X, Y, sensitive_features=RACE)


def test_criteria_must_speak_of_the_given_attributes():
    with pytest.raises(ValueError, match="criterion speaks of sex, sensitive_features of race"):
        fair(criterion={"sex": "equalized_odds"}).fit(X, Y, sensitive_features={"race": RACE})


EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": "minibatches are drawn at random: repeating rows changes them",
}


@pytest.mark.slow
def test_scikit_learns_own_checks():
    from sklearn.utils.estimator_checks import check_estimator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = FairClassifier(random_state=0, hidden=(), epochs=60, learning_rate=0.05, batch_size=64)
        found = check_estimator(model, expected_failed_checks=EXPECTED, on_skip=None)
    assert {r["check_name"] for r in found if r["status"] == "xfail"} == set(EXPECTED)
    assert sum(r["status"] == "passed" for r in found) > 50

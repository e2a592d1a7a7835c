"""Reference epsilons, what is no mechanism, and the arithmetic of a budget."""

import json
import math

import pytest

from jaxlm.privacy import accounting
from jaxlm.privacy.accounting import ORDERS, best_order, calibrated, costs, pld_epsilon, rdp_epsilon
from jaxlm.privacy.budget import Budget
from jaxlm.privacy.errors import NotPrivate, PrivacyError
from jaxlm.privacy.mechanisms import REFUSED, Mechanism, mechanism

pytest.importorskip("dp_accounting", reason="needs the extra: uv sync --extra privacy")
RELATIVE = 1e-4


@pytest.fixture(scope="module")
def vectors(shared):
    return json.loads((shared / "vectors" / "dp_epsilon.json").read_text())


def test_published_epsilons_of_dp_sgd(vectors):
    checked = 0
    for row in vectors["published_dpsgd"]:
        if "epsilon" not in row or row["accountant"] not in ("RDP", "PLD"):
            continue
        # Sampling without replacement counts as Poisson sampling with twice the sensitivity.
        noise = row["noise_multiplier"] / (2 if "fixed batch" in row.get("sampling", "") else 1)
        spent = [(Mechanism("gaussian", noise, row["sampling_rate"]), row["steps"])]
        # jax-privacy's orders leave out 9.2, the best one here.
        orders = [order for order in ORDERS if order % 1 == 0] if row["id"].startswith("jaxp") else ORDERS
        by_rdp, delta = row["accountant"] == "RDP", row["delta"]
        found = rdp_epsilon(spent, delta, orders) if by_rdp else pld_epsilon(spent, delta)
        assert found == pytest.approx(row["epsilon"], rel=RELATIVE), row["id"]
        checked += 1
    assert checked == 10


def test_exact_gaussian_and_pure_composition(vectors):
    for row in vectors["exact_gaussian"]["rows"]:
        spent = [(Mechanism("gaussian", row["noise_multiplier"]), row["steps"])]
        assert pld_epsilon(spent, row["delta"]) == pytest.approx(row["epsilon"], rel=RELATIVE), row["id"]
        assert rdp_epsilon(spent, row["delta"]) >= row["epsilon"]
    for row in vectors["pure_and_approximate_composition"]:
        if "eps0" in row:
            found = pld_epsilon([(Mechanism("pure", row["eps0"]), row["k"])], row["delta"])
            assert found == pytest.approx(row["pld"], rel=RELATIVE), row["id"]
    pure = [(Mechanism("pure", 1.0), 1), (Mechanism("pure", 2.0), 1)]
    assert pld_epsilon(pure, 0.0) == pytest.approx(3.0, rel=RELATIVE)
    assert rdp_epsilon(pure, 0.0, [math.inf]) == 3.0


@pytest.mark.slow
def test_mixed_mechanisms(vectors):
    row = vectors["heterogeneous"]
    spent = [
        (Mechanism("gaussian", 0.8, 5e-3), 100),
        (Mechanism("gaussian", 8.0), 200),
        (Mechanism("laplace", 10.0), 100),
    ]
    assert pld_epsilon(spent, row["delta"]) == pytest.approx(row["pld"], rel=RELATIVE)
    assert rdp_epsilon(spent, row["delta"]) == pytest.approx(row["rdp"], rel=RELATIVE)


def test_a_cut_sample_would_cost_what_the_refusal_says(vectors):
    (row,) = [row for row in vectors["published_dpsgd"] if row["id"] == "jaxp-truncated"]
    plds = accounting.library("pld.privacy_loss_distribution")
    cut = plds.from_truncated_subsampled_gaussian_mechanism(50_000, 1024 / 50_000, 1024, 4.0).self_compose(10_000)
    assert cut.get_epsilon_for_delta(1e-5) == pytest.approx(
        row["epsilon_by_truncated_batch_size"]["1024"], rel=RELATIVE
    )


def test_noise_is_calibrated_to_the_budget():
    noise = calibrated(0.01, 1000, epsilon=2.0, delta=1e-5)
    within = lambda noise: rdp_epsilon([(Mechanism("gaussian", noise, 0.01), 1000)], 1e-5)
    assert within(noise) <= 2.0 < within(noise * 0.99)
    with pytest.raises(PrivacyError, match="no noise keeps"):
        calibrated(1.0, 10**9, epsilon=1e-3, delta=1e-9)


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_is_no_private_mechanism_is_refused_with_the_reason(kind):
    with pytest.raises(NotPrivate, match="is not charged") as refusal:
        mechanism({"kind": kind, "rows": 100})
    assert REFUSED[kind] in str(refusal.value)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"kind": "gausian"}, "did you mean gaussian"),
        ({"kind": "gaussian", "noise_multiplier": math.nan}, "noise_multiplier=nan"),
        ({"kind": "gaussian", "noise_multiplier": math.inf}, "noise_multiplier=inf"),
        ({"kind": "gaussian", "noise_multiplier": 0.0}, "above 0"),
        ({"kind": "gaussian", "noise_multiplier": 1.0, "sampling_rate": 1.5}, "at most 1"),
        ({"kind": "gaussian", "noise_multiplier": 1.0, "sampling_rate": 0.1, "sampling": "shuffled"}, "no Poisson"),
        ({"kind": "pure", "epsilon": -1.0}, "epsilon=-1.0"),
        ({"kind": "pure", "epsilon": True}, "epsilon=True"),
        ({"kind": "laplace", "noise_multiplier": 1.0, "sampling_rate": 0.5}, "only gaussian"),
        ({"kind": "gaussian"}, "is needed"),
    ],
)
def test_parameters_that_no_mechanism_has(said, why):
    with pytest.raises(NotPrivate, match=why):
        mechanism(said)


def test_a_mechanism_survives_its_json():
    for each in (Mechanism("gaussian", 1.1, 0.01), Mechanism("gaussian", 2.0), Mechanism("pure", 0.1)):
        assert mechanism(each.to_json()) == each


def test_one_declared_order_enforces_the_epsilon_that_the_accountant_reports():
    query = Mechanism("gaussian", 1.3, 0.0025)
    order = best_order(query, 0.7242235, 1e-5)
    assert order == 19
    budget = Budget(0.7242235, 1e-5, {order: 1.0})
    assert budget.fits(budget.cost(query, 6000))
    assert not budget.fits(budget.cost(query, 6002))
    assert budget.epsilon_of(budget.cost(query, 6000)) == pytest.approx(0.7242234026, rel=RELATIVE)
    with pytest.raises(PrivacyError, match="not one query"):
        best_order(Mechanism("gaussian", 0.1), 0.5, 1e-5)


def test_several_orders_share_delta():
    alone, shared = Budget(1.0, 1e-5, {20.0: 1.0}), Budget(1.0, 1e-5, {20.0: 0.5, 40.0: 0.5})
    assert shared.allowances[0] < alone.allowances[0]
    with pytest.raises(PrivacyError, match=r"add up to 1\.5"):
        Budget(1.0, 1e-5, {20.0: 1.0, 40.0: 0.5})


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ((math.nan, 1e-5), "epsilon=nan"),
        ((1.0, 1.5), "delta=1.5"),
        ((-1.0, 1e-5), "epsilon=-1"),
        ((0.1, 1e-9), "higher"),
    ],
)
def test_budgets_that_cannot_be(values, why):
    with pytest.raises(PrivacyError, match=why):
        Budget(*values)


def test_costs_at_infinite_order_are_pure_epsilons():
    assert costs(Mechanism("pure", 0.3), [math.inf]) == (0.3,)
    assert costs(Mechanism("laplace", 10.0), [math.inf]) == (0.1,)
    assert costs(Mechanism("gaussian", 1.0), [math.inf]) == (math.inf,)

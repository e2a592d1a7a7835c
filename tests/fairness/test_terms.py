"""Witnesses, weightings, the stopping rule, erasure and probes, each against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.fairness import leace, reweighting, stopping, witness
from jaxlm.fairness.adversary import Adversary
from jaxlm.fairness.groups import Attribute, balance, encode
from jaxlm.fairness.metrics import report
from jaxlm.fairness.probe import leak
from jaxlm.fairness.ranking import auc
from jaxlm.fairness.training import combine

RNG = np.random.default_rng(1)
N = 400
GROUP = (RNG.random(N) < 0.4).astype(int)
LABEL = (RNG.random(N) < 0.3 + 0.3 * GROUP).astype(int)
LOGIT = (RNG.normal(size=N) + 0.8 * GROUP + LABEL).astype(np.float32)
TARGET = GROUP.astype(np.float32)[:, None]


def test_the_decision_witness_is_the_reported_gap_when_sharp():
    within = witness.strata("equalized_odds", jnp.asarray(LABEL))
    gap, _ = witness.gaps(jax.nn.sigmoid(1e4 * LOGIT), within, jnp.asarray(TARGET))
    found = report(LABEL, LOGIT > 0, GROUP, None)
    assert np.abs(gap[:, 0]) == pytest.approx([found.difference("fpr"), found.difference("tpr")], abs=1e-5)
    only = witness.strata("equal_opportunity", jnp.asarray(LABEL))
    opportunity, _ = witness.gaps(jax.nn.sigmoid(1e4 * LOGIT), only, jnp.asarray(TARGET))
    assert float(jnp.abs(opportunity[0, 0])) == pytest.approx(found.equal_opportunity, abs=1e-5)


def test_the_squared_gap_of_small_batches_is_right_on_average():
    fair = lambda seed: np.random.default_rng(seed).normal(size=40).astype(np.float32)
    sides = jnp.asarray((np.arange(40) < 15).astype(np.float32)[:, None])
    every = jnp.ones((40, 1))
    estimate = jax.jit(lambda x: witness.decision_gap(x, every, sides))
    found = [float(estimate(fair(seed))) for seed in range(300)]
    spread = np.std(found) / np.sqrt(300)
    assert abs(np.mean(found)) < 3 * spread
    naive = np.mean([float(witness.gaps(jax.nn.sigmoid(fair(s)), every, sides)[0][0, 0] ** 2) for s in range(60)])
    assert naive > 6 * spread, "the plain square would not be"


def test_remembered_gaps_have_the_gradient_of_the_squared_gap_with_less_noise():
    sides, within = jnp.asarray(TARGET), witness.strata("equalized_odds", jnp.asarray(LABEL))
    logits = jnp.asarray(LOGIT)
    whole = lambda shift: witness.gaps(jax.nn.sigmoid(logits + shift * sides[:, 0]), within, sides)[0]
    wanted = float(jax.grad(lambda shift: jnp.sum(jnp.square(whole(shift))))(0.0))

    def slopes(past, rows):
        logit = lambda shift: logits[rows] + shift * sides[rows, 0]
        term = lambda shift: witness.remembered_gap(past, logit(shift), within[rows], sides[rows], 0.95)
        alone = lambda shift: witness.decision_gap(logit(shift), within[rows], sides[rows])
        slope, past = jax.grad(term, has_aux=True)(0.0)
        return past, jnp.stack([slope, jax.grad(alone)(0.0)])

    batches = np.random.default_rng(3).choice(N, (500, 60))
    _, found = jax.lax.scan(slopes, witness.Memory.empty("equalized_odds", 1), jnp.asarray(batches))
    assert found[0, 0] == 0.0, "nothing is remembered yet"
    remembered, alone = np.asarray(found[100:]).T
    assert remembered.mean() == pytest.approx(wanted, rel=0.15)
    assert remembered.std() < 0.5 * alone.std()


def test_mmd_is_near_zero_for_equal_groups_and_grows_with_their_distance():
    every = jnp.ones((N, 1))
    measure = jax.jit(lambda z: witness.mmd(z, every, jnp.asarray(TARGET)))
    noise = RNG.normal(size=(N, 2)).astype(np.float32)
    values = [float(measure(noise + shift * TARGET)) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert abs(values[0]) < 0.01
    assert values == sorted(values)
    wide = noise * np.where(TARGET > 0, 3.0, 1.0)
    assert float(measure(wide.astype(np.float32))) > 0.05, "equal means are not equal distributions"


def test_the_witness_network_is_lipschitz_and_reaches_the_distance_of_two_shifted_groups():
    import optax

    network = Adversary(1, 1, hidden=(16,), key=jax.random.key(0))
    z, every = jnp.asarray(LOGIT[:, None] * 0 + 1.5 * TARGET), jnp.ones((N, 1))
    optimizer = optax.adam(3e-2)

    def step(carry, _):
        network, state = carry
        gradient = jax.grad(lambda w: -witness.network_gap(w, z, every, jnp.asarray(TARGET)))(network)
        change, state = optimizer.update(gradient, state)
        return (jax.tree.map(jnp.add, network, change), state), None

    (network, _), _ = jax.jit(lambda n: jax.lax.scan(step, (n, optimizer.init(n)), None, 300))(network)
    reached = float(witness.network_gap(network, z, every, jnp.asarray(TARGET)))
    assert 0.5 < reached <= 1.5 + 1e-5, "the sup over 1-Lipschitz functions is the shift itself"
    x = jnp.linspace(-3, 3, 200)[:, None]
    assert float(jnp.abs(jnp.diff(witness.lipschitz(network, x)[:, 0]) / jnp.diff(x[:, 0])).max()) <= 1 + 1e-4


def test_kamiran_calders_makes_group_and_label_independent():
    w = reweighting.kamiran_calders(LABEL, GROUP)
    assert w.mean() == pytest.approx(1.0)
    rates = [np.average(LABEL[g == GROUP], weights=w[g == GROUP]) for g in (0, 1)]
    assert rates == pytest.approx([LABEL.mean()] * 2)
    balanced = reweighting.balanced_classes(LABEL, GROUP)
    assert [np.average(LABEL[g == GROUP], weights=balanced[g == GROUP]) for g in (0, 1)] == pytest.approx([0.5, 0.5])
    chances = reweighting.sampling_weights(reweighting.cells(LABEL, [GROUP]))
    assert [chances[(g == GROUP) & (y == LABEL)].sum() for g in (0, 1) for y in (0, 1)] == pytest.approx([0.25] * 4)


def test_kamiran_calders_equals_aif360():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pytest.importorskip("aif360.sklearn.preprocessing", reason="AIF360 is in the development group")
        pd = pytest.importorskip("pandas")
        index = pd.Index(GROUP, name="g")
        frame, y = pd.DataFrame({"x": LOGIT}, index=index), pd.Series(LABEL, index=index)
        _, want = theirs.Reweighing("g").fit_transform(frame, y)
    np.testing.assert_allclose(reweighting.kamiran_calders(LABEL, GROUP), want, atol=1e-9)


def test_group_dro_moves_weight_to_the_worst_cell():
    cells = jnp.asarray([0, 0, 0, 1])
    q, weights = reweighting.dro_weights(jnp.asarray([0.5, 0.5]), jnp.asarray([0.1, 0.1, 0.1, 2.0]), cells, rate=1.0)
    assert q[1] / q[0] == pytest.approx(np.exp(1.9), rel=1e-5)
    assert weights[3] == pytest.approx(4 * float(q[1]), rel=1e-6)
    assert float(weights.mean()) == pytest.approx(1.0)


def checked(rule, skills, founds):
    watch, kept = stopping.begin(), []
    for epoch, (skill, found) in enumerate(zip(skills, founds, strict=True)):
        watch, fine = stopping.check(rule, watch, jnp.float32(skill), jnp.float32(found), jnp.int32(epoch))
        kept.append(bool(fine))
        if watch.stopped:
            break
    return watch, kept


def test_the_stopping_rule_wants_rest_and_chance():
    rule = stopping.Rule(early=True)
    plateau, _ = checked(rule, [0.7] * 8, [0.8] * 8)
    assert not plateau.stopped, "a strong adversary at rest is no reason to stop"
    rest, _ = checked(rule, [0.7] * 8, [0.6, 0.52, 0.521, 0.522, 0.523, 0.6, 0.6, 0.6])
    assert bool(rest.stopped)
    assert int(rest.epoch) == 4, "three consecutive changes below 0.005"
    moving, _ = checked(rule, [0.7] * 6, [0.52, 0.53, 0.52, 0.53, 0.52, 0.53])
    assert not moving.stopped


def test_a_collapsed_task_ends_training_and_is_not_kept():
    watch, kept = checked(stopping.Rule(), [0.5, 0.7, 0.7, 0.52, 0.7], [0.6] * 5)
    assert bool(watch.collapsed)
    assert int(watch.epoch) == 3
    assert kept == [True, True, True, False]
    nan, kept = checked(stopping.Rule(), [0.7, float("nan")], [0.6, 0.6])
    assert bool(nan.collapsed)
    assert kept == [True, False]


def test_the_compiled_auc_equals_the_one_of_reports():
    scores = np.round(LOGIT, 1)
    every = stopping.auc(jnp.asarray(LABEL == 1), jnp.asarray(scores))
    assert float(every) == pytest.approx(auc(LABEL, scores), abs=1e-6)
    counted = GROUP == 1
    some = stopping.auc(jnp.asarray(LABEL == 1), jnp.asarray(scores), jnp.asarray(counted))
    assert float(some) == pytest.approx(auc(LABEL[counted], scores[counted]), abs=1e-6)


def test_projection_leaves_nothing_along_the_adversary_and_normalised_has_the_task_norm():
    task, against = ({"w": jnp.asarray(v)} for v in ([1.0, 2.0, 0.5], [0.5, -1.0, 4.0]))
    projected = combine(task, against, jnp.float32(0.0), "projection")
    assert float(jnp.vdot(projected["w"], against["w"])) == pytest.approx(0.0, abs=1e-5)
    pushed = combine(task, against, jnp.float32(0.7), "projection")
    np.testing.assert_allclose(pushed["w"], projected["w"] - 0.7 * against["w"], rtol=1e-6)
    normalised = combine(task, against, jnp.float32(0.5), "normalised")
    taken = jnp.linalg.norm(task["w"] - normalised["w"])
    assert float(taken) == pytest.approx(0.5 * float(jnp.linalg.norm(task["w"])), rel=1e-5)


def test_leace_leaves_nothing_linear_and_changes_no_more_than_it_must():
    x = RNG.normal(size=(N, 6)) @ RNG.normal(size=(6, 6))
    x[:, 0] += 2 * GROUP
    x = np.concatenate([x, x[:, :1] * 2], axis=1)
    z = np.eye(2)[GROUP]
    erased = leace.fit(x, z)(x)
    centred = z - z.mean(0)
    assert np.abs((erased - erased.mean(0)).T @ centred / N).max() < 1e-10
    assert np.linalg.matrix_rank(erased - x, tol=1e-8) <= 1
    np.testing.assert_allclose(leace.fit(erased, z)(erased), erased, atol=1e-8)


def test_probes_find_what_is_there_and_nothing_after_erasure():
    attribute = Attribute(name="sex", groups=("f", "m"), criterion="demographic_parity")
    x = np.concatenate([RNG.normal(size=(N, 3)), (GROUP + 0.5 * RNG.normal(size=N))[:, None]], axis=1)
    a, b = slice(0, N // 2), slice(N // 2, N)
    probe = lambda x: leak((attribute,), x[a], LABEL[a], [GROUP[a]], x[b], LABEL[b], [GROUP[b]], steps=100)
    assert probe(x).linear > 0.85
    assert probe(leace.fit(x, np.eye(2)[GROUP])(x)).linear < 0.6


def test_attributes_have_one_head_per_group_against_the_rest():
    two, codes = encode("sex", ["m", "f", "m"], "demographic_parity")
    assert (two.groups, two.heads, two.targets(codes).tolist()) == (("f", "m"), 1, [[1.0], [0.0], [1.0]])
    three, codes = encode("origin", ["b", "a", "c", "c"], "equalized_odds")
    assert three.heads == 3
    assert three.targets(codes).argmax(1).tolist() == [1, 0, 2, 2]
    weights = balance(three.targets(codes))
    assert weights.mean(0) == pytest.approx(np.ones(3))
    assert (weights * three.targets(codes)).sum(0) == pytest.approx([2, 2, 2])
    with pytest.raises(ValueError, match="sex has one group only"):
        encode("sex", ["m", "m"], "demographic_parity")

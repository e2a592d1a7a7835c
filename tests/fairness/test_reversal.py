"""The reversed gradient is exact, and the one loss that is minimised has the gradients of the game it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlm.fairness.adversary import Adversaries
from jaxlm.fairness.groups import CRITERIA, Attribute, balance
from jaxlm.fairness.reversal import reverse, weight_at

KEY = jax.random.key(0)


def test_reverse_is_the_identity_and_its_gradient_comes_back_times_minus_the_weight():
    x = jnp.asarray([0.3, -1.2, 2.0])
    loss = lambda x, w: jnp.sum(jnp.sin(reverse(x, w)))
    assert jnp.array_equal(reverse(x, 0.7), x)
    step = 1e-3
    for i in range(3):
        e = step * jnp.eye(3)[i]
        slope = (jnp.sin(x + e) - jnp.sin(x - e)).sum() / (2 * step)
        assert jax.grad(loss)(x, 0.7)[i] == pytest.approx(-0.7 * float(slope), abs=2e-4)
    assert jax.grad(loss, argnums=1)(x, jnp.float32(0.7)) == 0


def game():
    """A linear model, two adversaries over its two outputs, a batch, and both losses."""
    kx, kw, ka, ky, kg = jax.random.split(KEY, 5)
    x = jax.random.normal(kx, (24, 5))
    theta = jax.random.normal(kw, (5, 2))
    labels = jax.random.bernoulli(ky, 0.4, (24,)).astype(jnp.int32)
    attributes = [
        Attribute(name="sex", groups=("f", "m"), criterion="demographic_parity"),
        Attribute(name="origin", groups=("a", "b", "c"), criterion="equalized_odds"),
        Attribute(name="age", groups=("old", "young"), criterion="equal_opportunity"),
    ]
    targets = []
    for k, attribute in zip(jax.random.split(kg, 3), attributes, strict=True):
        codes = np.asarray(jax.random.randint(k, (24,), 0, len(attribute.groups)))
        targets.append(attribute.targets(codes))
    weights = [balance(t) for t in targets]
    phi = Adversaries(attributes, width=2, classes=2, key=ka)
    task = lambda theta: -jnp.mean(jax.nn.log_softmax(x @ theta)[jnp.arange(24), labels])
    guess = lambda phi, z: phi.loss(z, labels, targets, weights) / 24
    return x, theta, phi, task, guess


def test_the_reversed_loss_has_the_gradients_of_the_min_max_game():
    x, theta, phi, task, guess = game()
    weight = 0.8
    reversed_loss = lambda theta, phi: task(theta) + weight * guess(phi, reverse(x @ theta))
    minimax = lambda theta, phi: task(theta) - weight * guess(phi, x @ theta)
    adversary = lambda theta, phi: weight * guess(phi, x @ theta)
    np.testing.assert_allclose(
        jax.jit(jax.grad(reversed_loss))(theta, phi), jax.jit(jax.grad(minimax))(theta, phi), rtol=1e-6, atol=1e-8
    )
    ours = jax.tree.leaves(jax.jit(jax.grad(reversed_loss, argnums=1))(theta, phi))
    want = jax.tree.leaves(jax.jit(jax.grad(adversary, argnums=1))(theta, phi))
    for a, b in zip(ours, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)
    assert any(float(jnp.abs(a).max()) > 0 for a in ours)


def test_a_weight_inside_the_reversal_leaves_the_adversary_at_full_speed():
    x, theta, phi, task, guess = game()
    loss = lambda theta, phi: task(theta) + guess(phi, reverse(x @ theta, 0.1))
    full = jax.grad(lambda phi: guess(phi, x @ theta))(phi)
    for a, b in zip(jax.tree.leaves(jax.grad(loss, argnums=1)(theta, phi)), jax.tree.leaves(full), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weight_zero_adds_nothing_to_the_models_gradient_bit_for_bit():
    x, theta, phi, task, guess = game()
    with_adversary = jax.grad(lambda theta: task(theta) + guess(phi, reverse(x @ theta, 0.0)))(theta)
    np.testing.assert_array_equal(with_adversary, jax.grad(task)(theta))


def test_the_schedules_have_these_values():
    values = {s: [float(weight_at(p, 2.0, s)) for p in (0.0, 0.25, 1.0)] for s in ("constant", "linear", "sqrt")}
    assert values == {"constant": [2, 2, 2], "linear": [0, 0.5, 2], "sqrt": [0, 1, 2]}
    assert float(weight_at(0.1, 1.0, "ganin")) == pytest.approx(2 / (1 + np.exp(-1)) - 1, rel=1e-6)
    with pytest.raises(ValueError, match="schedule='cosine' must be constant"):
        weight_at(0.5, 1.0, "cosine")  # pyright: ignore[reportArgumentType]


def test_each_criterion_sees_and_counts_what_it_must():
    attributes = [Attribute(name=c, groups=("f", "m"), criterion=c) for c in CRITERIA]
    phi = Adversaries(attributes, width=3, classes=2, hidden=(7,), key=KEY)
    widths = [each.weights[0][...].shape for each in phi.each]
    assert widths == [(3, 7), (5, 7), (3, 7)]
    z = jax.random.normal(KEY, (6, 3))
    one = [jnp.ones((6, 1))] * 3
    labels = jnp.asarray([0, 0, 0, 1, 1, 1])
    only = Adversaries(attributes[2:], width=3, key=KEY)
    gradient = jax.jit(jax.grad(lambda z: only.loss(z, labels, one[:1], one[:1])))(z)
    assert float(jnp.abs(gradient[:3]).max()) == 0
    assert float(jnp.abs(gradient[3:]).min()) > 0
    shifted = phi(z, 1 - labels)
    for same, a, b in zip((True, False, True), phi(z, labels), shifted, strict=True):
        assert bool(jnp.allclose(a, b)) == same


def test_the_papers_adversary_is_128_64_1_with_relu():
    phi = Adversaries([Attribute(name="sex", groups=("f", "m"), criterion="demographic_parity")], width=10, key=KEY)
    sizes = [leaf.shape for leaf in jax.tree.leaves(nnx.state(phi.each[0].weights))]
    assert sizes == [(10, 128), (128, 64), (64, 1)]
    (w1, w2, w3), (b1, b2, b3) = ([p[...] for p in part] for part in (phi.each[0].weights, phi.each[0].biases))
    x = jax.random.normal(KEY, (4, 10))
    by_hand = np.maximum(np.maximum(x @ w1 + b1[None], 0) @ w2 + b2[None], 0) @ w3 + b3[None]
    np.testing.assert_allclose(phi(x, jnp.zeros(4, jnp.int32))[0], by_hand, rtol=2e-5, atol=1e-5)

"""Eight-bit matrix products: how far they are off, that nothing is lost, and that a model learns with them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.model import fp8
from jaxlm.model.config import ModelConfig
from jaxlm.model.loss import next_token
from jaxlm.model.ops import project
from jaxlm.model.transformer import Execution, Transformer

KEYS = jax.random.split(jax.random.key(0), 4)
EQUATION = "BTD,DNH->BTNH"
X = jax.random.normal(KEYS[0], (2, 16, 64))
W = jax.random.normal(KEYS[1], (64, 4, 16)) / 8


def off(got, want):
    return float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want))


def test_each_value_is_off_by_half_a_step_of_its_mantissa_at_most_and_the_largest_by_nothing():
    for dtype, bits in ((fp8.VALUES, 3), (fp8.GRADIENTS, 2)):
        values, scale = fp8.scaled(X, dtype)
        back = values.astype(jnp.float32) * scale
        smallest = float(jnp.finfo(dtype).tiny) * float(scale)
        big = jnp.abs(X) > smallest
        error = jnp.where(big, jnp.abs(back - X) / jnp.abs(X), 0.0)
        assert float(error.max()) <= 2.0 ** -(bits + 1) * 1.01
        at = jnp.argmax(jnp.abs(X))
        np.testing.assert_allclose(back.ravel()[at], X.ravel()[at], rtol=1e-6)


def test_a_scale_follows_the_tensor_so_that_tiny_gradients_are_not_lost():
    for factor in (1e-12, 1e12):
        values, scale = fp8.scaled(X * factor, fp8.GRADIENTS)
        assert off(values.astype(jnp.float32) * scale / factor, X) < 0.1


def test_zeros_stay_zeros_and_what_is_not_finite_is_not_hidden():
    values, scale = fp8.scaled(jnp.zeros((4, 4)), fp8.VALUES)
    assert float(jnp.abs(values.astype(jnp.float32) * scale).max()) == 0.0
    for bad in (jnp.inf, jnp.nan):
        y = project(EQUATION, X.at[0, 0, 0].set(bad), W, eight_bits=True)
        assert not bool(jnp.isfinite(y).all())


def test_a_product_and_its_gradients_are_near_those_of_float32():
    def total(x, w, eight_bits):
        return jnp.sum(jnp.sin(project(EQUATION, x, w, eight_bits=eight_bits)))

    assert off(project(EQUATION, X, W, eight_bits=True), project(EQUATION, X, W)) < 0.05
    got, want = (jax.grad(total, argnums=(0, 1))(X, W, eight_bits) for eight_bits in (True, False))
    for mine, exact in zip(got, want, strict=True):
        assert off(mine, exact) < 0.1
    assert all(g.dtype == jnp.float32 for g in got)


def losses(products: str, steps: int) -> list[float]:
    config = ModelConfig(layers=1, embed=64, heads=4, mlp=128, vocab=64, positions=32, products=products)  # pyright: ignore[reportArgumentType]
    model = Transformer(config, Execution(), key=KEYS[2])
    tx = optax.adam(3e-3)
    start = jax.random.randint(KEYS[3], (8, 1), 0, 64)
    tokens = jnp.mod(start + 3 * jnp.arange(33)[None, :], 64)  # each token follows from the one before it
    places = jnp.broadcast_to(jnp.arange(32), (8, 32))
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "positions": places, "weights": jnp.ones((8, 32))}

    @jax.jit
    def step(model, opt):
        total, grads = jax.value_and_grad(lambda m: next_token(m, batch)[0] / 256)(model)
        updates, opt = tx.update(grads, opt, model)
        return optax.apply_updates(model, updates), opt, total

    opt: Any = tx.init(model)  # pyright: ignore[reportArgumentType]
    found = []
    for _ in range(steps):
        model, opt, total = step(model, opt)
        found.append(float(total))
    return found


@pytest.mark.slow
def test_a_model_learns_as_well_with_them():
    exact, eight = losses("auto", 80), losses("fp8", 80)
    assert exact[0] == pytest.approx(eight[0], rel=0.02)
    assert eight != exact, "eight bits were used"
    assert exact[-1] < 0.2 * exact[0], "there was something to learn"
    assert abs(eight[-1] - exact[-1]) < 0.02 * exact[0]

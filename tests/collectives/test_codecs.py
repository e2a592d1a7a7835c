"""What every codec promises: a bound on each element's error, unsigned codes, and no bias where it says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.collectives.codecs import BFloat16, Exact, Float8, Int4, Int8, Sign, TopK, lowrank, payload
from jaxlm.collectives.codecs.codec import blocks

CODECS = [Exact(), BFloat16(), Int8(), Float8(), Int4(), Sign(), TopK(), TopK(small=True), TopK(keep=1, unit=256)]
N = 2048
named = pytest.mark.parametrize("codec", CODECS, ids=repr)


def hard(seed: int, exponent: int, zeros: float) -> np.ndarray:
    """Heavy-tailed rows whose blocks differ in size by many orders, with zeros among them."""
    random = np.random.default_rng(seed)
    rows = random.standard_t(2, (3, N)) * 10.0 ** random.integers(-4, 4, (3, N // 256)).repeat(256, 1)
    rows *= random.random((3, N)) >= zeros
    rows[1, :256] = 0.0
    return (rows * 10.0**exponent).astype(np.float32)


@named
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), exponent=st.integers(-25, 25), zeros=st.sampled_from([0.0, 0.5, 0.999]))
def test_no_element_is_farther_off_than_the_bound(codec, seed, exponent, zeros):
    x = hard(seed, exponent, zeros)
    for key in (None, jax.random.key(seed)) if codec.unbiased else (None,):
        got = np.asarray(codec.decode(codec.encode(jnp.asarray(x), key)))
        bound = np.asarray(codec.bound(jnp.asarray(x)))
        assert got.shape == x.shape
        assert got.dtype == np.float32
        worst = np.max(np.abs(got - x) - bound * (1 + 1e-6))
        assert worst <= 0, (key, worst)


@named
def test_codes_are_unsigned_and_as_many_bytes_as_they_say(codec):
    codes = codec.encode(jnp.asarray(hard(0, 0, 0.0)))
    assert all(jnp.issubdtype(code.dtype, jnp.unsignedinteger) for code in codes)
    assert sum(code.nbytes for code in codes) == 3 * payload(codec, N)


@pytest.mark.parametrize(
    ("codec", "ratio"),
    list(zip(CODECS[1:8], (2, 3.9, 3.9, 7.7, 28, 100, 120), strict=True)),
    ids=repr,
)
def test_bytes_are_saved(codec, ratio):
    assert 4 * N / payload(codec, N) >= ratio


@named
def test_what_is_not_finite_does_not_spoil_its_neighbours(codec):
    if isinstance(codec, Exact):
        pytest.skip("it sends every bit as it is")
    x = hard(1, 0, 0.0)
    clean = x.copy()
    clean[0, [3, 70, 600]] = 0.0
    x[0, [3, 70, 600]] = [np.nan, np.inf, -np.inf]
    np.testing.assert_array_equal(
        codec.decode(codec.encode(jnp.asarray(x))), codec.decode(codec.encode(jnp.asarray(clean)))
    )


@pytest.mark.parametrize("codec", [BFloat16(), Int8(), Int4()], ids=repr)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_stochastic_rounding_is_right_on_average_and_replayable(codec, seed):
    x = jnp.asarray(np.random.default_rng(seed).normal(size=N).astype(np.float32))
    once = jax.jit(lambda key: codec.decode(codec.encode(x, key)))
    many = jax.vmap(once)(jax.random.split(jax.random.key(seed), 400))
    error, spread = jnp.mean(many, 0) - x, jnp.std(many, 0) / 20
    assert float(jnp.mean(jnp.abs(error))) <= float(jnp.mean(spread))
    nearest = codec.decode(codec.encode(x)) - x
    assert float(jnp.linalg.norm(error)) < 0.3 * float(jnp.linalg.norm(nearest))
    np.testing.assert_array_equal(once(jax.random.key(9)), once(jax.random.key(9)))


@pytest.mark.parametrize("codec", [Int4(), Sign(), TopK(), TopK(small=True)], ids=repr)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lossy_codecs_contract_which_error_feedback_needs(codec, seed):
    x = jnp.asarray(hard(seed, 0, 0.3))
    squared = lambda a: jnp.sum(jnp.square(blocks(a, codec.unit)), axis=-1)
    left, whole = squared(codec.decode(codec.encode(x)) - x), squared(x)
    least = codec.keep / codec.unit if isinstance(codec, TopK) else 1e-3
    assert bool(jnp.all(left <= (1 - least) * whole * (1 + 1e-3) + 1e-30))


def test_a_length_that_is_no_whole_number_of_blocks_is_refused():
    with pytest.raises(ValueError, match="300 elements are no whole number of blocks of 256"):
        Int8().encode(jnp.zeros(300))
    with pytest.raises(ValueError, match="keeps 0 of 1024"):
        TopK(keep=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_low_rank_never_leaves_more_than_it_was_given_and_converges_on_a_low_rank_matrix(seed):
    random = np.random.default_rng(seed)
    noise = jnp.asarray(random.normal(size=(2, 40, 24)).astype(np.float32))
    thin = jnp.asarray((random.normal(size=(2, 40, 3)) @ random.normal(size=(2, 3, 24))).astype(np.float32))
    for matrix, rounds, most in ((noise, 1, 1.0), (thin, 3, 1e-5)):
        q, lefts = jnp.asarray(random.normal(size=(2, 24, 4)).astype(np.float32)), []
        for _ in range(rounds):
            p = lowrank.orthonormal(lowrank.project(matrix, q))
            q = lowrank.back(matrix, p)
            lefts.append(float(jnp.linalg.norm(matrix - lowrank.decode(p, q)) / jnp.linalg.norm(matrix)))
        assert max(lefts) <= 1.0
        assert lefts[-1] <= most
    zero = lowrank.orthonormal(jnp.zeros((1, 5, 2)))
    assert bool(jnp.all(zero == 0))

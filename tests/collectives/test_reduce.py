"""Every aggregator on two and four workers: within its codec's bound of the exact mean, and the same bits on all."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.collectives import reduce
from jaxlm.collectives.codecs import BFloat16, Exact, Float8, Int4, Int8, Sign, TopK

N = 1024


def slowly(value):
    return pytest.param(value, marks=pytest.mark.slow)


def over(workers: int, function):
    """`function` on each of the workers along axis `zone`, all results side by side."""
    mesh = Mesh(np.asarray(jax.devices()[:workers]), ("zone",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=P("zone"), out_specs=P("zone"), check_vma=False)
    return lambda *given: jax.jit(mapped)(*(jax.device_put(x, NamedSharding(mesh, P("zone"))) for x in given))


def gradients(workers: int, seed: int) -> np.ndarray:
    """float32 [workers, workers, N]: the rows of each."""
    return np.random.default_rng(seed).normal(size=(workers, workers, N)).astype(np.float32)


def exchanged(workers: int, x: np.ndarray, how) -> reduce.Exchanged:
    run = over(workers, lambda rows: jax.tree.map(lambda a: a[None], how(rows[0])))
    return jax.tree.map(np.asarray, run(x))


@pytest.mark.parametrize(("workers", "seed"), [(2, 0), (4, 1), (4, 2)])
@pytest.mark.parametrize("codec", [Exact(), Int8(), Sign(), *map(slowly, (BFloat16(), Float8(), Int4()))], ids=repr)
def test_two_shot(codec, workers, seed):
    x = gradients(workers, seed)
    got = exchanged(workers, x, lambda rows: reduce.two_shot(rows, "zone", codec))
    mean = x.mean(0)
    legs = np.asarray(codec.bound(jnp.asarray(x))).mean(0)
    arrived = np.asarray(codec.decode(codec.encode(jnp.asarray(x)))).mean(0)
    legs = legs + np.asarray(codec.bound(jnp.asarray(arrived)))
    for worker in range(workers):
        np.testing.assert_array_equal(got.mean[worker], got.mean[0])
        assert np.all(np.abs(got.mean[worker] - mean) <= legs * (1 + 1e-5) + 1e-6)
        np.testing.assert_array_equal(got.sent[worker], codec.decode(codec.encode(jnp.asarray(x[worker]))))
        np.testing.assert_allclose(got.owner[worker], (got.sent.mean(0) - got.mean[0])[worker], atol=1e-5)


@pytest.mark.parametrize(("workers", "seed"), [(2, 0), (4, 1), (8, 2)])
def test_shared_scale_adds_integers_without_overflow(workers, seed):
    x = gradients(workers, seed)
    x[:, :, 5] = 100.0  # every worker at the end of the scale, which overflows a byte if steps are not shared
    got = exchanged(workers, x, lambda rows: reduce.shared_scale(rows, "zone"))
    largest = np.abs(x).max(0).reshape(workers, -1, 256).max(-1)
    step = (largest / (127 // workers) * (1 + 2.0**-7)).repeat(256, -1)
    for worker in range(workers):
        np.testing.assert_array_equal(got.mean[worker], got.mean[0])
        assert np.all(np.abs(got.mean[worker] - x.mean(0)) <= 0.5 * step)
    np.testing.assert_allclose(got.sent.mean(0), got.mean[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("workers", [2, slowly(4)])
@pytest.mark.parametrize("codec", [TopK(), TopK(small=True), Int8()], ids=repr)
def test_gathered_is_the_mean_of_what_each_sent(codec, workers):
    x = gradients(workers, 0)
    got = exchanged(workers, x, lambda rows: reduce.gathered(rows, "zone", codec))
    for worker in range(workers):
        np.testing.assert_array_equal(got.mean[worker], got.mean[0])
        np.testing.assert_array_equal(got.sent[worker], codec.decode(codec.encode(jnp.asarray(x[worker]))))
    np.testing.assert_allclose(got.mean[0], got.sent.mean(0), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("workers", [slowly(2), 4])
def test_exact_sums_and_means_of_any_length(workers):
    x = np.random.default_rng(0).normal(size=(workers, 37)).astype(np.float32)
    total = np.asarray(over(workers, lambda a: reduce.exact_sum(a, "zone", workers))(x))
    mean = np.asarray(over(workers, lambda a: reduce.exact_mean(a[0], "zone", workers)[None])(x))
    np.testing.assert_allclose(total, np.tile(x.sum(0), (workers, 1)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean, np.tile(x.mean(0), (workers, 1)), rtol=1e-5, atol=1e-6)
    assert all((row == mean[0]).all() for row in mean)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_low_rank_is_the_mean_projected_and_exact_for_a_mean_of_low_rank(seed):
    random = np.random.default_rng(seed)
    thin = (random.normal(size=(2, 2, 32, 2)) @ random.normal(size=(2, 2, 2, 16))).astype(np.float32)
    start = np.broadcast_to(random.normal(size=(2, 16, 4)), (2, 2, 16, 4)).astype(np.float32)

    def step(matrix, start):
        means, starts = reduce.low_rank([matrix[0]], [start[0]], "zone", 2)
        return means[0][None], starts[0][None]

    mean, start = over(2, step)(thin, start)
    assert np.linalg.norm(np.asarray(mean)[0] - thin.mean(0)) < 1e-4 * np.linalg.norm(thin.mean(0))
    np.testing.assert_array_equal(mean[0], mean[1])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_stochastic_rounding_takes_its_own_key_on_each_worker(seed):
    """The mean of a hundred exchanges comes closer to the truth than rounding to nearest ever does (rule S12)."""
    x = np.random.default_rng(seed).normal(size=(2, 2, 256)).astype(np.float32)

    def many(rows):
        key = jax.random.fold_in(jax.random.key(seed), jax.lax.axis_index("zone"))
        one = lambda k: reduce.two_shot(rows[0], "zone", Int4(), key=k)
        return jax.tree.map(lambda a: jnp.mean(a, 0)[None], jax.lax.map(one, jax.random.split(key, 100)))

    got = jax.tree.map(np.asarray, over(2, many)(x))
    nearest = exchanged(2, x, lambda rows: reduce.two_shot(rows, "zone", Int4()))
    off = lambda mean: np.linalg.norm(mean[0] - x.mean(0))
    assert off(got.mean) < 0.4 * off(nearest.mean)


def test_a_code_that_is_no_unsigned_integer_is_refused():
    with pytest.raises(TypeError, match="only unsigned integers may cross a slow link"):
        over(2, lambda a: reduce.across("all_gather", (a,), "zone")[0])(np.zeros((2, 4), np.float32))


@pytest.mark.parametrize(
    "how",
    [
        partial(reduce.two_shot, codec=BFloat16()),
        partial(reduce.two_shot, codec=Float8()),
        partial(reduce.two_shot, codec=Int4()),
        reduce.shared_scale,
        partial(reduce.gathered, codec=TopK()),
    ],
)
def test_the_compiled_program_moves_no_floats(how):
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("zone",), axis_types=(AxisType.Auto,))
    step = jax.shard_map(
        lambda rows: how(rows[0], axis="zone").mean[None],
        mesh=mesh, in_specs=P("zone"), out_specs=P("zone"), check_vma=False,
    )  # fmt: skip
    text = jax.jit(step).lower(jnp.zeros((2, 2, N))).compile().as_text() or ""
    moved = [
        line
        for line in text.splitlines()
        if any(f" {op}(" in line for op in ("all-to-all", "all-gather", "all-reduce"))
    ]
    assert moved
    assert all(" = u" in line or " = (u" in line for line in moved), moved

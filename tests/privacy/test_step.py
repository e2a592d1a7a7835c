"""The private step: what it adds up, that no mesh changes it, and what it lets out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.data.packing import empty_batch
from jaxlm.model.loss import next_token
from jaxlm.privacy.feed import slots
from jaxlm.privacy.sampling import Secret
from jaxlm.trainer.private import PrivateStep, with_noise
from jaxlm.trainer.step import step_key
from jaxlm.tree import named_leaves
from tests.privacy.work import CONFIG, DOCUMENTS, MODEL, RATE, SECRET, Private, documents

pytest.importorskip("jax_privacy", reason="needs the extra: uv sync --extra privacy")


def leaves(tree) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}


@pytest.fixture(scope="module")
def alone():
    """One device: the private step, its sums before noise, and the state after it."""
    private = Private({}, rows=4)
    with jax.set_mesh(private.mesh):
        state, sampled = private.state(), private.feed[0]
        step = PrivateStep(*private.programs(state))
        sums = step.compute(state.model, state.step, sampled.chunks[0])
    return private, step, state, sums


def test_the_sums_are_those_of_a_loop_over_documents(alone):
    private, _, state, sums = alone
    rows, total, loss = SECRET.sample(0, DOCUMENTS, RATE), {}, 0.0
    with jax.set_mesh(private.mesh):
        model = state.model

        @jax.jit
        def gradient(model, row, number):
            def mean(model):
                key = jax.random.fold_in(step_key(0, jnp.zeros((), jnp.int32)), number)
                found, sums = next_token(model, row, key)
                return found / sums["weight"]

            return jax.value_and_grad(mean)(model)

        clipped = 0
        for number in rows.tolist():
            row = empty_batch(1, private.feed.sequence, 0)
            documents().fill(row, 0, number)
            row = {name: row[name] for name in ("tokens", "targets", "positions", "weights")}
            value, found = gradient(model, row, jnp.asarray(number))
            found = leaves(found)
            norm = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in found.values()))
            clipped += norm > CONFIG.clip_norm
            for name, g in found.items():
                total[name] = total.get(name, 0.0) + g * min(1.0, CONFIG.clip_norm / norm)
            loss += min(float(value), CONFIG.loss_bound)
    assert len(rows) > 4
    assert clipped > 0
    found = leaves(sums.gradients)
    for name, value in total.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)
    assert float(sums.loss) == pytest.approx(loss, rel=1e-5)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("mesh", "rows"), [({"data": 2, "fsdp": 2, "tensor": 2}, 4), pytest.param({"data": 8}, 8, marks=SLOW)]
)
def test_eight_devices_do_what_one_does(alone, mesh, rows):
    noisy = {}
    for private in (Private(mesh, rows=rows), alone[0]):
        with jax.set_mesh(private.mesh):
            sampled = private.feed[0]
            state = private.state() if private is not alone[0] else alone[2]
            compute = private.programs(state)[0] if private is not alone[0] else alone[1].compute
            sums = compute(state.model, state.step, sampled.chunks[0])
            add = jax.jit(with_noise, static_argnames="noise")
            noisy[private] = leaves(add(sums, sampled.key, noise=private.noise).gradients)
    found, expected = noisy.values()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_step_reports_nothing_but_what_the_noise_covers(alone):
    """The update is that of the noisy sum over the expected size of a sample; no exact loss, token count, hash or flag
    comes out of it, and a step that no ledger has seen is refused."""
    private, step, state, sums = alone
    with jax.set_mesh(private.mesh):
        sampled = private.feed[0]
        with pytest.raises(RuntimeError, match="no ledger was asked"):
            step(state, sampled)
        asked = []
        step.charge = asked.append
        _, metrics = step(state, sampled)
        noisy = jax.jit(with_noise, static_argnames="noise")(sums, sampled.key, noise=private.noise)
    assert asked == [0]
    norm = np.sqrt(sum(float(np.square(g).sum()) for g in leaves(noisy.gradients).values())) / (RATE * DOCUMENTS)
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)
    assert float(metrics["loss"]) == pytest.approx(float(noisy.loss) / (RATE * DOCUMENTS), rel=1e-4)
    assert abs(float(noisy.loss - sums.loss)) > 1e-3
    assert float(metrics["weight"]) == private.noise.tokens
    assert not np.asarray(metrics["batch"]).any()
    assert metrics.keys() == {"loss", "weight", "grad_norm", "norms", "finite", "batch"}


def test_noise_has_the_deviation_that_is_charged(alone):
    private, _, _, sums = alone
    with jax.set_mesh(private.mesh):
        keys = np.random.default_rng(0).integers(0, 2**32, (20, 2), dtype=np.uint32)
        add = jax.jit(with_noise, static_argnames="noise")
        drawn = [add(sums, jnp.asarray(key), noise=private.noise) for key in keys]
    exact = leaves(sums.gradients)
    rest = np.concatenate([(g - exact[name]).ravel() for d in drawn for name, g in leaves(d.gradients).items()])
    config = private.noise.config
    expected = private.noise.multiplier * np.hypot(config.clip_norm, config.loss_share * config.clip_norm)
    assert rest.std() == pytest.approx(expected, rel=5 / np.sqrt(2 * rest.size))
    assert abs(rest.mean()) < 5 * expected / np.sqrt(rest.size)
    losses = np.array([float(d.loss - sums.loss) for d in drawn])
    unit = config.loss_bound / (config.loss_share * config.clip_norm)
    assert losses.std() == pytest.approx(expected * unit, rel=5 / np.sqrt(2 * losses.size))


def test_a_sample_larger_than_a_chunk_is_never_cut(alone):
    private, _, state, sums = alone
    with jax.set_mesh(private.mesh):
        feed = Private({}, rows=4).feed
        feed.slots = 1
        sampled = feed[0]
        assert len(sampled.chunks) == -(-len(SECRET.sample(0, DOCUMENTS, RATE)) // 4) > 2
        compute = private.programs(state)[0]
        pieces = [compute(state.model, state.step, chunk) for chunk in sampled.chunks]
    total = {name: sum(leaves(piece.gradients)[name] for piece in pieces) for name in leaves(sums.gradients)}
    for name, value in leaves(sums.gradients).items():
        np.testing.assert_allclose(total[name], value, atol=1e-6, err_msg=name)


def test_each_document_is_sampled_with_the_rate_and_by_itself():
    rate, rows, steps = 0.1, 500, 400
    drawn = np.zeros((steps, rows), bool)
    for step in range(steps):
        drawn[step, SECRET.sample(step, rows, rate)] = True
    deviation = np.sqrt(rate * (1 - rate))
    assert abs(drawn.mean() - rate) < 5 * deviation / np.sqrt(drawn.size)
    # Each document over steps, the sizes of samples, and neighbours: as independent draws have them.
    assert np.abs(drawn.mean(0) - rate).max() < 5 * deviation / np.sqrt(steps)
    assert drawn.sum(1).var() == pytest.approx(rows * rate * (1 - rate), rel=5 * np.sqrt(2 / steps))
    together = (drawn[:, 1:] & drawn[:, :-1]).mean()
    assert abs(together - rate**2) < 5 * rate / np.sqrt(drawn.size)
    assert np.array_equal(SECRET.sample(7, rows, rate), SECRET.sample(7, rows, rate))
    assert not np.array_equal(SECRET.sample(7, rows, rate), Secret.fresh().sample(7, rows, rate))
    assert len(SECRET.sample(0, rows, 1.0)) == rows


def test_secrets_do_not_show():
    assert SECRET._value.hex() not in repr(SECRET)
    assert not np.array_equal(SECRET.noise(0), SECRET.noise(1))
    assert not np.array_equal(SECRET.noise(0), Secret.fresh().noise(0))


def test_a_chunk_has_room_for_more_than_is_expected():
    assert slots(32.0, 0.01, 1) == 61
    assert slots(32.0, 1.0, 8) == 4


def test_one_document_moves_the_sums_by_the_sensitivity_at_most(alone):
    """The sums with and without one document differ by the clipping norm at most, and a document that is not finite
    moves the gradient not at all: dropout and order of the others do not depend on it."""
    private, step, state, sums = alone
    with jax.set_mesh(private.mesh):
        chunk = private.feed[0].chunks[0]
        less = {**chunk, "real": chunk["real"].at[0, 0].set(False)}
        without = step.compute(state.model, state.step, less)
    ours, others = leaves(sums.gradients), leaves(without.gradients)
    moved = np.sqrt(sum(float(np.square(ours[name] - others[name]).sum()) for name in ours))
    assert 0 < moved <= CONFIG.clip_norm * (1 + 1e-5)
    assert 0 < float(sums.loss - without.loss) <= CONFIG.loss_bound
    assert MODEL.dropout > 0

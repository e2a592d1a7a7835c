"""The rules of compressed training, S1 to S17, on a problem small enough for three seeds of each."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.collectives.adopt import adopted
from jaxlm.collectives.replicas import Diverged, require_identical
from jaxlm.collectives.schemes import Scheme, check, scheme
from jaxlm.optim.frozen import scale_by_frozen_adam
from planners.plan import Communication, PlanError
from tests.collectives.work import WIDTH, Toy, toy, toy_batch

seeds = pytest.mark.parametrize("seed", [0, 1, 2])


def made(kind: Any, workers: int = 2, **parameters: float) -> Scheme:
    values = {name: float(value) for name, value in parameters.items()}
    return scheme(Communication(axis="zone", scheme=kind, parameters=values), workers)


@functools.cache
def toy_of(made: Scheme, workers: int = 2, local: int = 1, rate: float = 0.0, **more: Any) -> Toy:
    """One compiled toy for all seeds."""
    return Toy(made, workers, local, tx=optax.sgd(rate), **more)


def fresh(made: Scheme, *arguments: Any, **more: Any) -> Toy:
    """The same as it was before its first step."""
    run = toy_of(made, *arguments, **more)
    run.state = run.first
    return run


def test_s1_s2_s4_unsafe_combinations_are_refused_with_the_reason_and_run_when_allowed():
    raw = made("topk", momentum=0)
    for bad, optimizer, why in (
        (raw, "adamw", "rule S1: 0.75 nats"),
        (raw, "sgd", "use dgc"),
        (made("sign", momentum=0), "lion", "Leave momentum out"),
        (made("int4", feedback=0), "adamw", "rule S2"),
        (made("int8_shared", 4, feedback=0), "adamw", "31 steps"),
    ):
        with pytest.raises(PlanError, match=why):
            check(bad, optimizer, 4 if "shared" in bad.kind else 2, momentum=0.9)
        check(bad, optimizer, 2, momentum=0.9, allow_unsafe=True)
    check(raw, "sgd", 2, momentum=0.0)
    for bad, optimizer, why in (
        (made("dgc"), "adamw", "corrects the momentum of SGD"),
        (made("sign"), "muon", "frozen variance"),
        (made("sign", warmup=0), "adamw", "dense warm-up"),
        (dataclasses.replace(made("int8"), axis="fsdp"), "adamw", "only zone and data"),
        (dataclasses.replace(made("int8"), every=4), "adamw", "only local_sgd"),
    ):
        with pytest.raises(PlanError, match=why):
            check(bad, optimizer, 2, allow_unsafe=True)


@pytest.mark.parametrize("kind", ["int4", "sign", "topk"])
def test_s2_s3_over_many_steps_what_arrived_and_what_is_owed_make_up_what_was_given(kind):
    parameters = {} if kind == "int4" else {"momentum": 0, "warmup": 0}
    run = Toy(made(kind, limit=0, spike=0, **parameters), 2, 2)
    for seed in range(3):
        start, run.state = run.state, run.state
        given, arrived = np.zeros((WIDTH, WIDTH)), np.zeros((WIDTH, WIDTH))
        with jax.set_mesh(run.mesh):
            for step in range(6):
                batch = toy_batch(seed, step)
                got, run.state = run.gradients(run.state, run.put(batch), jax.random.key(0))
                given, arrived = given + run.exact(batch)["w"], arrived + np.asarray(got["w"])
                np.testing.assert_allclose(got["gain"], run.exact(batch)["gain"], rtol=1e-4, atol=1e-6)
        assert np.linalg.norm(arrived + run.owed() - given) < 1e-5 * np.linalg.norm(given)
        assert np.linalg.norm(arrived - given) > 1e-3 * np.linalg.norm(given)
        run.state = start


@seeds
def test_s4_the_warm_up_is_dense_and_its_length_is_the_checkpoints_not_the_configurations(seed):
    run = fresh(made("sign", warmup=4), decay=0.9)
    dense = [m["dense"] for m in run.train(seed, 0, 7)]
    assert dense == [1, 1, 1, 1, 0, 0, 0]
    other = fresh(made("sign", warmup=50), decay=0.9)
    with jax.set_mesh(other.mesh):
        state = adopted(other.sync, named(run.state.sync), 7)
    assert int(state["warmup"]) == 4
    other.state = dataclasses.replace(other.state, sync=state, step=run.state.step)
    assert other.train(seed, 7, 8)[0]["dense"] == 0
    with pytest.raises(PlanError, match="this run has done 60 without it"), jax.set_mesh(other.mesh):
        adopted(other.sync, {}, 60)


def named(state: dict[str, Any]) -> dict[str, Any]:
    return {f"{kind}/{name}": leaf for kind, leaves in state.items() if isinstance(leaves, dict)
            for name, leaf in leaves.items()} | {k: v for k, v in state.items() if not isinstance(v, dict)}  # fmt: skip


@seeds
def test_s5_dgc_masks_the_momentum_of_what_it_sent_and_learns(seed):
    run = fresh(made("dgc", density=0.05, ramp=0, limit=0), rate=0.003, decay=0.9, clip=10.0)
    with jax.set_mesh(run.mesh):
        got, after = run.gradients(run.state, run.put(toy_batch(seed)), jax.random.key(0))
    error, velocity = (np.asarray(after.sync[kind]["w"]) for kind in ("error", "velocity"))
    sent = velocity == 0.0
    assert 0.04 < sent.mean() < 0.06
    assert np.linalg.norm(error[sent]) < 0.01 * np.linalg.norm(error[~sent])
    np.testing.assert_allclose(error[~sent], velocity[~sent], rtol=1e-6)
    assert (np.asarray(got["w"]) != 0).mean() < 0.11
    losses = [m["loss"] for m in run.train(seed, 0, 120)]
    assert np.mean(losses[-10:]) < 0.5 * losses[0]


@seeds
def test_s6_each_worker_is_clipped_before_anything_is_stored_and_the_rest_is_not_owed(seed):
    clip = 0.5
    run = fresh(made("topk", momentum=0, warmup=0, limit=0, spike=0), clip=clip)
    batch = toy_batch(seed)
    batch["y"][0, : len(batch["y"][0]) // 2] *= 1000.0  # one worker's gradient is huge
    with jax.set_mesh(run.mesh):
        got, after = run.gradients(run.state, run.put(batch), jax.random.key(0))
    run.state = after
    given = np.linalg.norm([np.linalg.norm(np.asarray(got["w"]) + run.owed()), np.linalg.norm(got["gain"])])
    assert given <= clip * np.sqrt(2) * (1 + 1e-4)


@seeds
@pytest.mark.parametrize("kind", ["int8", "sign", "topk"])
def test_s7_a_step_that_is_not_finite_on_one_worker_is_seen_and_leaves_no_trace(kind, seed):
    run = toys(kind)
    run.train(seed, 0, 1)
    before = jax.device_get((run.state.model, run.state.sync))
    batch = toy_batch(seed, 1)
    batch["x"][0, 3, 5] = np.nan
    with jax.set_mesh(run.mesh):
        state, metrics = run.step(run.state, run.put(batch))
    assert not metrics["finite"]
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get((state.model, state.sync)))


def toys(kind: str, workers: int = 2) -> Toy:
    """Of each kind with error feedback and no momentum."""
    return fresh(made(kind, **{"int8": {"feedback": 1}}.get(kind, {"momentum": 0, "warmup": 0})), workers)


def test_s8_what_is_owed_is_float32():
    for kind in ("int8", "sign", "topk"):
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(toys(kind).state.sync["error"]))


@seeds
def test_s9_s10_microbatches_are_added_up_before_and_a_scaled_loss_owes_the_same(seed):
    run = toys("int8")
    batch = toy_batch(seed)
    with jax.set_mesh(run.mesh):
        want, after = run.gradients(run.state, run.put(batch), jax.random.key(0))
        # Rows go to the same workers: each takes its half of every microbatch.
        halves = {name: x.reshape(2, 4, 4, WIDTH).swapaxes(0, 1).reshape(4, 8, WIDTH) for name, x in batch.items()}
        got, other = run.gradients(run.state, run.put(halves), jax.random.key(0))
    np.testing.assert_allclose(got["w"], want["w"], rtol=1e-5, atol=1e-5)
    owed = [np.asarray(each.sync["error"]["w"]) for each in (after, other)]
    # An element between two codes may round the other way; hardly any does.
    assert (np.abs(owed[0] - owed[1]) > 1e-4 * np.abs(owed[0]).max()).mean() < 0.01

    def scaled(model: Any, batch: Any, key: Any) -> Any:
        loss, sums = toy(model, batch, key)
        return loss * 1024.0, {"weight": sums["weight"] * 1024.0}

    with jax.set_mesh(run.mesh):
        step = jax.jit(lambda state, batch: run.sync.gradients(
            scaled, state.model, batch, jax.random.key(0), state.sync, state.step).state)  # fmt: skip
        again = np.asarray(step(run.state, run.put(batch))["error"]["w"])
    np.testing.assert_allclose(again, owed[0], rtol=1e-4, atol=1e-4 * np.abs(owed[0]).max())


@seeds
def test_s11_replicas_stay_equal_bit_for_bit_and_one_flipped_bit_is_found(seed):
    run = fresh(made("int4"), 2, 2, rate=1e-3)
    run.train(seed, 0, 8)
    with jax.set_mesh(run.mesh):
        require_identical(run.state.model, run.mesh, 8)
        w = run.state.model["w"]
        copies = [np.array(shard.data) for shard in w.addressable_shards]
        copies[3].view(np.uint32)[5, 7] ^= 1
        pieces = [jax.device_put(c, s.device) for c, s in zip(copies, w.addressable_shards, strict=True)]
        bad = jax.make_array_from_single_device_arrays(w.shape, w.sharding, pieces)
        with pytest.raises(Diverged, match="after step 8 the weights of zone 1 data 1 differ"):
            require_identical({**run.state.model, "w": bad}, run.mesh, 8)


def test_s12_noise_differs_between_workers_and_steps_and_can_be_replayed():
    run = Toy(made("int8", stochastic=1, feedback=1), 2)
    with jax.set_mesh(run.mesh):
        same = {name: np.concatenate([x[:, :16]] * 2, axis=1) for name, x in toy_batch(0).items()}
        owed = []
        for key in (0, 0, 1):
            _, after = run.gradients(run.state, run.put(same), jax.random.key(key))
            owed.append(np.asarray(after.sync["error"]["w"]))
    assert (owed[0][0] != owed[0][1]).mean() > 0.3, "two workers with the same gradient"
    np.testing.assert_array_equal(owed[0], owed[1])
    assert (owed[0] != owed[2]).mean() > 0.3


@seeds
def test_s13_weights_without_a_gradient_stay_where_they_are_under_one_bit_and_wake_up(seed):
    run = fresh(made("sign", warmup=2, masked_every=4, limit=0, spike=0), rate=1e-3, decay=0.9)
    run.train(seed, 0, 12, rare=3)
    w, momentum = np.asarray(run.state.model["w"]), np.asarray(run.state.sync["momentum"]["w"])
    assert (w[:3] == 0.0).all()
    assert (momentum[:3] == 0.0).all()
    assert (momentum[3:] != 0.0).all()
    run.train(seed, 1000, 1006)
    assert (np.asarray(run.state.sync["momentum"]["w"])[:3] != 0.0).all()


@seeds
@pytest.mark.parametrize("after", [1, 4])
def test_s14_with_other_workers_the_mean_of_what_is_owed_stays(seed, after):
    run = toys("sign")
    run.train(seed, 0, 3)
    owed = run.owed()
    with jax.set_mesh((other := toys("sign", after)).mesh):
        state = adopted(other.sync, jax.tree.map(jnp.asarray, named(jax.device_get(run.state.sync))), 3)
    np.testing.assert_allclose(
        np.asarray(state["error"]["w"]).mean(0) + np.asarray(state["owner"]["w"]), owed, rtol=1e-6, atol=1e-7
    )
    other.state = dataclasses.replace(other.state, sync=state)
    batch = toy_batch(seed, 3)
    with jax.set_mesh(other.mesh):
        got, other.state = other.gradients(other.state, other.put(batch), jax.random.key(0))
    total = np.asarray(got["w"]) + other.owed()
    np.testing.assert_allclose(total, run.exact(batch)["w"] + owed, rtol=1e-4, atol=1e-4)


@seeds
def test_s15_residuals_or_a_loss_out_of_bounds_make_steps_dense_for_good(seed):
    run = fresh(made("topk", momentum=0, warmup=0, limit=2.0, spike=0))
    seen = run.train(seed, 0, 12)
    dense = [m["dense"] for m in seen]
    assert dense[0] == 0
    assert dense[-1] == 1
    assert sorted(dense) == dense, "never back"
    assert seen[dense.index(1)]["residual_ratio"] > 2.0
    assert (np.asarray(run.state.sync["error"]["w"]) == 0).all()
    calm = fresh(made("topk", momentum=0, warmup=0, limit=0, spike=1.5))
    calm.train(seed, 0, 3)
    batch = toy_batch(seed, 3)
    batch["y"] *= 10.0
    with jax.set_mesh(calm.mesh):
        _, metrics = calm.step(calm.state, calm.put(batch))
    assert metrics["dense"] == 1


@seeds
def test_s17_a_frozen_variance_is_floored_and_frozen(seed):
    """Directions equal Adam's until the freeze; a weight that had hardly any gradient does not jump after it."""
    random = np.random.default_rng(seed)
    frozen: Any = scale_by_frozen_adam(0.9, 0.99, 1e-8, 20)
    adam: Any = optax.scale_by_adam(0.9, 0.99, 1e-8)
    loose: Any = scale_by_frozen_adam(0.9, 0.99, 1e-8, 20, floor=0.0)
    params = {"w": jnp.zeros((4, 8))}
    states: Any = [each.init(params) for each in (frozen, adam, loose)]
    for _ in range(20):
        g = random.normal(size=(4, 8)).astype(np.float32)
        g[2, 3] *= 1e-6
        directions = []
        for i, each in enumerate((frozen, adam, loose)):
            direction, states[i] = each.update({"w": jnp.asarray(g)}, states[i], params)
            directions.append(np.asarray(direction["w"]))
        mask = np.ones((4, 8), bool)
        mask[2, 3] = False
        np.testing.assert_allclose(directions[0][mask], directions[1][mask], rtol=1e-5)
    variance = np.asarray(states[0].nu["w"])
    assert variance.min() >= 0.0099 * variance.mean()
    momentum = {"w": jnp.full((4, 8), 0.1)}
    direction, after = frozen.update(momentum, states[0], params)
    jumps, _ = loose.update(momentum, states[2], params)
    np.testing.assert_array_equal(after.nu["w"], variance)
    np.testing.assert_array_equal(after.mu["w"], momentum["w"])
    assert float(direction["w"][2, 3]) < 20.0 * float(np.median(direction["w"]))
    assert float(jumps["w"][2, 3]) > 1e4 * float(np.median(jumps["w"]))

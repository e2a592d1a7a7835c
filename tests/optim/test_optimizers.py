"""Each optimizer: what it does to a weight, what it keeps, and that no mesh changes either."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.checkpoints.store import Store
from jaxlm.collectives.sync import Implicit
from jaxlm.config import Run
from jaxlm.data.config import DataConfig
from jaxlm.model.transformer import Execution, Transformer
from jaxlm.optim import Adafactor, AdamW, Lion, Muon
from jaxlm.optim.weights import hidden_sides
from jaxlm.session import Session, numerics, workload_of
from jaxlm.sharding import batch_sharding, make_mesh
from jaxlm.trainer.config import TrainConfig
from jaxlm.trainer.state import TrainState, init_state
from jaxlm.tree import named_axes, named_leaves
from planners.prices.memory import footprint
from tests.laws.work import GPT2, LENGTH, LLAMA, SEQUENCES, make_plan, packed_batch, weights

KINDS = {
    "adamw": AdamW(first_moment="bfloat16"),
    "lion": Lion(),
    "adafactor": Adafactor(b1=0.9, first_moment="float32", parameter_scale=True, lr=1e-2, factor_from=16),
    "muon": Muon(adam_lr=2e-3),
}
STEPS = 3
ONE, SHARDED, OTHER = {}, {"fsdp": 4, "tensor": 2}, {"data": 2, "tensor": 4}


def session(kind: str, mesh: dict[str, int]) -> Session:
    run = Run(
        model=LLAMA,
        data=DataConfig(sequence=LENGTH),
        optim=dataclasses.replace(KINDS[kind], warmup=0),
        train=TrainConfig(steps=10, batch=SEQUENCES),
    )
    made = Session(run, LLAMA, numerics(LLAMA, "cpu"), make_plan(mesh, LLAMA))
    made.__dict__["mesh"] = make_mesh(made.plan, jax.devices()[: made.plan.devices])
    return made


@functools.cache
def trained(kind: str, sharded: bool) -> TrainState[Any]:
    """The training state after a few updates by the same gradients, on one device or on eight."""
    made = session(kind, SHARDED if sharded else ONE)

    def update(state: TrainState[Any], gradients: Any) -> TrainState[Any]:
        updates, opt = made.tx.update(gradients, state.opt, state.model)
        return dataclasses.replace(state, opt=opt, model=optax.apply_updates(state.model, updates))

    with jax.set_mesh(made.mesh):
        like = jax.tree.structure(made.abstract.model)
        model = jax.tree.unflatten(like, list(weights(LLAMA).values()))
        state = jax.device_put(init_state(model, made.tx, Implicit()), made.places)
        jitted = jax.jit(update, out_shardings=made.places)
        for seed in range(STEPS):
            state = jitted(state, jax.device_put(random_like(state.model, seed), made.places.model))
    return state


def random_like(tree, seed: int = 1):
    """Standard normal values from a seed, the same on every mesh."""
    leaves, structure = jax.tree.flatten(tree)
    random = np.random.default_rng(seed)
    return jax.tree.unflatten(structure, [random.standard_normal(leaf.shape, np.float32) for leaf in leaves])


@pytest.mark.parametrize("kind", KINDS)
def test_updates_on_a_mesh_equal_updates_on_one_device(kind):
    got, want = (
        {name: np.asarray(leaf) for name, leaf in named_leaves(trained(kind, sharded).model).items()}
        for sharded in (True, False)
    )
    for name, expected in want.items():
        assert np.linalg.norm(expected - weights(LLAMA)[name]) > 0, f"{name} was never updated"
        difference = np.linalg.norm(got[name] - expected)
        assert difference <= 1e-5 * np.linalg.norm(expected), f"{name}: {difference / np.linalg.norm(expected):.1e}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_whole_training_steps_on_a_mesh_equal_those_on_one_device(kind):
    models = []
    for mesh in (ONE, SHARDED):
        made = session(kind, mesh)
        with jax.set_mesh(made.mesh):
            place = batch_sharding(made.mesh)
            batches = [
                {name: jax.device_put(value[None], place) for name, value in packed_batch(seed).items()}
                for seed in range(STEPS)
            ]
            state, step = made.fresh(), made.compile_step(batches[0])
            for batch in batches:
                state, metrics = step(state, batch)
                assert bool(metrics["finite"])
            models.append({name: np.asarray(leaf) for name, leaf in named_leaves(state.model).items()})
    for name, expected in models[0].items():
        difference = np.linalg.norm(models[1][name] - expected)
        assert difference <= 1e-5 * np.linalg.norm(expected), f"{name}: {difference / np.linalg.norm(expected):.1e}"


@pytest.mark.parametrize("kind", KINDS)
def test_state_moves_between_meshes_through_a_checkpoint_bit_for_bit(kind, tmp_path):
    saved = trained(kind, True)
    with Store(tmp_path) as store:
        store.save(STEPS, named_leaves(saved), {}, blocking=True)
        made = session(kind, OTHER)
        with jax.set_mesh(made.mesh):
            restored, _ = made.restore(store, STEPS)
    assert jax.tree.structure(restored) == jax.tree.structure(made.abstract)
    want = named_leaves(saved)
    for name, leaf in named_leaves(restored).items():
        assert leaf.dtype == want[name].dtype
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(want[name]), err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_planner_knows_the_bytes_of_the_state_on_each_device(kind):
    made = session(kind, SHARDED)
    step = footprint(workload_of(made.run, LLAMA, made.how), made.plan.mesh)
    held = sum(
        leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(trained(kind, True).opt) if leaf.shape
    )
    assert step.optimizer == held


def test_optimizers_differ_in_memory_as_they_should():
    def bytes_of(kind: str) -> float:
        made = session(kind, ONE)
        return sum(t.size * jnp.dtype(t.dtype).itemsize for t in workload_of(made.run, LLAMA, made.how).optimizer)

    whole = sum(value.nbytes for value in weights(LLAMA).values())
    assert bytes_of("lion") == whole
    assert bytes_of("adamw") == 1.5 * whole, "one moment in bfloat16"
    assert whole < bytes_of("muon") < 1.5 * whole, "one moment of matrices, two of the table and the gains"
    assert bytes_of("adafactor") < 1.2 * whole, "a first moment, then rows and columns"


@functools.cache
def model() -> Any:
    like = jax.eval_shape(lambda: Transformer(LLAMA, Execution(), key=jax.random.key(0)))
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(value) for value in weights(LLAMA).values()])


def one_update(optimizer) -> dict[str, np.ndarray]:
    tx = dataclasses.replace(optimizer, warmup=0, schedule="constant", clip_norm=0.0).build(10)
    gradients = jax.tree.map(jnp.asarray, random_like(model()))
    updates, _ = jax.jit(lambda g, p: tx.update(g, tx.init(p), p))(gradients, model())
    return {name: np.asarray(leaf) for name, leaf in named_leaves(updates).items()}


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_hidden_matrices_are_those_between_embedding_and_head(config):
    abstract = jax.eval_shape(lambda: Transformer(config, Execution(), key=jax.random.key(0)))
    found = hidden_sides(abstract)
    feed_forward = ["blocks/mlp/gate"] if config is LLAMA else []
    attention = [f"blocks/attn/{name}" for name in "kqvo"]
    assert sorted(found) == sorted([*attention, "blocks/mlp/up", "blocks/mlp/down", *feed_forward])
    axes = named_axes(abstract)
    for name, (rows, columns) in found.items():
        narrow = rows if name.endswith(("/o", "/down")) else columns
        other = columns if narrow is rows else rows
        assert [axes[name][i] for i in other] == ["embed"]
        assert sorted([0, *rows, *columns]) == list(range(len(axes[name]))), "every axis but layers has a side"


@pytest.mark.parametrize(("scale", "of_q", "of_down"), [("rms", 0.2 * 32**0.5, 0.2 * 8.0), ("spectral", 1.0, 1.0)])
def test_muon_orthogonalises_each_layers_matrix_with_all_its_heads(scale, of_q, of_down):
    updates = one_update(Muon(lr=1.0, adam_lr=1e-3, weight_decay=0.0, scale=scale))
    for name, shape, factor in (("attn/q", (32, 32), of_q), ("mlp/down", (64, 32), of_down)):
        for layer in updates[f"blocks/{name}"]:
            values = np.linalg.svd(layer.reshape(shape), compute_uv=False) / factor
            # The quintic of Muon ends near 1, not at 1; a square random matrix has a few tiny values it cannot lift.
            assert values.max() < 1.3
            assert np.median(values) > 0.6
    adam = one_update(AdamW(lr=1e-3, weight_decay=0.0))
    others = [name for name in adam if not name.startswith(("blocks/attn/", "blocks/mlp/"))]
    assert {"table", "norm/gain", "blocks/attn_norm/gain"} <= set(others)
    for name in others:
        np.testing.assert_allclose(updates[name], adam[name], rtol=1e-5, err_msg=name)


def test_muon_decays_each_group_by_its_own_rate():
    with_decay, without = (one_update(Muon(lr=0.5, adam_lr=0.25, weight_decay=w)) for w in (0.1, 0.0))
    for name, rate in (("blocks/attn/q", 0.5), ("table", 0.25), ("norm/gain", 0.0)):
        np.testing.assert_allclose(with_decay[name] - without[name], -0.1 * rate * weights(LLAMA)[name], atol=1e-5)


def test_lion_moves_every_weight_by_the_rate():
    for name, update in one_update(Lion(lr=3e-4, weight_decay=0.0)).items():
        np.testing.assert_allclose(np.abs(update), 3e-4, rtol=1e-6, err_msg=name)


def test_adafactor_treats_each_layer_as_optax_treats_one_matrix():
    ours = one_update(Adafactor(lr=1e-2, weight_decay=0.0, factor_from=16))
    gradients = named_leaves(random_like(model()))
    tx: Any = optax.adafactor(1e-2, min_dim_size_to_factor=16, multiply_by_parameter_scale=False)
    for name, shape in (("blocks/attn/q", (32, 32)), ("blocks/attn/k", (32, 16)), ("blocks/mlp/down", (64, 32))):
        for layer, gradient in enumerate(np.asarray(gradients[name])):
            matrix = jnp.asarray(gradient.reshape(shape))
            want, _ = tx.update(matrix, tx.init(matrix), matrix)
            np.testing.assert_allclose(ours[name][layer].reshape(shape), want, rtol=1e-5, atol=1e-8)
    state = named_leaves(Adafactor(factor_from=16).build(1).init(model()))
    assert state["factored/v_row/blocks/attn/q"].shape == (3, 32)
    assert state["factored/v/blocks/attn/q"].shape == (1,), "no full second moment"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Muon(scale="spectral"), "optim.scale=spectral needs optim.adam_lr"),
        (lambda: Muon(iterations=0), "optim.iterations=0 must be positive"),
        (lambda: Muon(adam_lr=-1.0), "optim.adam_lr=-1.0 must be positive"),
        (lambda: Muon(momentum=1.0), r"optim.momentum=1.0 must be in \[0, 1\)"),
        (lambda: Lion(b2=1.5), r"optim.b2=1.5 must be in \[0, 1\)"),
        (lambda: Adafactor(decay_rate=0.0), r"optim.decay_rate=0.0 must be in \(0, 1\]"),
        (lambda: Adafactor(factor_from=1), "optim.factor_from=1 must be at least 2"),
        (lambda: AdamW(decay=0.0), r"optim.decay=0.0 must be in \(0, 1\]"),
        (lambda: AdamW(lr=0.0), "optim.lr=0.0 must be positive"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()

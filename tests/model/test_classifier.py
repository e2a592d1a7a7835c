"""Bidirectional models and classifiers: what they see, what they learn, and that a plan changes neither."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.checkpoints.store import Store
from jaxlm.collectives.sync import Implicit
from jaxlm.config import Run
from jaxlm.decode import ConfigError, decode
from jaxlm.model.attention_map import trunk_with_maps
from jaxlm.model.classifier import Classifier, pooling_weights
from jaxlm.model.classify import classify
from jaxlm.model.config import ModelConfig
from jaxlm.model.describe import describe
from jaxlm.model.generate import Sampling, generate
from jaxlm.model.loss import next_token
from jaxlm.model.transfer import trunk_tensors, with_trunk
from jaxlm.model.transformer import Execution, Transformer
from jaxlm.sharding import Rules, batch_sharding, make_mesh, replicated, shardings
from jaxlm.trainer.loop import train
from jaxlm.trainer.state import init_state
from jaxlm.trainer.step import make_train_step
from jaxlm.tree import from_named, named_leaves
from planners.layout import rules
from planners.machines.presets import local_cluster
from planners.plan import MESH_AXES, Batch, Plan, Segment
from planners.search import plan as search_plan
from tests.laws.work import assert_same

ENCODER = ModelConfig(layers=2, embed=32, heads=4, kv_heads=2, mlp=48, vocab=50, vocab_multiple=16, causal=False)
BERT = dataclasses.replace(
    ENCODER, norm="layer", position="learned", positions=16, activation="gelu", bias=True, kv_heads=0
)
ROWS, T, CLASSES = 16, 12, 3


def make(config: ModelConfig = ENCODER, execution: Execution = Execution(), **how: Any) -> Classifier:
    """A classifier whose gains are not 1 and biases not 0, so that each matters."""
    like = jax.eval_shape(lambda: Classifier(config, execution, classes=CLASSES, key=jax.random.key(0), **how))
    random = np.random.default_rng(5)
    noisy = {
        name: jnp.asarray((name.endswith("gain")) + 0.3 * random.standard_normal(leaf.shape), jnp.float32)
        for name, leaf in named_leaves(like).items()
    }
    return from_named(like, noisy)


def documents(seed: int = 0, rows: int = ROWS) -> dict[str, np.ndarray]:
    """One document of 3 to T tokens per row, then padding; its label is told by one token at a random place in it."""
    random = np.random.default_rng(seed)
    shape = (rows, T)
    tokens = random.integers(CLASSES, 50, shape).astype(np.int32)
    segments, labels = np.zeros(shape, np.int32), random.integers(0, CLASSES, rows).astype(np.int32)
    for row in range(rows):
        length = int(random.integers(3, T + 1))
        segments[row, :length] = 1
        tokens[row, random.integers(0, length)] = labels[row]
    return {
        "tokens": tokens,
        "positions": np.broadcast_to(np.arange(T, dtype=np.int32), shape) * segments,
        "segments": segments,
        "labels": labels,
        "weights": random.integers(1, 3, rows).astype(np.float32),
    }


def arrays(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    return {name: jnp.asarray(value) for name, value in batch.items()}


@jax.jit
def trunk_output(model: Any, batch: dict[str, Any]) -> jax.Array:
    return model(batch["tokens"], batch["positions"], batch["segments"])


loss_and_sums = jax.jit(classify)


def test_a_bidirectional_model_sees_both_ways_but_no_padding_and_no_other_document():
    model, batch = make(), documents()
    batch["segments"][0] = [1] * 4 + [2] * 5 + [0] * 3
    before = trunk_output(model, batch)
    touched = {}
    for place in (2, 6, 10):  # in the first document, in the second, in the padding
        other = batch | {"tokens": batch["tokens"].copy()}
        other["tokens"][0, place] += 1
        touched[place] = np.flatnonzero(np.abs(trunk_output(model, other)[0] - before[0]).max(-1) > 1e-6).tolist()
    assert touched == {2: [0, 1, 2, 3], 6: [4, 5, 6, 7, 8], 10: [9, 10, 11]}


def test_a_causal_model_sees_only_what_came_before():
    model, batch = make(dataclasses.replace(ENCODER, causal=True)), documents()
    batch["segments"][0] = 1
    other = batch | {"tokens": batch["tokens"].copy()}
    other["tokens"][0, 5] += 1
    difference = np.abs(trunk_output(model, other)[0] - trunk_output(model, batch)[0]).max(-1)
    assert np.flatnonzero(difference > 1e-6).tolist() == list(range(5, T))


def test_language_modelling_and_generation_refuse_a_bidirectional_model():
    model = jax.eval_shape(lambda: Transformer(ENCODER, Execution(), key=jax.random.key(0)))
    with pytest.raises(ValueError, match=r"model\.causal=false.*sees the token that it should predict"):
        next_token(model, arrays(documents()))
    with pytest.raises(ConfigError, match=r"model\.causal=false.*cannot generate"):
        next(generate(model, [1], tokens=2, sampling=Sampling()))
    with pytest.raises(ConfigError, match=r"model\.causal=false.*set model\.causal to true"):
        decode({"model": {"causal": False}}, Run)


def test_pooling_weighs_the_document_and_never_its_padding():
    segments = jnp.asarray([[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    third = 1 / 3
    assert pooling_weights(segments, "mean") == pytest.approx(
        np.array([[third, third, third, 0], [0, 0.5, 0.5, 0], [0] * 4])
    )
    assert pooling_weights(segments, "first").tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0] * 4]
    assert pooling_weights(segments, "last").tolist() == [[0, 0, 1, 0], [0, 0, 1, 0], [0] * 4]


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_a_representation_depends_on_no_padding(pooling):
    model, batch = make(pooling=pooling), documents()
    represent = jax.jit(lambda m, b: m.represent(b["tokens"], b["positions"], b["segments"]))
    spoilt = batch | {"tokens": np.where(batch["segments"] == 0, 49 - batch["tokens"], batch["tokens"])}
    np.testing.assert_allclose(represent(model, spoilt), represent(model, batch), atol=1e-6)
    x_BTD, real = trunk_output(model, batch), batch["segments"] > 0
    rows = zip(np.asarray(x_BTD), real, strict=True)
    want = [{"mean": x[r].mean(0), "first": x[r][0], "last": x[r][-1]}[pooling] for x, r in rows]
    np.testing.assert_allclose(represent(model, batch), np.stack(want), atol=1e-5)


def test_the_loss_is_the_cross_entropy_of_the_weighted_rows():
    model, batch = make(), documents()
    total, sums = loss_and_sums(model, batch)
    pooled = jax.jit(model.represent)(batch["tokens"], batch["positions"], batch["segments"])
    logits = np.asarray(pooled, np.float64) @ np.asarray(model.label[...]) + np.asarray(model.label_bias[...])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    of_label = log_p[np.arange(ROWS), batch["labels"]]
    assert total == pytest.approx(-(of_label * batch["weights"]).sum(), rel=1e-5)
    assert sums["nll"] == total
    assert sums["weight"] == batch["weights"].sum()
    assert sums["correct"] == ((logits.argmax(-1) == batch["labels"]) * batch["weights"]).sum()


def test_what_makes_no_classifier_is_refused():
    with pytest.raises(ValueError, match="classes=1 must be at least 2"):
        Classifier(ENCODER, Execution(), classes=1, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"rate=1\.0 must be in \[0, 1\)"):
        Classifier(ENCODER, Execution(), classes=2, rate=1.0, key=jax.random.key(0))
    causal = dataclasses.replace(ENCODER, causal=True)
    with pytest.raises(ValueError, match=r"pooling=first needs model\.causal=false"):
        Classifier(causal, Execution(), classes=2, pooling="first", key=jax.random.key(0))


def test_dropout_of_the_representation_needs_a_key():
    model, batch = make(rate=0.5), documents()
    loss = lambda key: loss_and_sums(model, batch, key)[0]
    assert loss(jax.random.key(0)) == loss(jax.random.key(0)) != loss(jax.random.key(1))
    assert loss_and_sums(model, batch)[0] == loss_and_sums(make(), batch)[0]


# A plan changes nothing.


def make_plan(sizes: dict[str, int], accumulation: int = 1, remat: tuple[Segment, ...] = ()) -> Plan:
    mesh = dict.fromkeys(MESH_AXES, 1) | sizes
    return Plan(
        mesh=mesh,
        rules=rules(mesh),
        batch=Batch(sequences=ROWS, microbatch=ROWS // accumulation, accumulation=accumulation),
        remat=remat or (Segment(layers=2),),
    )


def loss_and_gradients(plan: Plan, config: ModelConfig) -> tuple[float, dict[str, np.ndarray]]:
    execution = Execution(shard=Rules(plan.rules.activations, rest=plan.rules.parameters), remat=plan.remat)
    with jax.set_mesh(make_mesh(plan, jax.devices()[: plan.devices])):
        mesh = jax.sharding.get_mesh()
        model = make(config, execution)
        places = shardings(model, mesh, plan.rules.parameters)
        model = jax.device_put(model, places)
        pieces = on_mesh(documents(1), plan, mesh)

        def gradients(model: Classifier, pieces: dict[str, jax.Array]):
            synced = Implicit().gradients(classify, model, pieces, jax.random.key(0), (), jnp.zeros((), jnp.int32))
            return synced.sums["loss"] / synced.sums["weight"], synced.gradients

        loss, grads = jax.jit(gradients, out_shardings=(None, places))(model, pieces)
    return float(loss), {name: np.asarray(leaf) for name, leaf in named_leaves(grads).items()}


def on_mesh(batch: dict[str, np.ndarray], plan: Plan, mesh: Any) -> dict[str, jax.Array]:
    cut = (plan.batch.accumulation, plan.batch.microbatch)
    place = batch_sharding(mesh)
    return {name: jax.device_put(value.reshape(*cut, *value.shape[1:]), place) for name, value in batch.items()}


@pytest.mark.parametrize("config", [ENCODER, pytest.param(BERT, marks=pytest.mark.slow)], ids=["llama", "bert"])
def test_loss_and_gradients_of_a_classifier_equal_one_device(config):
    plan = make_plan({"data": 2, "fsdp": 2, "tensor": 2}, 2, (Segment(layers=2, save=()),))
    assert_same(loss_and_gradients(plan, config), loss_and_gradients(make_plan({}), config))


def test_the_trainer_trains_a_classifier_on_eight_devices_without_knowing_it():
    plan, tx, sync = make_plan({"data": 4, "fsdp": 2}), optax.adam(1e-2), Implicit()
    execution = Execution(shard=Rules(plan.rules.activations, rest=plan.rules.parameters))

    def fresh() -> Any:
        return init_state(Classifier(ENCODER, execution, classes=CLASSES, key=jax.random.key(0)), tx, sync)

    with jax.set_mesh(make_mesh(plan)):
        mesh = jax.sharding.get_mesh()
        places = shardings(jax.eval_shape(fresh), mesh, plan.rules.parameters)
        state = jax.jit(fresh, out_shardings=places)()
        step = jax.jit(make_train_step(classify, tx, sync), donate_argnums=0, out_shardings=(places, replicated(mesh)))

        seen = []
        outcome = train(
            state,
            step=step,
            batches=(on_mesh(documents(seed), plan, mesh) for seed in itertools.count()),  # each one new
            start=0,
            steps=60,
            tensors=list(named_leaves(state.model)),
            report=seen.append,
        )
    assert outcome.reason == "done"
    accuracy = [one.scalars["correct"] for one in seen]
    assert np.mean(accuracy[:4]) < 0.75
    assert np.mean(accuracy[-8:]) > 0.95


# Explanation: attention in the open, gradients with respect to embeddings and attention.


@pytest.mark.parametrize("config", [BERT, dataclasses.replace(ENCODER, causal=True)], ids=["bert", "causal"])
def test_the_trunk_in_the_open_gives_the_same_and_shows_its_attention(config):
    model, batch = make(config), documents()
    batch["segments"][0] = [1] * 4 + [2] * 5 + [0] * 3
    embedded = lambda m, b: trunk_with_maps(m, m.embed(b["tokens"], b["positions"]), b["positions"], b["segments"])
    out, maps = jax.jit(embedded)(model, batch)
    np.testing.assert_allclose(out, trunk_output(model, batch), rtol=1e-5, atol=1e-5)
    assert maps.shape == (2, ROWS, 4, T, T)
    np.testing.assert_allclose(maps.sum(-1), 1.0, rtol=1e-5)
    sees = batch["segments"][:, :, None] == batch["segments"][:, None, :]
    sees = np.tril(sees) if config.causal else sees
    assert np.all((np.asarray(maps) > 0) == sees[None, :, None])


def test_gradients_with_respect_to_embeddings_and_attention_are_those_of_a_small_step():
    model, batch = make(), arrays(documents(rows=2))

    def score(x_BTD: jax.Array, added: jax.Array) -> jax.Array:
        out, _ = trunk_with_maps(model, x_BTD, batch["positions"], batch["segments"], added)
        return model.classify(model.pool(out, batch["segments"]))[0, 1]

    x, none = model.embed(batch["tokens"], batch["positions"]), jnp.zeros((2, 2, 4, T, T))
    gradients = jax.jit(jax.grad(score, argnums=(0, 1)))(x, none)
    evaluate = jax.jit(score)
    for which, gradient in enumerate(gradients):
        direction = jax.random.normal(jax.random.key(which), gradient.shape)
        step = [1e-3 * direction if i == which else 0.0 for i in range(2)]
        more, less = (evaluate(x + sign * step[0], none + sign * step[1]) for sign in (1, -1))
        assert (more - less) / 2e-3 == pytest.approx(float(jnp.vdot(gradient, direction)), rel=2e-2)
    assert not np.any(gradients[0][1]), "the other row has no part in it"


# Starting from a language model.


def test_a_classifier_starts_from_the_checkpoint_of_a_language_model(tmp_path):
    config = dataclasses.replace(ENCODER, causal=True, tied=False)
    language = jax.jit(lambda: Transformer(config, Execution(), key=jax.random.key(7)))()
    state = {f"model/{name}": leaf for name, leaf in named_leaves(language).items()}
    fresh = make()
    like = {f"model/{name}": leaf for name, leaf in trunk_tensors(fresh).items()}
    with Store(tmp_path) as store:
        store.save(3, state, {}, blocking=True)
        saved, _ = store.restore(3, like, partial=True)
    started = named_leaves(with_trunk(fresh, {name.removeprefix("model/"): leaf for name, leaf in saved.items()}))
    trained = named_leaves(language)
    assert {name for name in started if name not in trained} == {"label", "label_bias"}
    for name, leaf in started.items():
        np.testing.assert_array_equal(leaf, trained[name] if name in trained else named_leaves(fresh)[name])


def test_weights_of_another_model_are_named():
    config = dataclasses.replace(ENCODER, mlp=40)
    small = jax.eval_shape(lambda: Transformer(config, Execution(), key=jax.random.key(0)))
    tensors = {name: leaf for name, leaf in named_leaves(small).items() if name != "norm/gain"}
    with pytest.raises(ValueError, match=r"norm/gain is missing; blocks/mlp/down has shape \(2, 40, 32\) instead of"):
        with_trunk(make(), tensors)


# Planning.


def test_attention_of_a_bidirectional_model_is_counted_in_full():
    how: Any = dict(batch=4, sequence=12, kernel="cudnn", dtype="bfloat16", packed=False)
    both = describe(ENCODER, optax.adam(1e-3), **how)
    causal = describe(dataclasses.replace(ENCODER, causal=True), optax.adam(1e-3), **how)
    assert both.step_flops(causal=True) == both.step_flops(causal=False) == causal.step_flops(causal=False)
    assert causal.step_flops(causal=True) < causal.step_flops(causal=False)


def test_a_classifier_describes_itself_and_can_be_planned():
    how: Any = dict(batch=16, sequence=T, kernel="xla", dtype="float32", packed=True)
    work = describe(ENCODER, optax.adam(1e-3), **how, classes=CLASSES)
    assert work.parameter_count == sum(leaf.size for leaf in named_leaves(make()).values())
    assert work.logits.shape == (1, CLASSES)
    assert work.head_flops * T == 2 * 32 * CLASSES
    plan = search_plan(work, local_cluster("cpu", 8, None, 1, 8), Run().plan)
    assert plan.devices == 8
    assert plan.compile.loss_chunks == 1

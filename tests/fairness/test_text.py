"""Debiasing a classifier of texts while it trains: gradients, bits, meshes, gaps."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.collectives.sync import Implicit
from jaxlm.config import Run
from jaxlm.data.config import DataConfig, TokenizerConfig
from jaxlm.data.feed import Feed
from jaxlm.data.labelled.corpus import LabelledCorpus, prepare_labelled
from jaxlm.data.labelled.loader import LabelledLoader
from jaxlm.decode import ConfigError, decode
from jaxlm.fairness.config import FairnessConfig
from jaxlm.fairness.stopping import Rule
from jaxlm.fairness.text import CELLS, Gaps, OpposedClassifier, opposed, raked
from jaxlm.fairness.turns import taking_turns
from jaxlm.model.classify import ClassifyConfig, classifying
from jaxlm.model.config import ModelConfig
from jaxlm.model.transformer import Execution
from jaxlm.sharding import Rules, batch_sharding, make_mesh, replicated, shardings
from jaxlm.task import model_of, objective_of
from jaxlm.trainer.state import init_state
from jaxlm.trainer.step import make_train_step
from jaxlm.tree import named_leaves
from planners.layout import rules
from planners.plan import MESH_AXES, Batch, Plan, Segment
from tests.compiling import as_shipped
from tests.labelled import tiny

CONFIG = ModelConfig(layers=1, embed=16, heads=2, mlp=32, vocab=320, causal=False, tied=False)
HOW = FairnessConfig(weight=0.7, hidden=(8, 4))
CLASSIFY = ClassifyConfig(word_dropout=0.0, dropout=0.0, smoothing=0.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> LabelledCorpus:
    folder = tiny.hatexplain(tmp_path_factory.mktemp("fair"))
    config = DataConfig(path=str(folder), sequence=8, mode="truncate", tokenizer=TokenizerConfig(vocab=320))
    return prepare_labelled("hatexplain", config, tuple(HOW.attribute))


def run(fairness: FairnessConfig | None) -> Run:
    data = DataConfig(sequence=8, mode="truncate", tokenizer=TokenizerConfig(vocab=320))
    return Run(data=data, model=CONFIG, classify=CLASSIFY, fairness=fairness)


def batch_of(corpus: LabelledCorpus, rows: int = 16) -> dict[str, jax.Array]:
    loader = LabelledLoader(corpus.split("train"), rows, 8)
    return {name: jnp.asarray(value) for name, value in loader.fetch(0).items()}


def test_the_reversed_objective_has_the_gradients_of_equation_14(corpus: LabelledCorpus):
    how, batch = HOW, batch_of(corpus)
    model = OpposedClassifier(CONFIG, Execution(), how, classes=3, pooling="mean", rate=0.0, key=jax.random.key(0))
    found: Any = jax.grad(lambda m: opposed(CLASSIFY, how)(m, batch)[0])(model)
    task: Any = jax.grad(lambda m: classifying(CLASSIFY)(m, batch)[0])(model)
    # Without the reversal: weight -1 turns it off, so that the loss is L_task + L_adv in all weights.
    plain = dataclasses.replace(how)
    object.__setattr__(plain, "weight", -1.0)
    both: Any = jax.grad(lambda m: opposed(CLASSIFY, plain)(m, batch)[0])(model)
    named = [named_leaves(tree) for tree in (found, task, both)]
    for name, value in named[0].items():
        adversary = named[2][name] - named[1][name]
        if name.startswith("adversaries/"):
            assert np.allclose(value, adversary, atol=1e-5), name
        else:
            assert np.allclose(value, named[1][name] - how.weight * adversary, atol=1e-4), name
    assert sum(float(jnp.abs(named[2][n] - named[1][n]).sum()) for n in named[0] if n.startswith("blocks")) > 0.1


def steps(run: Run, corpus: LabelledCorpus, devices: int, count: int = 3) -> tuple[dict[str, np.ndarray], list[Any]]:
    """Weights after a few steps on a mesh, and what the steps reported."""
    mesh_shape = dict.fromkeys(MESH_AXES, 1) | ({"fsdp": 4, "data": 2} if devices == 8 else {})
    batch = Batch(sequences=16, microbatch=16, accumulation=1)
    plan = Plan(mesh=mesh_shape, rules=rules(mesh_shape), batch=batch, remat=(Segment(layers=1),))
    mesh = make_mesh(plan, jax.devices()[:devices])
    execution = Execution(shard=Rules(plan.rules.activations, rest=plan.rules.parameters))
    tx = run.optim.build(count)
    with jax.set_mesh(mesh):
        make = lambda key: init_state(model_of(run, CONFIG, execution, key), tx, Implicit())
        places = shardings(jax.eval_shape(make, jax.random.key(0)), mesh, plan.rules.parameters)
        state = jax.jit(make, out_shardings=places)(jax.random.key(0))
        feed = Feed(LabelledLoader(corpus.split("train"), 16, 8), batch_sharding(mesh), 1, 16, packed=True)
        made, out = make_train_step(objective_of(run), tx, Implicit()), (places, replicated(mesh))
        step = jax.jit(made, out_shardings=out, compiler_options=as_shipped())
        reports = []
        for index in range(count):
            state, metrics = step(state, feed[index])
            reports.append(jax.device_get(metrics))
        return {name: np.asarray(leaf) for name, leaf in named_leaves(state.model).items()}, reports


def test_weight_zero_is_the_base_model_bit_for_bit_and_reports_gaps(corpus: LabelledCorpus):
    base, _ = steps(run(None), corpus, 1)
    zero, reports = steps(run(dataclasses.replace(HOW, weight=0.0)), corpus, 1)
    assert base.keys() == zero.keys()
    assert all(np.array_equal(base[name], zero[name]) for name in base)
    gaps, found = Gaps(HOW), {}
    for report in reports:
        found = gaps(report[CELLS] * report["weight"])
    assert 0.0 <= found["gender_parity_gap"] <= 1.0


def test_eight_devices_debias_as_one_does(corpus: LabelledCorpus):
    one, _ = steps(run(HOW), corpus, 1)
    eight, _ = steps(run(HOW), corpus, 8)
    flat = lambda named: np.concatenate([named[name].reshape(-1) for name in sorted(named)])
    assert any(name.startswith("adversaries/") for name in one)
    assert np.linalg.norm(flat(one) - flat(eight)) / np.linalg.norm(flat(one)) <= 1e-5


def test_gaps_are_those_of_the_scores():
    how = FairnessConfig(attribute={"religion": "equalized_odds"}, decay=0.0)
    counts = np.array([[6.0, 8.0, 0.0], [7.0, 9.0, 2.0]])  # muslim, jewish, christian; label 0, then 1
    sums = counts * np.array([[0.2, 0.5, 0.0], [0.6, 0.9, 0.1]])
    found = Gaps(how)(np.concatenate([counts.reshape(-1), sums.reshape(-1)]))
    assert found["religion_fpr_gap"] == pytest.approx(0.3)
    assert found["religion_tpr_gap"] == pytest.approx(0.3), "a group of two rows is left out"


def test_raked_groups_have_the_share_of_all():
    random = np.random.default_rng(0)
    groups = (random.random((4000, 3)) < 0.2).astype(np.float32)
    harmful = random.random(4000) < 0.4 + 0.2 * groups[:, 0] - 0.2 * groups[:, 1]
    weights = raked(harmful, groups)
    for member in groups.T > 0:
        assert np.average(harmful[member], weights=weights[member]) == pytest.approx(harmful.mean(), abs=0.02)
    assert weights.mean() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attribute": {"colour": "equalized_odds"}}, "no word list; there are gender"),
        ({"attribute": {"gender": "fairly"}}, "gender"),
        ({"attribute": {}}, "name at least one"),
        ({"weight": -1.0}, "must not be negative"),
        ({"mode": "blocks"}, "needs fairness.turn and iterations"),
    ],
)
def test_bad_fairness_is_named(change: dict[str, Any], said: str):
    raw = {"data": {"mode": "truncate"}, "classify": {}, "model": {"causal": False}, "fairness": change}
    with pytest.raises(ConfigError, match=said):
        decode(raw, Run)
    with pytest.raises(ConfigError, match="add a section classify"):
        decode({"fairness": {}}, Run)


def test_hidden_words_are_those_of_the_lists(corpus: LabelledCorpus):
    split = corpus.split("train")
    batch = split.arrays(np.arange(8), 8)
    for row, post in enumerate(split.posts[:8]):
        expected = [word in ("women", "men", "muslim", "jewish", "black", "white", "immigrant") for word in post.words]
        assert batch["identity"][row][: len(post.words)].astype(bool).tolist() == expected[:8]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "plays"),
    [("per_epoch", [True, True, False, False, False, True]), ("blocks", [False, False, False, True, True, True])],
)
def test_who_rests_keeps_weights_and_moments(corpus: LabelledCorpus, mode: str, plays: list[bool]):
    how = FairnessConfig(weight=0.5, hidden=(8, 4), mode=mode, turn=3, iterations=2)
    opposing = run(how)
    model = model_of(opposing, CONFIG, Execution(), jax.random.key(0))
    tx, sync = taking_turns(opposing.optim.build(6), how), Implicit()
    state = init_state(model, tx, sync)
    step = jax.jit(make_train_step(objective_of(opposing), tx, sync))
    batch = {name: value[None] for name, value in batch_of(corpus).items()}
    for theirs in plays:
        before, state = named_leaves(state), step(state, batch)[0]
        moved = {name for name, value in named_leaves(state).items() if not np.array_equal(before[name], value)}
        parts = {name for name in moved if before[name].ndim and name.startswith(("model/", "opt/"))}
        assert any(name.startswith("opt/") for name in parts)
        assert parts
        assert all(("adversaries/" in name) == theirs for name in parts)


def test_modes_and_stops_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="per_step, per_epoch or blocks"):
        FairnessConfig(mode="never")
    with pytest.raises(ValueError, match="needs fairness"):
        FairnessConfig(mode="blocks")
    with pytest.raises(ValueError, match="needs an adversary to watch"):
        FairnessConfig(stop=Rule(early=True))

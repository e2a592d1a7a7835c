"""Attention of the final layer under eq. 15: what psi can change, what it cannot, and what ties."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.explain import relevance
from jaxlm.explain.relevance import PSI, Batch, final, normalised, paper, paper_literal, shuffled, vanilla
from jaxlm.explain.subject import NOTHING
from jaxlm.model.attention_map import trunk_with_maps
from jaxlm.model.classifier import Classifier
from jaxlm.model.transformer import Execution
from jaxlm.sharding import Rules, batch_sharding, make_mesh, shardings
from planners.layout import rules
from tests.explain.tiny import ENCODER, fresh, one_batch
from tests.laws.work import make_plan


@cache
def maps_of(causal: bool) -> tuple[np.ndarray, np.ndarray]:
    """The final maps of a model that sees both ways or not, and who sees whom."""
    open_layer = lambda model, batch: (lambda found: (found.maps, found.sees))(final(model, batch))
    return jax.tree.map(np.asarray, jax.jit(open_layer)(fresh(DECODER if causal else ENCODER), one_batch()))


DECODER = dataclasses.replace(ENCODER, causal=True)
ANY = jnp.full(8, NOTHING, jnp.int32)


@pytest.mark.parametrize("config", [ENCODER, DECODER], ids=["encoder", "decoder"])
def test_the_maps_of_the_final_layer_are_those_of_the_trunk(config):
    model, batch = fresh(config), one_batch()
    maps, _ = maps_of(config.causal)
    x = model.embed(batch["tokens"], batch["positions"])
    _, all_maps = jax.jit(trunk_with_maps)(model, x, batch["positions"], batch["segments"])
    np.testing.assert_allclose(maps, all_maps[-1], rtol=2e-5, atol=1e-7)


def rising(alpha: jax.Array) -> jax.Array:
    """Some increasing psi that nobody chose."""
    return jnp.log1p(30 * alpha) + alpha**3


@pytest.mark.parametrize("psi", [*PSI.values(), rising], ids=[*PSI, "rising"])
@pytest.mark.parametrize("config", [ENCODER, DECODER], ids=["encoder", "decoder"])
def test_monotone_psi_equals_vanilla(config, psi):
    """In every row of attention, of every head, an increasing psi selects the tokens that plain attention selects."""
    batch, (plain, seen) = one_batch(), maps_of(config.causal)
    r = np.asarray(normalised(jnp.asarray(plain), jnp.asarray(seen), psi))
    visible = np.broadcast_to(seen, plain.shape)
    assert np.all((r > 0) == visible)
    rows = np.argwhere(np.asarray(batch["segments"]) > 0)
    compared = 0
    for b, t in rows:
        for n in range(config.heads):
            keys = visible[b, n, t]
            values, alpha = r[b, n, t][keys], plain[b, n, t][keys]
            gaps = np.diff(np.sort(alpha))
            if len(alpha) > 1 and gaps.min() > 1e-6:  # what float32 can tell apart after psi and a softmax
                np.testing.assert_array_equal(np.argsort(values), np.argsort(alpha))
                compared += 1
    assert compared > 100


def test_identity_psi_flattens_to_a_ratio_of_e_at_most():
    maps, seen = maps_of(False)
    r = np.where(seen, normalised(jnp.asarray(maps), jnp.asarray(seen), relevance.identity), np.nan)
    ratio = np.nanmax(r, -1) / np.nanmin(r, -1)
    assert np.nanmax(ratio) <= np.e + 1e-5


@pytest.mark.parametrize("psi", PSI)
def test_algorithm_3_as_printed_gives_every_token_the_same_score(psi):
    batch = one_batch()
    scores = np.asarray(jax.jit(lambda m, b: paper_literal(m, b, ANY, psi=psi))(fresh(), batch))
    np.testing.assert_allclose(scores, np.asarray(batch["segments"]) > 0, atol=1e-6)


def test_attention_received_adds_up_to_heads_times_queries_and_leaves_padding_out():
    model, batch = fresh(), one_batch()
    real = np.asarray(batch["segments"]) > 0
    for score in (vanilla, paper):
        scores = np.asarray(jax.jit(score)(model, batch, ANY))
        np.testing.assert_allclose(scores.sum(1), ENCODER.heads * real.sum(1), rtol=1e-5)
        assert not scores[~real].any()
    dealt = np.asarray(jax.jit(shuffled)(model, batch, ANY))
    plain = np.asarray(jax.jit(vanilla)(model, batch, ANY))
    assert not dealt[~real].any()
    np.testing.assert_allclose(np.sort(dealt, 1), np.sort(plain, 1), rtol=1e-6)
    assert not np.allclose(dealt, plain)


def both(model: Classifier, batch: Batch, classes_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    return paper(model, batch, classes_B), relevance.last_layer_gradient(model, batch, classes_B)[3]


def test_relevance_over_eight_devices_equals_one():
    batch = {name: value for name, value in one_batch().items() if name != "owners"}
    plan = make_plan({"data": 2, "fsdp": 2, "tensor": 2}, ENCODER)
    alone = jax.jit(both)(fresh(), batch, ANY)
    with jax.set_mesh(make_mesh(plan)):
        mesh = jax.sharding.get_mesh()
        split = Execution(shard=Rules(rules(plan.mesh).activations))
        model = fresh(execution=split)
        model = jax.device_put(model, shardings(jax.eval_shape(lambda: model), mesh, plan.rules.parameters))
        placed = jax.device_put(batch, batch_sharding(mesh, dims=2))
        together = jax.jit(both)(model, placed, ANY)
    for ours, theirs in zip(together, alone, strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-4, atol=1e-6)

"""Integrated gradients against captum, on a twin of the model with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.explain import gradients, relevance
from jaxlm.explain.relevance import nothing
from jaxlm.model.classifier import Classifier
from tests.explain.tiny import examples, subject
from tests.explain.twin import log_odds, weights_of

STEPS = 64


def row() -> dict[str, jax.Array]:
    """One text without padding."""
    ids, _ = subject().encoder.encode(examples(4, 31)[1].words)
    positions = np.arange(len(ids), dtype=np.int32)
    batch = {"tokens": ids, "positions": positions, "segments": np.ones(len(ids), np.int32)}
    return {name: jnp.asarray(value)[None] for name, value in batch.items()}


def ends(model: Classifier) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the text, and of nothing."""
    batch = row()
    return np.asarray(model.embed(batch["tokens"], batch["positions"])), np.asarray(nothing(model, batch, 0))


def test_the_twin_is_one():
    model = subject().model
    x, none = ends(model)
    weights = {name: jnp.asarray(value) for name, value in weights_of(model).items()}
    members = jnp.asarray([[0.0, 1.0]])
    ours = jax.jit(lambda x: relevance.of_embeddings(model, x, row(), members))
    theirs = jax.jit(lambda x: log_odds(jnp, jnp.asarray, model, weights, x))
    for at in (x, none, 0.3 * x + none):
        np.testing.assert_allclose(theirs(at), ours(at), rtol=1e-4, atol=1e-4)


def test_integrated_gradients_equal_captums():
    torch = pytest.importorskip("torch", reason="torch is not installed: captum has nothing to run on")
    captum = pytest.importorskip("captum.attr", reason="captum is not installed")
    model = subject().model
    x, none = (torch.tensor(a) for a in ends(model))
    weights = {name: torch.tensor(value) for name, value in weights_of(model).items()}
    explain = captum.IntegratedGradients(lambda a: log_odds(torch, torch.tensor, model, weights, a))
    theirs = explain.attribute(x, baselines=none, n_steps=STEPS, method="riemann_middle").sum(-1).numpy()
    ours = jax.jit(lambda m, b: gradients.integrated(m, b, jnp.ones(1, jnp.int32), steps=STEPS, mask=0))(model, row())
    np.testing.assert_allclose(ours, theirs, atol=1e-4)

"""Gradients against sums and another library, walks against three tokens by hand, controls against chance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.explain import gradients
from jaxlm.explain.fidelity import agreement
from jaxlm.explain.methods import METHODS, grounded, randomised
from jaxlm.explain.walks import flow, rolled_out, with_residual
from tests.explain.tiny import TROUBLE, examples, subject

TEXTS = [e for e in examples(48, 11) if e.label == 1]
WORDS = [e.words for e in TEXTS]
GOLD = [e.rationale for e in TEXTS if e.rationale is not None]
FAST = [name for name, method in METHODS.items() if not method.slow]


def test_integrated_gradients_add_up_to_the_difference_they_explain():
    given = {name: jnp.asarray(batch) for name, batch in next(iter(subject().encoder.batches(WORDS, 16)))[1].items()}
    classes = jnp.ones(16, jnp.int32)

    def missing(model, batch):
        scores = gradients.integrated(model, batch, classes, steps=64, mask=0)
        return gradients.completeness(model, batch, classes, scores, mask=0), jnp.sum(jnp.abs(scores), axis=-1)

    missed, size = jax.jit(missing)(subject().model, given)
    assert np.all(np.abs(missed) < 0.02 * np.asarray(size) + 1e-3)


# Three tokens, two layers, no padding.
FIRST = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
SECOND = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])


def test_rollout_by_hand():
    mixed = with_residual(jnp.asarray(np.stack([FIRST, SECOND])[:, None]))
    # Half identity: layer 1 rows (1,0,0) (1/4,3/4,0) (0,1/4,3/4); layer 2 rows (1,0,0) (0,1,0) (1/4,0,3/4).
    want = [[1, 0, 0], [1 / 4, 3 / 4, 0], [1 / 4, 3 / 16, 9 / 16]]
    np.testing.assert_allclose(rolled_out(mixed)[0], want, atol=1e-6)


def test_flow_by_hand():
    mixed = np.asarray(with_residual(jnp.asarray(np.stack([FIRST, SECOND])[:, None])))[:, 0]
    # From the third position: to the first, 1/4 through itself (min(1/4, 1)); to the second, min(3/4, 1/4) through the
    # third; to the third, min(3/4, 3/4).
    np.testing.assert_allclose(flow(mixed, np.array([0.0, 0.0, 1.0])), [1 / 4, 1 / 4, 3 / 4], atol=1e-5)


@pytest.mark.parametrize("name", ["ours, not smoothed", "integrated gradients"])
def test_a_method_that_knows_the_class_finds_the_words_that_make_it(name):
    scores = METHODS[name](subject(), WORDS, np.ones(len(WORDS), int))
    assert agreement(scores, GOLD).auprc > 0.9


def test_randomised_weights_drop_to_the_random_floor():
    classes = np.ones(len(WORDS), int)
    value = lambda name: agreement(METHODS[name](subject(), WORDS, classes), GOLD)
    random, ours = value("random"), value("ours, not smoothed")
    drawn = [agreement(grounded(randomised(subject(), seed), WORDS, classes), GOLD) for seed in range(4)]
    mean = float(np.mean([d.auprc for d in drawn]))
    assert abs(mean - random.auprc) < 0.2
    assert ours.auprc > mean + 0.25


@pytest.mark.slow
def test_every_fast_method_gives_one_finite_score_per_word():
    for name in FAST:
        scores = METHODS[name](subject(), WORDS[:16], np.ones(16, int))
        assert [len(s) for s in scores] == [len(w) for w in WORDS[:16]], name
        assert all(np.isfinite(s).all() for s in scores), name


def test_flow_as_a_method():
    found = METHODS["flow"](subject(), WORDS[:2], np.ones(2, int))
    assert [len(s) for s in found] == [len(w) for w in WORDS[:2]]
    assert all((s > 0).all() for s in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LIME", "SHAP", "Anchors"])
def test_the_libraries_find_the_words_of_a_short_text(name):
    pytest.importorskip("lime", reason="the extra `explain` is not installed")
    words = ("garden", "river", "smoke", "lunch", "paper")
    (scores,) = METHODS[name](subject(), [words], np.ones(1, int))
    assert int(np.argmax(scores)) == words.index("smoke")


def test_the_class_explained_decides_the_sign():
    toward, against = (METHODS["integrated gradients"](subject(), WORDS, np.full(len(WORDS), c)) for c in (1, 0))
    trouble = [np.array([w in TROUBLE for w in words]) for words in WORDS]
    assert np.mean([s[t].mean() for s, t in zip(toward, trouble, strict=True)]) > 0
    assert np.mean([s[t].mean() for s, t in zip(against, trouble, strict=True)]) < 0

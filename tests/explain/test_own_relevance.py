"""Our own relevance: what its short cuts leave out, and what they must not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.explained_slow import kept_scores
from jaxlm.explain import gradients, psi, relevance
from jaxlm.explain.fidelity import agreement
from jaxlm.explain.methods import METHODS, Method
from jaxlm.explain.subject import NOTHING
from jaxlm.tree import from_named, named_leaves
from tests.explain.tiny import examples, fresh, one_batch, subject


def test_the_last_layers_attention_has_the_gradient_that_autodiff_gives_it():
    """The map's gradient is put together from those of the context and the values."""
    model, batch, classes = subject().model, one_batch(), jnp.ones(8, jnp.int32)

    def long_way(model, batch):
        _, maps, _, dmaps = relevance.last_layer_gradient(model, batch, classes)
        return jnp.sum(maps * jax.nn.relu(dmaps), axis=(1, 2)) * (batch["segments"] > 0)

    def short_way(model, batch):
        return relevance.grounded_last(model, batch, classes, along=False)

    np.testing.assert_allclose(jax.jit(short_way)(model, batch), jax.jit(long_way)(model, batch), rtol=1e-4, atol=1e-6)


def test_nothing_asks_for_the_class_that_the_whole_text_gets():
    texts = [e.words for e in examples(16, 4)]
    asked = METHODS["ours, not smoothed"](subject(), texts, subject().predict(texts))
    settled = METHODS["ours, not smoothed"](subject(), texts, np.full(len(texts), NOTHING))
    for one, other in zip(asked, settled, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_slow_scores_are_kept_text_by_text(tmp_path):
    texts, asked = [e.words for e in examples(4, 6)], []

    def call(subject, texts, classes):
        asked.append(texts[0])
        return [np.arange(float(len(words))) for words in texts]

    method, classes = Method("a slow one", "baseline", call, slow=True), np.ones(4, int)
    first, _ = kept_scores(method, subject(), texts[:2], classes[:2], tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text() + '{"text": "cut o')
    again, seconds = kept_scores(method, subject(), texts, classes, tmp_path)
    assert asked == texts
    assert seconds > 0
    np.testing.assert_array_equal(again[1], first[1])
    assert kept_scores(method, subject(), texts, classes, tmp_path)[0][3].tolist() == again[3].tolist()


@pytest.mark.slow
def test_a_psi_learned_from_marks_finds_them_in_other_texts():
    train, valid, test = ([e for e in examples(n, seed) if e.label] for n, seed in ((160, 7), (60, 8), (60, 9)))
    found = psi.learn(subject(), train, valid, epochs=3, members=2)
    scores = found.scores([e.words for e in test])
    gold = [e.rationale for e in test if e.rationale is not None]
    assert agreement(scores, gold).auprc > 0.95


@pytest.mark.slow
def test_a_bag_beside_the_encoder_is_explained_with_it():
    """Its words' weights are in the scores: integrated gradients still add up, and ours differ by what each adds."""
    named, random = named_leaves(fresh(wide=64)), np.random.default_rng(2)
    draw = lambda name, leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype) if "wide" in name else leaf
    drawn = {name: draw(name, leaf) for name, leaf in named.items()}
    model, batch, classes = from_named(fresh(wide=64), drawn), one_batch(), jnp.ones(8, jnp.int32)

    def asked(model, batch):
        scores = gradients.integrated(model, batch, classes, steps=32, mask=0)
        missed = gradients.completeness(model, batch, classes, scores, mask=0)
        found = relevance.every_layer(model, batch, classes)
        added = model.wide.by_word(batch["tokens"], batch["segments"])
        return missed, jnp.sum(jnp.abs(scores), axis=-1), found.dheard, added

    missed, size, dheard, added = jax.jit(asked)(model, batch)
    assert np.all(np.abs(missed) < 0.02 * np.asarray(size) + 1e-3)
    # Two classes: the log odds are the difference of the logits, of which the bag is half.
    np.testing.assert_allclose(dheard, (added[..., 1] - added[..., 0]) / 2, rtol=1e-4, atol=1e-6)

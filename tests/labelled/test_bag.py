"""The bag of words beside an encoder, and how unknown words are read."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse import csr_array

from jaxlm.config import Run
from jaxlm.data.config import DataConfig, TokenizerConfig
from jaxlm.data.labelled.bag import Bag, bucket, fit, learn_bag
from jaxlm.data.labelled.corpus import prepare_labelled
from jaxlm.data.labelled.loader import LabelledLoader
from jaxlm.data.labelled.spelling import Spelling
from jaxlm.data.labelled.vocabulary import UNKNOWN, Vocabulary
from jaxlm.model.classify import ClassifyConfig, classifying, rows
from jaxlm.model.config import ModelConfig
from jaxlm.model.transformer import Execution
from jaxlm.task import begins_with, model_of
from tests.labelled import tiny

CONFIG = ModelConfig(layers=1, embed=16, heads=2, mlp=32, vocab=320, causal=False, tied=False)


def test_unknown_words_are_read_as_those_spelled_like_them(tmp_path: Path):
    spelling = Spelling(["lovely", "silly", "nasty"], 0.4)
    assert spelling.nearest("lovelyy") == 0
    assert spelling.nearest("sillyness") == 1
    assert spelling.nearest("cat") is None
    learned = Vocabulary.learn([["lovely", "lovely", "the", "the"]], 16, spelling=0.4)
    assert learned.encode(["lovely", "lovelyy", "cat"]).tolist() == [4 - 1, 3, UNKNOWN]
    (tmp_path / "words.json").write_bytes(learned.model)
    again = Vocabulary.load(tmp_path / "words.json")
    assert again.digest == learned.digest
    assert again.encode(["lovelyy"]).tolist() == [3]
    plain = Vocabulary.learn([["lovely", "lovely"]], 16)
    assert plain.encode(["lovelyy"]).tolist() == [UNKNOWN]
    assert b"spelling" not in plain.model


def test_a_fit_is_that_of_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model")
    random = np.random.default_rng(0)
    x = (random.random((300, 12)) < 0.3).astype(float)
    labels = (x @ random.standard_normal((12, 3)) + random.gumbel(size=(300, 3))).argmax(1)
    weights = random.random(300) + 0.5
    theirs = linear.LogisticRegression(C=0.7, tol=1e-8, max_iter=1000).fit(x, labels, weights)
    ours = fit(csr_array(x), labels, 3, 0.7, weights)
    assert np.allclose(ours[:-1], theirs.coef_.T, atol=2e-3)
    chances = jax.nn.softmax(jnp.asarray(x @ ours[:-1] + ours[-1]))
    assert np.allclose(chances, theirs.predict_proba(x), atol=1e-3)


def test_words_spelled_alike_share_what_is_learned():
    words = ("<pad>", "<unknown>", "<mask>", "lovely", "lovelyy", "nasty", "nastyy", "tree")
    ids = [np.array([3]), np.array([3, 7]), np.array([5]), np.array([5, 7])] * 10
    labels, weights = np.array([0, 0, 1, 1] * 10), np.ones(40)
    kind: Any = {"vocab": 16, "buckets": 8, "classes": 2, "strength": 1.0, "words": words}
    plain, shared = (learn_bag(ids, labels, weights, spelled=s, **kind) for s in (0.0, 0.3))
    assert not np.any(plain.words[[4, 6]])
    assert shared.words[4, 0] > shared.words[4, 1] + 0.1
    assert shared.words[6, 1] > shared.words[6, 0] + 0.1
    assert not np.any(shared.words[:3])


def test_buckets_are_the_same_on_the_device():
    random = np.random.default_rng(0)
    left, right = (random.integers(0, 50_000, 1000).astype(np.uint32) for _ in range(2))
    ours = bucket(left, right, 4096)
    assert np.array_equal(ours, bucket(jnp.asarray(left), jnp.asarray(right), 4096))
    assert len(np.unique(ours)) > 800


@pytest.mark.slow
def test_the_bag_speaks_as_it_was_fitted_and_learns_nothing(tmp_path: Path):
    folder = tiny.hatexplain(tmp_path)
    data = DataConfig(path=str(folder), sequence=12, mode="truncate", tokenizer=TokenizerConfig(vocab=320))
    how = ClassifyConfig(wide=512, strength=1.0, vectors=False, word_dropout=0.0)
    corpus = prepare_labelled("hatexplain", data)
    run = Run(data=data, model=CONFIG, classify=how)
    plain: Any = model_of(dataclasses.replace(run, classify=dataclasses.replace(how, wide=0)), CONFIG, Execution(),
                     jax.random.key(0))  # fmt: skip
    model: Any = begins_with(run, corpus)(model_of(run, CONFIG, Execution(), jax.random.key(0)))
    batch = {n: jnp.asarray(v) for n, v in LabelledLoader(corpus.split("train"), 32, 12).fetch(0).items()}
    training = corpus.split("train")
    bag: Bag = learn_bag(training.ids, training.labels, training.weights, vocab=CONFIG.padded_vocab, buckets=512,
                         classes=3, strength=1.0)  # fmt: skip
    tokens, segments = np.asarray(batch["tokens"]), np.asarray(batch["segments"])
    by_hand = []
    for mine, real in zip(tokens, segments, strict=True):
        ids = mine[real > 0].astype(np.uint32)
        pairs = np.unique(bucket(ids[:-1], ids[1:], 512))
        by_hand.append(bag.words[np.unique(ids)].sum(0) + bag.pairs[pairs].sum(0) + bag.bias)
    alone = rows(plain, batch).logits
    assert np.allclose(rows(model, batch).logits, (alone + np.array(by_hand)) / 2, atol=1e-4)
    assert np.allclose(
        model.logits(batch["tokens"], batch["positions"], batch["segments"]), rows(model, batch).logits, atol=1e-5
    )
    assert np.mean(np.argmax(by_hand, 1) == np.asarray(batch["labels"])) > 0.9
    # It is no part of the loss, and no gradient reaches it.
    assert np.allclose(rows(model, batch).loss, rows(plain, batch).loss, atol=1e-5)
    gradient = jax.grad(lambda m: classifying(how)(m, batch)[0])(model)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient.wide))
    assert np.any(gradient.label[...])
    # Told apart as if all classes were equally common: every row loses the same, more where a class is common.
    balanced = begins_with(dataclasses.replace(run, classify=dataclasses.replace(how, balanced=1.0)), corpus)
    evened: Any = balanced(model_of(run, CONFIG, Execution(), jax.random.key(0)))
    shares = np.bincount(training.labels, minlength=3) / len(training)
    assert np.allclose(rows(evened, batch).logits, np.asarray(rows(model, batch).logits) - np.log(shares), atol=1e-4)


def test_classes_are_evened_out_in_the_bag_alone():
    with pytest.raises(ValueError, match=r"balanced=1.0 needs a bag of words.*classify.wide"):
        ClassifyConfig(balanced=1.0)

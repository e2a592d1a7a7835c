"""What a run learns: a language, or to classify. All that depends on it and on the configuration alone is here."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.collectives.sync import Objective
from jaxlm.config import Run
from jaxlm.data.corpus import Corpus
from jaxlm.data.labelled.bag import learn_bag
from jaxlm.data.labelled.corpus import CLASSES, LabelledCorpus, LabelledSplit, prepare_labelled
from jaxlm.data.labelled.lists import LISTS
from jaxlm.data.labelled.loader import LabelledLoader
from jaxlm.data.labelled.vocabulary import Vocabulary
from jaxlm.data.loader import Loader
from jaxlm.data.prepare import prepare
from jaxlm.data.progress import Progress
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.fairness.text import OpposedClassifier, opposed, raked
from jaxlm.model.classifier import Classifier
from jaxlm.model.classify import ClassifyConfig, classifying
from jaxlm.model.config import ModelConfig
from jaxlm.model.loss import next_token
from jaxlm.model.transformer import Execution, Transformer, Trunk

AnyCorpus: TypeAlias = Corpus | LabelledCorpus
AnyLoader: TypeAlias = Loader | LabelledLoader


def classes_of(run: Run) -> int | None:
    """How many classes are told apart; None where a language is learned."""
    return None if run.classify is None else len(CLASSES[run.classify.dataset])


def attributes_of(run: Run) -> tuple[str, ...]:
    """The attributes whose groups the rows of a run carry."""
    return () if run.fairness is None else tuple(run.fairness.attribute)


def model_of(run: Run, config: ModelConfig, execution: Execution, key: jax.Array) -> Trunk:
    """A model with random weights."""
    how = run.classify
    if how is None:
        return Transformer(config, execution, key=key)
    head: Any = {"classes": len(CLASSES[how.dataset]), "pooling": how.pooling, "rate": how.dropout}
    head |= {"wide": how.wide, "key": key}
    if run.fairness is not None and run.fairness.weight:
        return OpposedClassifier(config, execution, run.fairness, **head)
    return Classifier(config, execution, **head)


def objective_of(run: Run) -> Objective:
    if run.classify is None:
        return next_token
    return classifying(run.classify) if run.fairness is None else opposed(run.classify, run.fairness)


def tokenizer_at(run: Run, path: Any) -> Tokenizer | Vocabulary:
    """The tokenizer in a file of a run's directory."""
    return Tokenizer.load(path) if run.classify is None else Vocabulary.load(path)


def corpus_of(run: Run, progress: Progress) -> AnyCorpus:
    """The prepared data of a run. Raises DataError."""
    if run.classify is None:
        return prepare(run.data, progress)
    path = run.data.tokenizer.path
    vocabulary = None if path is None else Vocabulary.load(path)
    how = run.classify
    corpus = prepare_labelled(how.dataset, run.data, attributes_of(run), vocabulary, how.spelling)
    if run.fairness is not None and run.fairness.reweight:
        training = corpus.split("train")
        corpus.reweigh(raked(training.labels > 0, training.groups))
    return corpus


def loader_of(run: Run, corpus: AnyCorpus) -> AnyLoader:
    """The training batches of a run by step."""
    if isinstance(corpus, LabelledCorpus):
        return LabelledLoader(corpus.split("train"), run.train.batch, run.data.sequence, run.seed)
    return Loader(corpus.training(run.data), run.train.batch, run.data.sequence, run.data.mode, run.seed)


def batch_kinds(run: Run, rows: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of each array of a batch of `rows`."""
    shape = (*rows, run.data.sequence)
    if run.classify is None:
        kinds: dict[str, Any] = {"tokens": jnp.int32, "targets": jnp.int32, "positions": jnp.int32}
        kinds |= {"segments": jnp.int32} if run.apart else {}
        return {name: (shape, kind) for name, kind in (kinds | {"weights": jnp.float32}).items()}
    groups = sum(len(LISTS[attribute]) for attribute in attributes_of(run))
    return {
        **{name: (shape, jnp.int32) for name in ("tokens", "segments", "positions")},
        "rationales": (shape, jnp.float32),
        "labels": (rows, jnp.int32),
        "weights": (rows, jnp.float32),
        "groups": ((*rows, groups), jnp.float32),
        "group_weights": ((*rows, groups), jnp.float32),
        "identity": (shape, jnp.float32),
    }


def begins_with(run: Run, corpus: AnyCorpus) -> Callable[[Any], Any]:
    """What a new model takes over from its data before the first step: word vectors and a bag of words, where they are
    asked for."""
    how = run.classify
    if how is None or not isinstance(corpus, LabelledCorpus):
        return lambda model: model

    def begun(model: Classifier) -> Classifier:
        model = with_vectors(model, corpus) if how.vectors else model
        return with_bag(model, corpus.split("train"), how, corpus.tokenizer.words) if how.wide else model

    return begun


def with_bag(model: Classifier, rows: LabelledSplit, how: ClassifyConfig, words: Sequence[str]) -> Classifier:
    """The model whose bag is fitted to these rows and their weights, less what `balanced` takes from common classes;
    `words` are those of the vocabulary, by id."""
    wide = model.wide
    assert wide is not None
    (vocab, classes), buckets = wide.word_bias.shape, wide.pair_bias.shape[0]
    bag = learn_bag(
        rows.ids,
        rows.labels,
        rows.weights,
        vocab=vocab,
        buckets=buckets,
        classes=classes,
        strength=how.strength,
        words=words,
        spelled=how.spelled,
    )
    shares = np.bincount(rows.labels, rows.weights, minlength=classes) / rows.weights.sum()
    # The joined logits hold half of the bag's.
    bias = bag.bias - 2.0 * how.balanced * np.log(np.maximum(shares, 1.0 / len(rows))).astype(np.float32)
    pairs = ((wide.word_bias, bag.words), (wide.pair_bias, bag.pairs), (wide.bias, bias))
    return _replaced(model, [(old[...], jax.device_put(jnp.asarray(new), old[...].sharding)) for old, new in pairs])


def with_vectors(model: Classifier, corpus: LabelledCorpus) -> Classifier:
    """The model whose embeddings are word vectors of the corpus, of the size that random ones have; words without a
    vector keep their random one."""
    table = model.table[...]
    vectors = corpus.vectors(model.config.embed)
    known = jax.device_put(jnp.asarray(vectors), table.sharding) if vectors.shape == table.shape else None
    if known is None:
        padded = jnp.zeros(table.shape, table.dtype).at[: vectors.shape[0]].set(vectors)
        known = jax.device_put(padded, table.sharding)
    seen = jnp.any(known != 0, axis=1, keepdims=True)
    size = jnp.sqrt(jnp.mean(jnp.square(table)))
    return _replaced(model, [(table, jax.device_put(jnp.where(seen, known * size, table), table.sharding))])


def _replaced(model: Classifier, pairs: list[tuple[jax.Array, jax.Array]]) -> Classifier:
    """The model with some of its tensors, found by identity, replaced."""
    leaves, tree = jax.tree.flatten(model)
    for old, new in pairs:
        leaves[next(i for i, leaf in enumerate(leaves) if leaf is old)] = new
    return jax.tree.unflatten(tree, leaves)

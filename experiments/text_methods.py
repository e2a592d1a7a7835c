"""The ways of debiasing a text classifier that table 5 compares, each trained by the trainer's own step."""

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.collectives.sync import Implicit
from jaxlm.config import Run
from jaxlm.data.labelled.corpus import LabelledCorpus, LabelledSplit
from jaxlm.data.labelled.loader import LabelledLoader
from jaxlm.data.labelled.vocabulary import MASK
from jaxlm.fairness import leace
from jaxlm.fairness.config import FairnessConfig
from jaxlm.fairness.reweighting import cells, sampling_weights
from jaxlm.fairness.text import raked
from jaxlm.model.classifier import Classifier
from jaxlm.model.classify import ClassifyConfig, rows
from jaxlm.model.transformer import Execution
from jaxlm.task import model_of, objective_of, with_bag, with_vectors
from jaxlm.trainer.state import init_state
from jaxlm.trainer.step import make_train_step


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way of debiasing.

    Attributes:
        weight: lambda of the adversary.
        reweight: rows weigh so that every group has the share of harmful rows that all have.
        dropout: of the representation; null leaves that of the run.
        mask: words of the lists are hidden with this probability while training; 1 hides them when judged too.
        dro: group DRO over cells of group and label, its weights changed after each epoch by this rate.
        erase: LEACE on the representation, of a model trained without debiasing.
        tune: values of `weight`, `mask` or `dro` of which validation chooses, by name.
    """

    weight: float = 0.0
    reweight: bool = False
    dropout: float | None = None
    mask: float = 0.0
    dro: float = 0.0
    erase: bool = False
    tune: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)

    def candidates(self) -> list["Method"]:
        """The method with each combination of its values."""
        values = itertools.product(*self.tune.values())
        return [dataclasses.replace(self, tune={}, **dict(zip(self.tune, each, strict=True))) for each in values]


class Learner:
    """Trains and applies one method; `programs` holds what is compiled, and bags that are fitted, for all learners that
    share it."""

    def __init__(self, run: Run, method: Method, epochs: float, programs: dict[Any, Any]):
        how = FairnessConfig(
            attribute=(run.fairness or FairnessConfig()).attribute,
            weight=method.weight,
            mask_identity=method.mask if method.mask < 1.0 else 0.0,
        )
        assert run.classify is not None
        dropout = run.classify.dropout if method.dropout is None else method.dropout
        classify = dataclasses.replace(run.classify, dropout=dropout)
        self.run = dataclasses.replace(run, fairness=how, classify=classify)
        self.method, self.epochs, self.programs = method, epochs, programs

    def fit(self, corpus: LabelledCorpus, seed: int) -> Any:
        """A model trained on the training rows of a corpus."""
        run = self.run
        split = self.hidden(corpus.split("train"))
        if self.method.reweight:
            split = dataclasses.replace(split, weights=raked(split.labels > 0, split.groups))
        config = dataclasses.replace(run.model, vocab=corpus.tokenizer.vocab, positions=run.data.sequence)
        model: Any = with_vectors(cast(Classifier, model_of(run, config, Execution(), jax.random.key(seed))), corpus)
        if run.classify is not None and run.classify.wide:
            model = self.bagged(model, split, run.classify, corpus.tokenizer.words)
        per_epoch = len(split) // run.train.batch
        steps = round(self.epochs * per_epoch)
        tx, sync = run.optim.build(steps), Implicit()
        state = init_state(model, tx, sync)
        program = (steps, repr(run.fairness), repr(run.classify))
        if program not in self.programs:
            self.programs[program] = jax.jit(
                make_train_step(objective_of(run), tx, sync, seed=run.seed), donate_argnums=0
            )
        loader, q = LabelledLoader(split, run.train.batch, run.data.sequence, seed), None
        for step in range(steps):
            if self.method.dro and step and step % per_epoch == 0:
                weights, q = self._dro(state.model, corpus, split, q)
                split = dataclasses.replace(split, weights=weights)
                loader = LabelledLoader(split, run.train.batch, run.data.sequence, seed)
            batch = {name: jnp.asarray(value)[None] for name, value in loader.fetch(step).items()}
            state = self.programs[program](state, batch)[0]
        assert bool(state.finite)
        return state.model

    def bagged(self, model: Any, split: LabelledSplit, how: ClassifyConfig, words: Sequence[str]) -> Any:
        """The model with its bag, which is fitted once for all methods that read the same rows by the same weights."""
        about = (how.wide, how.strength, how.spelled, how.balanced)
        read = hashlib.sha256(repr(about).encode())
        for part in (*split.ids, split.labels, split.weights):
            read.update(np.int64(len(part)).tobytes() + np.ascontiguousarray(part).tobytes())
        key = "bag", read.hexdigest()
        if key not in self.programs:
            self.programs[key] = jax.device_get(with_bag(model, split, how, words).wide)
        model.wide = jax.tree.map(jnp.array, self.programs[key])
        return model

    def hidden(self, split: LabelledSplit) -> LabelledSplit:
        """The rows as the method reads them."""
        if self.method.mask < 1.0:
            return split
        return dataclasses.replace(
            split, ids=tuple(np.where(split.identity[i], MASK, i).astype(np.int32) for i in split.ids)
        )

    def _dro(
        self, model: Any, corpus: LabelledCorpus, split: LabelledSplit, q: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The next weights of the rows, mean 1, and q of the cells: a row is in the cell of its first group."""
        first = np.where(split.groups.any(1), split.groups.argmax(1) + 1, 0)
        cell = cells((split.labels > 0).astype(np.int64), [first])
        chances = predict(model, split, self.run.data.sequence)[1]
        losses = -np.log(np.maximum(chances[np.arange(len(split)), split.labels], 1e-9))
        mean = np.bincount(cell, losses) / np.bincount(cell)
        share = np.bincount(cell) / len(cell)
        grown = (share if q is None else q) * np.exp(self.method.dro * mean)
        q = np.asarray(grown / grown.sum())
        weights = np.clip(q[cell] * sampling_weights(cell) * len(np.unique(cell)) * len(cell), 0.1, 10.0)
        return (weights / weights.mean()).astype(np.float32), q

    def scores(self, model: Any, corpus: LabelledCorpus, splits: Sequence[LabelledSplit]) -> list[np.ndarray]:
        """Probabilities [N, C] of the rows of each split; LEACE is fitted on the training rows."""
        sequence = self.run.data.sequence
        if not self.method.erase:
            return [predict(model, self.hidden(split), sequence)[1] for split in splits]
        training = corpus.split("train")
        eraser = leace.fit(predict(model, training, sequence)[0], training.groups.astype(np.float64))
        found = []
        for split in splits:
            erased = eraser(predict(model, split, sequence)[0])
            alone = model.classify(jnp.asarray(erased, jnp.float32))
            arrays = split.arrays(np.arange(len(split)), sequence)
            logits = model.joined(alone, jnp.asarray(arrays["tokens"]), jnp.asarray(arrays["segments"]))
            found.append(np.asarray(jax.nn.softmax(logits), np.float64))
        return found


@jax.jit
def _forward(model: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    found = rows(model, batch)
    return found.pooled, jax.nn.softmax(found.logits, axis=-1)


def predict(model: Any, split: LabelledSplit, sequence: int, batch: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Representations [N, D] and probabilities [N, C] of each row, float64."""
    made = []
    for start in range(0, len(split), batch):
        numbers = np.arange(start, start + batch)
        arrays = split.arrays(np.where(numbers < len(split), numbers, -1), sequence)
        made.append(jax.device_get(_forward(model, {name: jnp.asarray(a) for name, a in arrays.items()})))
    pooled, chances = (np.concatenate(part).astype(np.float64)[: len(split)] for part in zip(*made, strict=True))
    return pooled, chances

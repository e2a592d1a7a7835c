"""Probabilities of rows by models that never saw them, kept fold by fold, so that a comparison cut short goes on.

Every (method, strength, seed, fold) is one small file named by a hash of all that it depends on: a file that is there
is not made again, and a change of the configuration makes new ones.
"""

import dataclasses
import hashlib
import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.text_methods import Learner, Method
from jaxlm.config import Run
from jaxlm.data.labelled.corpus import LabelledCorpus, split_of_posts
from jaxlm.data.labelled.rows import TEST, TRAIN, VALID, Labelled, Post
from jaxlm.decode import encode
from jaxlm.files import write_whole

Scores = dict[str, np.ndarray]
"""`rows`: int [n], and `chances` [n, C] of those rows; and [M, C] of every other set of texts by its name."""

TUNING = -1
"""The fold whose training rows are those of the split train, and whose rows to score are those of valid."""


class Store:
    """Trains a method on the rows outside a fold and scores those in it, unless that lies in `folder` already."""

    def __init__(
        self, folder: Path, run: Run, epochs: float, data: Labelled, others: Mapping[str, Sequence[Post]], folds: int
    ):
        self.folder, self.run, self.epochs, self.data, self.others = folder, run, epochs, data, others
        self.folds = folds
        content = [(p.id, p.split, p.label, p.words) for posts in (data.posts, *others.values()) for p in posts]
        self.digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        self.programs: dict[Any, Any] = {}
        self._corpora: dict[tuple[int, int], LabelledCorpus] = {}
        self._plain: dict[tuple[int, int], Any] = {}

    def path(self, method: Method, seed: int, fold: int) -> Path:
        """Where the scores of one model lie."""
        about = [encode(self.run), encode(method), self.epochs, self.digest, self.folds, seed, fold]
        name = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]
        return self.folder / f"{name}.npz"

    def __call__(self, name: str, method: Method, seed: int, fold: int) -> Scores:
        path = self.path(method, seed, fold)
        if path.exists():
            with np.load(path) as file:
                return {key: file[key] for key in file.files}
        began = time.monotonic()
        corpus, places = self._corpus(seed, fold)
        learner = Learner(self.run, method, self.epochs, self.programs)
        plain = method in (Method(), Method(erase=True))
        at = (seed, fold)
        if not plain or at not in self._plain:
            model = learner.fit(corpus, seed * self.folds + max(fold, 0))
            self._plain |= {at: model} if plain else {}
        else:
            model = self._plain[at]
        attributes = tuple(self.run.fairness.attribute) if self.run.fairness else ()
        splits = [corpus.split(TEST)] + [
            split_of_posts(TEST, other, corpus.tokenizer, self.run.data.sequence, attributes)
            for other in self.others.values()
        ]
        made = learner.scores(model, corpus, splits)
        found = {"rows": places, "chances": made[0]} | dict(zip(self.others, made[1:], strict=True))
        self.folder.mkdir(parents=True, exist_ok=True)
        held, arrays = io.BytesIO(), dict[str, Any](found)
        np.savez_compressed(held, **arrays)
        write_whole(path, held.getvalue())
        print(f"seed {seed}, fold {fold + 1}/{self.folds}, {name}: {time.monotonic() - began:.0f} s", flush=True)
        return found

    def _corpus(self, seed: int, fold: int) -> tuple[LabelledCorpus, np.ndarray]:
        """The rows with those to score as the split test, and their numbers; only the newest is kept."""
        posts = self.data.posts
        if fold == TUNING:
            inside = np.array([p.split == VALID for p in posts])
            counted = inside | np.array([p.split == TRAIN for p in posts])
        else:
            inside = np.random.default_rng(seed).permutation(len(posts)) % self.folds == fold
            counted = np.ones(len(posts), bool)
        if (seed, fold) not in self._corpora:
            self._plain = {}
            cast = [
                dataclasses.replace(p, split=TEST if inside[i] else TRAIN) for i, p in enumerate(posts) if counted[i]
            ]
            assert self.run.fairness is not None
            assert self.run.classify is not None
            rows = dataclasses.replace(self.data, posts=tuple(cast))
            attributes, spelling = tuple(self.run.fairness.attribute), self.run.classify.spelling
            self._corpora = {(seed, fold): LabelledCorpus(rows, self.run.data, attributes, spelling=spelling)}
        return self._corpora[seed, fold], np.flatnonzero(inside)

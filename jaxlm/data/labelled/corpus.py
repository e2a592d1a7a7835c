"""A labelled data set as arrays: tokens, labels, groups and what people marked, by split."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxlm.data.config import DataConfig, DataError
from jaxlm.data.labelled import civil_comments, hatexplain
from jaxlm.data.labelled.civil_comments import read_civil_comments
from jaxlm.data.labelled.hatexplain import read_hatexplain
from jaxlm.data.labelled.lists import LISTS, identity_terms, membership
from jaxlm.data.labelled.rows import TEST, TRAIN, VALID, Labelled, Post
from jaxlm.data.labelled.vectors import learn_vectors
from jaxlm.data.labelled.vocabulary import Vocabulary

Dataset = Literal["hatexplain", "civil_comments"]
READERS = {"hatexplain": read_hatexplain, "civil_comments": read_civil_comments}
CLASSES = {"hatexplain": hatexplain.CLASSES, "civil_comments": civil_comments.CLASSES}

NOBODY_ASKED = -1.0
"""What `rationales` hold where nobody was asked for a reason."""


@dataclass(frozen=True, slots=True)
class LabelledSplit:
    """The rows of one split.

    Attributes:
        name: train, valid or test.
        posts: as they were read.
        ids: tokens of each, int32, cut to the length of a row.
        labels: int32 [rows].
        weights: float32 [rows].
        groups: float32 [rows, groups], 1 where a row is in a group; no columns where none were asked for.
        identity: bool [vocab], the tokens that are words of a list.
    """

    name: str
    posts: tuple[Post, ...]
    ids: tuple[np.ndarray, ...]
    labels: np.ndarray
    weights: np.ndarray
    groups: np.ndarray
    identity: np.ndarray

    def __len__(self) -> int:
        return len(self.posts)

    def arrays(self, rows: Sequence[int] | np.ndarray, sequence: int) -> dict[str, np.ndarray]:
        """A batch of these rows; -1 stands for none, a row of padding that weighs nothing.

        tokens, positions, segments [B, T] int32 (segments 1 on words, 0 on padding), rationales [B, T] float32 (1
        where a person marked the word, 0 where not, NOBODY_ASKED else), identity [B, T] float32 (1 on words of a
        list), labels [B] int32, weights [B] float32, groups and group_weights [B, groups] float32 (under the latter
        those in a group and those not in it count for half of the split each).
        """
        count = len(rows)
        batch = {
            "tokens": np.zeros((count, sequence), np.int32),
            "segments": np.zeros((count, sequence), np.int32),
            "positions": np.broadcast_to(np.arange(sequence, dtype=np.int32), (count, sequence)).copy(),
            "rationales": np.full((count, sequence), NOBODY_ASKED, np.float32),
            "labels": np.zeros(count, np.int32),
            "weights": np.zeros(count, np.float32),
            "groups": np.zeros((count, self.groups.shape[1]), np.float32),
            "group_weights": np.zeros((count, self.groups.shape[1]), np.float32),
            "identity": np.zeros((count, sequence), np.float32),
        }
        inside = np.maximum(self.groups.sum(0), 1.0)
        outside = np.maximum(len(self) - inside, 1.0)
        for at, row in enumerate(int(row) for row in rows):
            if row < 0:
                continue
            ids = self.ids[row]
            batch["tokens"][at, : len(ids)] = ids
            batch["segments"][at, : len(ids)] = 1
            if (marked := self.posts[row].rationale) is not None:
                batch["rationales"][at, : len(ids)] = marked[: len(ids)]
            batch["identity"][at, : len(ids)] = self.identity[ids]
            batch["group_weights"][at] = np.where(self.groups[row] > 0, len(self) / inside, len(self) / outside) / 2
            for name, value in (("labels", self.labels), ("weights", self.weights), ("groups", self.groups)):
                batch[name][at] = value[row]
        return batch


@dataclass(frozen=True, slots=True)
class LabelledReport:
    """What was read, for a person."""

    said: tuple[str, ...]

    def lines(self) -> list[str]:
        return list(self.said)


class LabelledCorpus:
    """The splits of a labelled data set and its vocabulary; `digest` is the same wherever the same rows were read.

    Args:
        data: the rows.
        config: `sequence` is the length of a row, `tokenizer.vocab` the most words that are told apart.
        attributes: those whose word lists put rows into groups (see lists.py).
        vocabulary: an existing one; None learns it from the training rows.
        spelling: how alike an unknown word and a known one must be for a learned vocabulary to read the one as the
            other; 0: never (see spelling.py).
    """

    def __init__(
        self,
        data: Labelled,
        config: DataConfig,
        attributes: Sequence[str] = (),
        vocabulary: Vocabulary | None = None,
        spelling: float = 0.0,
    ):
        self.data, self.sequence, self.attributes = data, config.sequence, tuple(attributes)
        if vocabulary is None:
            texts = [post.words for post in data.split(TRAIN)]
            vocabulary = Vocabulary.learn(texts, config.tokenizer.vocab, spelling=spelling)
        self.tokenizer = vocabulary
        self.groups = tuple(f"{a}/{g}" for a in self.attributes for g in LISTS[a])
        self.splits = {name: self._split(name) for name in (TRAIN, VALID, TEST) if data.split(name)}
        self._vectors: dict[int, np.ndarray] = {}
        content = [(p.id, p.split, p.label, p.words, p.rationale) for p in data.posts]
        told = json.dumps([vocabulary.digest, self.attributes, content]).encode()
        self.digest = hashlib.sha256(told).hexdigest()
        self.report = LabelledReport(tuple(self._lines()))

    def _split(self, name: str) -> LabelledSplit:
        return split_of_posts(name, self.data.split(name), self.tokenizer, self.sequence, self.attributes)

    def split(self, name: str) -> LabelledSplit:
        if name not in self.splits:
            raise DataError(f"these rows have no {name} split: they have {', '.join(self.splits)}")
        return self.splits[name]

    def vectors(self, width: int) -> np.ndarray:
        """Word vectors of the training rows, float32 [vocab, width]; learned once (see vectors.py)."""
        if width not in self._vectors:
            self._vectors[width] = learn_vectors(list(self.split(TRAIN).ids), self.tokenizer.vocab, width)
        return self._vectors[width]

    def reweigh(self, weights: np.ndarray) -> None:
        """Gives the training rows these weights, float32 [rows]."""
        self.splits[TRAIN] = dataclasses.replace(self.split(TRAIN), weights=weights)

    @property
    def held_out(self) -> LabelledSplit:
        """What to choose by while training: the split `valid`, else `test`."""
        found = self.splits.get(VALID) or self.splits.get(TEST)
        if found is None:
            raise DataError("nothing is held out: these rows have neither a valid nor a test split")
        return found

    def _lines(self) -> list[str]:
        data, counts = self.data, {}
        for name, split in self.splits.items():
            shares = [f"{np.mean(split.labels == k):.1%} {label}" for k, label in enumerate(data.classes)]
            counts[name] = f"{name}: {len(split):,} rows, {', '.join(shares)}"
        unknown = np.mean(np.concatenate([ids for split in self.splits.values() for ids in split.ids]) == 1)
        cut = sum(len(post.words) > self.sequence for post in data.posts)
        lines = [f"{data.name}, licence {data.licence}", *counts.values()]
        lines.append(f"{len(self.tokenizer.words):,} words are told apart; {unknown:.1%} of all words are unknown")
        if cut:
            lines.append(f"longer than data.sequence={self.sequence} and cut: {cut:,} rows")
        lines += [f"left out, {why}: {count:,} rows" for why, count in data.left_out.items() if count]
        return lines


def split_of_posts(
    name: str, posts: Sequence[Post], vocabulary: Vocabulary, sequence: int, attributes: Sequence[str] = ()
) -> LabelledSplit:
    """Posts as arrays, in the groups of these attributes."""
    texts = [post.words for post in posts]
    masks = [membership(texts, LISTS[attribute]) for attribute in attributes]
    return LabelledSplit(
        name=name,
        posts=tuple(posts),
        ids=tuple(vocabulary.encode(text[:sequence]) for text in texts),
        labels=np.array([post.label for post in posts], np.int32),
        weights=np.ones(len(posts), np.float32),
        groups=np.concatenate([np.zeros((len(posts), 0)), *masks], axis=1).astype(np.float32),
        identity=listed_tokens(vocabulary),
    )


def listed_tokens(vocabulary: Vocabulary) -> np.ndarray:
    """bool [vocab]: whether a token is a word of any list."""
    mine = identity_terms()
    found = np.zeros(vocabulary.vocab, bool)
    found[: len(vocabulary.words)] = [word in mine for word in vocabulary.words]
    return found


def read_labelled(dataset: Dataset, path: str) -> Labelled:
    """The rows at `data.path`. Raises DataError."""
    return READERS[dataset](path)


def prepare_labelled(
    dataset: Dataset,
    config: DataConfig,
    attributes: Sequence[str] = (),
    vocabulary: Vocabulary | None = None,
    spelling: float = 0.0,
) -> LabelledCorpus:
    """The corpus that a configuration describes: nothing is written, a data set of this kind is small."""
    return LabelledCorpus(read_labelled(dataset, config.path), config, attributes, vocabulary, spelling)

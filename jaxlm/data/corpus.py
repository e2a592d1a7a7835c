"""A prepared corpus, opened from its folder: the tokenizer, a token stream per split, and what was read."""

import dataclasses
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.config import DataConfig, DataError
from jaxlm.data.mixture import Mixture
from jaxlm.data.sources import SPLITS, TEST, TEXT, TRAIN, VALID
from jaxlm.data.stream import Shard, TokenStream
from jaxlm.data.tokenizer import Tokenizer

INDEX, MODEL = "index.json", "tokenizer.model"
EXAMPLES = 20  # places of corrupt input that are remembered by name
HELD_OUT = "held-out"  # the held-out text of all parts of a mixture together


def split_of(split: str, part: str) -> str:
    """The split of a part by its full name: `train/novels`; `train` in a corpus without parts."""
    return f"{split}/{part}" if part else split


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What preparation met: documents, bytes and tokens per split (of a mixture: per split of each part), and what
    was left out and why. `beyond_limit` counts documents of training text that came after `data.limit_bytes`, where
    they had to be read for the held-out ones between them.
    """

    files: int
    documents: Mapping[str, int]
    bytes: Mapping[str, int]
    tokens: Mapping[str, int]
    dropped: int
    beyond_limit: int
    corrupt: int
    corrupt_examples: tuple[str, ...]
    binary_files: tuple[str, ...]
    held_out_files: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report as a person reads it."""
        lines = [
            f"{split}: {self.documents[split]:,} documents, {self.bytes[split] / 1e6:,.1f} MB, "
            f"{self.tokens[split]:,} tokens"
            for split in sorted(self.documents, key=_in_order)
        ]
        if bare := self.without_held_out():
            lines.append(f"nothing is held out from {', '.join(bare)}")
        if self.dropped:
            lines.append(f"dropped from training as too short: {self.dropped:,} documents")
        if self.beyond_limit:
            lines.append(f"read for held-out documents beyond data.limit_bytes: {self.beyond_limit:,} documents")
        if self.binary_files:
            lines.append(f"left out as binary: {len(self.binary_files):,} files, {self.binary_files[0]} ...")
        if self.corrupt:
            lines.append(f"left out as corrupt: {self.corrupt:,} documents")
            lines += [f"  {example}" for example in self.corrupt_examples]
            if (unnamed := self.corrupt - len(self.corrupt_examples)) > 0:
                lines.append(f"  and {unnamed:,} more")
        return lines

    def without_held_out(self) -> list[str]:
        """The parts of a mixture that hold nothing out, where others do."""
        held_out = {_part(split) for split in self.documents if not split.startswith(TRAIN)}
        parts = {_part(split) for split in self.documents if split.startswith(TRAIN)}
        return sorted(parts - held_out) if held_out and "" not in held_out else []


class Corpus:
    """Tokenizer and splits of a prepared folder; `digest` is the same wherever the same text was prepared."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, splits: Mapping[str, TokenStream], index: dict[str, Any]):
        self.folder, self.tokenizer, self.splits = folder, tokenizer, dict(splits)
        self.digest: str = index["digest"]
        self.separator = tokenizer.bos if index.get("prompts") else None
        report = index["report"]
        tuples = {key: tuple(value) for key, value in report.items() if isinstance(value, list)}
        self.report = Report(**report | tuples)

    def split(self, name: str) -> TokenStream:
        """The token stream of `train`, `valid`, `test`; of `text` where a text was prepared by itself.

        In a mixture `train/NAME` is that of one part, and `train` the parts one after the other.
        """
        if name == HELD_OUT and self.parts:
            return self.held_out
        if name not in self.splits:
            of_parts = [split for split in self.splits if split.startswith(f"{name}/")]
            if not of_parts:
                raise DataError(f"this corpus has no {name} split: it has {', '.join(self.splits)}")
            return self._together(of_parts, name)
        return self.splits[name]

    @property
    def parts(self) -> list[str]:
        """The names of the parts of a mixture; none where there is no mixture."""
        return [_part(split) for split in self.splits if split.startswith(f"{TRAIN}/")]

    @property
    def held_out(self) -> TokenStream:
        """What to evaluate on: the split `test` where there is one, else `valid`; in a mixture without
        `data.validation` that of each part, together."""
        for name in (TEST, VALID, TEXT):
            if name in self.splits:
                return self.splits[name]
        choices = ([split_of(TEST, part), split_of(VALID, part)] for part in self.parts)
        if chosen := [split for pair in choices for split in [s for s in pair if s in self.splits][:1]]:
            return self._together(chosen, HELD_OUT)
        raise DataError("nothing is held out: set data.validation_fraction above 0 or give data.validation")

    def training(self, config: DataConfig) -> TokenStream | Mixture:
        """What to train on: the split `train`, or those of the parts with the weights that `config` gives them."""
        if not config.mixture:
            return self.split(TRAIN)
        streams = {name: self.split(split_of(TRAIN, name)) for name in self.parts}
        return Mixture(streams, {name: config.mixture[name].weight for name in streams})

    def _together(self, splits: list[str], name: str) -> TokenStream:
        shards = [shard for split in splits for shard in self.splits[split].shards]
        return TokenStream(shards, pad=self.tokenizer.pad, name=name, separator=self.separator)


def open_corpus(folder: str | os.PathLike[str]) -> Corpus:
    """The corpus in a prepared folder."""
    folder = Path(folder)
    index = read_index(folder)
    if index is None:
        raise DataError(f"{folder} holds no finished corpus: run `jaxlm data prepare`")
    tokenizer = Tokenizer.load(folder / MODEL)
    names = sorted(index["report"]["documents"], key=_in_order)
    shards: dict[str, list[Shard]] = {name: [] for name in names}
    for number, entry in enumerate(index["shards"]):
        for name, facts in entry["splits"].items():
            shards[name].append(_map(folder, number, name, facts, token_type(tokenizer)))
    separator = tokenizer.bos if index.get("prompts") else None
    splits = {n: TokenStream(shards[n], pad=tokenizer.pad, name=n, separator=separator) for n in names}
    return Corpus(folder, tokenizer, splits, index)


def gzip_bits_per_byte(corpus: Corpus, split: str | None = None) -> float:
    """What `gzip -9` needs for the same text: one stream over a split (default: the held-out one)."""
    stream = corpus.held_out if split is None else corpus.split(split)
    gzip, size = zlib.compressobj(9, zlib.DEFLATED, 31), 0
    for document in stream.each_document():
        size += len(gzip.compress(corpus.tokenizer.bytes(document[stream.prompt(document) :].tolist())))
    return 8 * (size + len(gzip.flush())) / max(stream.bytes, 1)


def token_type(tokenizer: Tokenizer) -> np.dtype:
    """The smallest type that holds every token id."""
    return np.dtype("<u2") if tokenizer.vocab <= 1 << 16 else np.dtype("<u4")


def shard_paths(folder: Path, number: int, split: str) -> tuple[Path, Path]:
    """Files of one shard of one split: its tokens, and its documents (offsets, then sizes in bytes)."""
    stem = f"{number:05d}.{split.replace('/', '.')}"
    return folder / f"{stem}.tokens", folder / f"{stem}.documents"


def shard_is_whole(folder: Path, number: int, entry: dict[str, Any]) -> bool:
    """Whether the files of a shard have the sizes that were written down."""
    for split, facts in entry["splits"].items():
        for path, size in zip(shard_paths(folder, number, split), facts["file_bytes"], strict=True):
            if not path.is_file() or path.stat().st_size != size:
                return False
    return True


def read_index(folder: Path) -> dict[str, Any] | None:
    """The index of a finished corpus, or None where it is not finished or a file has been cut since."""
    try:
        index = json.loads((folder / INDEX).read_bytes())
    except (OSError, ValueError):
        return None
    whole = all(shard_is_whole(folder, number, entry) for number, entry in enumerate(index["shards"]))
    return index if whole and (folder / MODEL).is_file() else None


def _map(folder: Path, number: int, split: str, facts: dict[str, Any], dtype: np.dtype) -> Shard:
    tokens, documents = shard_paths(folder, number, split)
    flat = np.memmap(tokens, dtype, "r").view(np.ndarray)
    table = np.memmap(documents, "<i8", "r").view(np.ndarray)
    count = facts["documents"]
    return Shard(flat, table[: count + 1], table[count + 1 :])


def _part(split: str) -> str:
    return split.partition("/")[2]


def _in_order(split: str) -> tuple[int, str]:
    return SPLITS.index(split.partition("/")[0]), _part(split)

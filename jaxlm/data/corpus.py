"""A prepared corpus, opened from its folder: the tokenizer, a token stream per split, and what was read."""

import dataclasses
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.config import DataError
from jaxlm.data.sources import SPLITS, TEST, TEXT, TRAIN, VALID
from jaxlm.data.stream import Shard, TokenStream
from jaxlm.data.tokenizer import Tokenizer

INDEX, MODEL = "index.json", "tokenizer.model"
EXAMPLES = 20  # places of corrupt input that are remembered by name


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What preparation met: documents, bytes and tokens per split, and what was left out and why."""

    files: int
    documents: Mapping[str, int]
    bytes: Mapping[str, int]
    tokens: Mapping[str, int]
    dropped: int
    corrupt: int
    corrupt_examples: tuple[str, ...]
    binary_files: tuple[str, ...]
    held_out_files: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report as a person reads it."""
        lines = [
            f"{split}: {self.documents[split]:,} documents, {self.bytes[split] / 1e6:,.1f} MB, "
            f"{self.tokens[split]:,} tokens"
            for split in SPLITS
            if split in self.documents
        ]
        if self.dropped:
            lines.append(f"dropped from training as too short: {self.dropped:,} documents")
        if self.binary_files:
            lines.append(f"left out as binary: {len(self.binary_files):,} files, {self.binary_files[0]} ...")
        if self.corrupt:
            lines.append(f"left out as corrupt: {self.corrupt:,} documents, {self.corrupt_examples[0]} ...")
        return lines


class Corpus:
    """Tokenizer and splits of a prepared folder; `digest` is the same wherever the same text was prepared."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, splits: Mapping[str, TokenStream], index: dict[str, Any]):
        self.folder, self.tokenizer, self.splits = folder, tokenizer, dict(splits)
        self.digest: str = index["digest"]
        report = index["report"]
        tuples = {key: tuple(value) for key, value in report.items() if isinstance(value, list)}
        self.report = Report(**report | tuples)

    def split(self, name: str) -> TokenStream:
        """The token stream of `train`, `valid`, `test`; of `text` where a text was prepared by itself."""
        if name not in self.splits:
            raise DataError(f"this corpus has no {name} split: it has {', '.join(self.splits)}")
        return self.splits[name]

    @property
    def held_out(self) -> TokenStream:
        """The split to evaluate on: `test` where there is one, else `valid`."""
        for name in (TEST, VALID, TEXT):
            if name in self.splits:
                return self.splits[name]
        raise DataError("nothing is held out: set data.validation_fraction above 0 or give data.validation")


def open_corpus(folder: str | os.PathLike[str]) -> Corpus:
    """The corpus in a prepared folder."""
    folder = Path(folder)
    index = read_index(folder)
    if index is None:
        raise DataError(f"{folder} holds no finished corpus: run `jaxlm data prepare`")
    tokenizer = Tokenizer.load(folder / MODEL)
    names = [name for name in SPLITS if name in index["report"]["documents"]]
    shards: dict[str, list[Shard]] = {name: [] for name in names}
    for number, entry in enumerate(index["shards"]):
        for name, facts in entry["splits"].items():
            shards[name].append(_map(folder, number, name, facts, token_type(tokenizer)))
    dropped = index["report"]["dropped"]
    splits = {
        name: TokenStream(shards[name], pad=tokenizer.pad, name=name, dropped=dropped if name == TRAIN else 0)
        for name in names
    }
    return Corpus(folder, tokenizer, splits, index)


def gzip_bits_per_byte(corpus: Corpus, split: str | None = None) -> float:
    """What `gzip -9` needs for the same text: one stream over a split (default: the held-out one)."""
    stream = corpus.held_out if split is None else corpus.split(split)
    gzip, size = zlib.compressobj(9, zlib.DEFLATED, 31), 0
    for document in stream.each_document():
        size += len(gzip.compress(corpus.tokenizer.bytes(document.tolist())))
    return 8 * (size + len(gzip.flush())) / max(stream.bytes, 1)


def token_type(tokenizer: Tokenizer) -> np.dtype:
    """The smallest type that holds every token id."""
    return np.dtype("<u2") if tokenizer.vocab <= 1 << 16 else np.dtype("<u4")


def shard_paths(folder: Path, number: int, split: str) -> tuple[Path, Path]:
    """Files of one shard of one split: its tokens, and its documents (offsets, then sizes in bytes)."""
    return folder / f"{number:05d}.{split}.tokens", folder / f"{number:05d}.{split}.documents"


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

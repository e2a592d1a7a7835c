"""Shards on disk: whole documents, encoded, written so that a shard is there entirely or not at all."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.corpus import EXAMPLES, shard_is_whole, shard_paths, token_type
from jaxlm.data.sources import Corrupt
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.files import write_whole


class ShardWriter:
    """Collects encoded documents per split and writes them as one shard."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.dtype = tokenizer, token_type(tokenizer)
        self._clear()

    def _clear(self) -> None:
        self.bytes = self.waiting = 0
        self.facts: dict[str, Any] = {"dropped": 0, "beyond": 0, "corrupt": 0, "corrupt_examples": []}
        self._texts: list[tuple[str, str, str | None]] = []
        self._tokens: dict[str, list[np.ndarray]] = {}
        self._lengths: dict[str, list[int]] = {}
        self._sizes: dict[str, list[int]] = {}

    @property
    def empty(self) -> bool:
        return not (self._texts or self._sizes or any(self.facts.values()))

    def add(self, split: str, text: str, prompt: str | None = None) -> int:
        """Takes a document and says how many bytes it has; those of a prompt are not of the document."""
        size = len(text.encode())
        self._texts.append((split, text, prompt))
        self._sizes.setdefault(split, []).append(size)
        both = size + len((prompt or "").encode())
        self.bytes += both
        self.waiting += both
        return size

    def skip(self, corrupt: Corrupt) -> None:
        self.facts["corrupt"] += 1
        if len(self.facts["corrupt_examples"]) < EXAMPLES:
            self.facts["corrupt_examples"].append(f"{corrupt.where}: {corrupt.why}")

    def encode(self) -> None:
        """Encodes what is waiting: `BOS text EOS`, or `BOS prompt BOS text EOS`."""
        begin = np.array([self.tokenizer.bos], self.dtype)
        end = np.array([self.tokenizer.eos], self.dtype)
        encoded = self.tokenizer.encode_many([text for _, text, _ in self._texts])
        prompts = iter(self.tokenizer.encode_many([p for *_, p in self._texts if p is not None]))
        for (split, _, prompt), ids in zip(self._texts, encoded, strict=True):
            before = () if prompt is None else (begin, next(prompts).astype(self.dtype))
            parts = (*before, begin, ids.astype(self.dtype), end)
            self._tokens.setdefault(split, []).extend(parts)
            self._lengths.setdefault(split, []).append(sum(map(len, parts)))
        self._texts, self.waiting = [], 0

    def write(self, folder: Path, number: int, following: dict[str, Any]) -> dict[str, Any]:
        """Writes the shard, its entry last, and starts an empty one; `following` is where the next begins."""
        entry = self.facts | {"splits": {}, "next": following}
        for split, parts in self._tokens.items():
            tokens = np.concatenate(parts)
            documents = np.concatenate([[0], np.cumsum(self._lengths[split]), self._sizes[split]]).astype("<i8")
            files = shard_paths(folder, number, split)
            for path, array in zip(files, (tokens, documents), strict=True):
                write_whole(path, array.tobytes())
            entry["splits"][split] = {
                "documents": len(self._sizes[split]),
                "tokens": len(tokens),
                "bytes": sum(self._sizes[split]),
                "file_bytes": [tokens.nbytes, documents.nbytes],
                "sha256": hashlib.sha256(tokens.tobytes() + documents.tobytes()).hexdigest(),
            }
        write_whole(folder / f"{number:05d}.json", json.dumps(entry).encode())
        self._clear()
        return entry


def finished(folder: Path) -> list[dict[str, Any]]:
    """Entries of the shards that are whole, up to the first that is not."""
    entries: list[dict[str, Any]] = []
    while True:
        try:
            entry = json.loads((folder / f"{len(entries):05d}.json").read_bytes())
        except (OSError, ValueError):
            return entries
        if not shard_is_whole(folder, len(entries), entry):
            return entries
        entries.append(entry)

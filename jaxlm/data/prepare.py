"""Turns text into a corpus on disk: learn the tokenizer, encode shard by shard, write the index last.

What is finished is never redone: the folder is named by a digest of the config and of the files (path, size,
time of change), the tokenizer and each shard appear under their names only when whole, and a shard remembers
how far it got.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxlm.data.config import DataConfig, DataError, TokenizerConfig
from jaxlm.data.corpus import (
    EXAMPLES,
    INDEX,
    MODEL,
    Corpus,
    Report,
    open_corpus,
    read_index,
)
from jaxlm.data.progress import Progress, silent
from jaxlm.data.shards import ShardWriter, finished
from jaxlm.data.sources import (
    BY_DOCUMENT,
    BY_TAIL,
    TEST,
    TEXT,
    TRAIN,
    VALID,
    Corrupt,
    Source,
    find_sources,
    read,
    stable_hash,
)
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.files import user_cache, write_whole

FORMAT = 1  # raised when the same text would give other files
SHARD_BYTES = 128 << 20  # text per shard: what an interruption may cost
LONGEST_CHARACTER = 4  # bytes in UTF-8
BATCH_BYTES = 4 << 20  # text encoded at a time, shared among the cores


def prepare(config: DataConfig, progress: Progress = silent, *, shard_bytes: int = SHARD_BYTES) -> Corpus:
    """The corpus a config describes, from the cache where it has been prepared before."""
    sources, binary = find_sources(config)
    return _prepare(config, sources, binary, progress, shard_bytes)


def prepare_text(
    path: str, tokenizer: str | os.PathLike[str], config: DataConfig, progress: Progress = silent
) -> Corpus:
    """Other text for an existing tokenizer: all of it, as the one split `text`."""
    config = dataclasses.replace(
        config,
        path=path,
        validation=None,
        validation_fraction=0.0,
        minimum_characters=0,
        limit_bytes=None,
        tokenizer=TokenizerConfig(path=str(tokenizer)),
    )
    sources, binary = find_sources(config)
    sources = [dataclasses.replace(source, split=TEXT) for source in sources]
    return _prepare(config, sources, binary, progress, SHARD_BYTES)


def _prepare(
    config: DataConfig, sources: list[Source], binary: list[str], progress: Progress, shard_bytes: int
) -> Corpus:
    folder = corpus_folder(config, sources)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"data.cache: {folder} cannot be made: {error.strerror}") from error
    with _alone(folder, progress):
        if (index := read_index(folder)) is None:
            _remove_unfinished(folder)
            tokenizer = _tokenizer(folder, config, sources, progress)
            shards = _encode(folder, config, sources, tokenizer, progress, shard_bytes)
            index = _index(config, sources, binary, tokenizer, shards)
            write_whole(folder / INDEX, json.dumps(index, indent=1).encode())
    report = index["report"]
    read_well = sum(report["documents"].values()) + report["dropped"]
    _check_corrupt(config, report["corrupt"], read_well, report["corrupt_examples"])
    return open_corpus(folder)


def cache_folder(config: DataConfig) -> Path:
    """Where prepared corpora lie: `data.cache`, else below the user's cache folder."""
    return user_cache("data") if config.cache is None else Path(config.cache).expanduser()


def corpus_folder(config: DataConfig, sources: list[Source]) -> Path:
    """One folder per thing that would change the tokens; how rows are cut from them is not among these."""
    relevant = dataclasses.asdict(config)
    for key in ("sequence", "mode", "cache", "corrupt_share"):
        del relevant[key]
    if config.tokenizer.path is not None:
        relevant["tokenizer"] = Tokenizer.load(config.tokenizer.path).digest
    facts = {
        "format": FORMAT,
        "sentencepiece": importlib.metadata.version("sentencepiece"),
        "config": relevant,
        "sources": [dataclasses.astuple(source) for source in sources],
    }
    return cache_folder(config) / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


# Tokenizer


def _tokenizer(folder: Path, config: DataConfig, sources: list[Source], progress: Progress) -> Tokenizer:
    path = folder / MODEL
    if path.is_file():
        return Tokenizer.load(path)
    if config.tokenizer.path is not None:
        tokenizer = Tokenizer.load(config.tokenizer.path)
    else:
        texts = list(sample(config, sources, progress))
        size = sum(len(text) for text in texts)
        if not texts:
            raise _no_text(config, sources)
        stage = f"learning {config.tokenizer.vocab:,} tokens ({config.tokenizer.kind})"
        progress(stage, 0, size)
        tokenizer = Tokenizer.train(texts, config.tokenizer)
        progress(stage, size, size)
    write_whole(path, tokenizer.model)
    return tokenizer


def sample(config: DataConfig, sources: list[Source], progress: Progress = silent) -> Iterator[str]:
    """Training text to learn from, about `sample_bytes` of it, taken evenly from files in the order of their
    hashes.

    A file gives at most its share: a long text gives parts from all over it, a JSONL file documents chosen by
    hash from as much of its beginning as needed (so that no more than eight times the share is read).
    """
    wanted = config.tokenizer.sample_bytes
    if config.limit_bytes is not None:
        wanted = min(wanted, config.limit_bytes)
    files = [source for source in sources if source.split in (TRAIN, BY_DOCUMENT, BY_TAIL)]
    share = max(wanted // max(min(len(files), 64), 1), 1)
    size, taken = min(wanted, sum(source.bytes for source in files)), 0
    for source in files:
        if taken >= wanted:
            break
        left = min(share, wanted - taken)
        growth = 3 if source.gzipped else 1
        keep = max(left / max(source.bytes * growth, 1), 1 / 8)
        for number, item in enumerate(read(source, config.validation_fraction)):
            if isinstance(item, Corrupt) or item.split != TRAIN or len(item.text) < config.minimum_characters:
                continue
            if source.jsonl and stable_hash(f"sample {source.name}:{number}") >= keep:
                continue
            for text in _thinned(item.text, left):
                yield text
                left -= len(text)
                taken += len(text)
            if left <= 0:
                break
        progress("reading for the tokenizer", min(taken, size), size)
    progress("reading for the tokenizer", size, size)


def _thinned(text: str, size: int, part: int = 4096) -> list[str]:
    """At most about `size` characters of a text, as evenly spaced parts cut at line ends if there are any."""
    if len(text) <= size:
        return [text]
    count = max(size // part, 1)
    parts = []
    for number in range(count):
        start = number * len(text) // count
        line = text.find("\n", start, start + part) if start else 0
        start = line if line >= 0 else start
        parts.append(text[start : start + min(part, size)])
    return parts


# Shards


def _encode(
    folder: Path,
    config: DataConfig,
    sources: list[Source],
    tokenizer: Tokenizer,
    progress: Progress,
    shard_bytes: int,
) -> list[dict[str, Any]]:
    """Writes the shards that are missing and returns the entries of all."""
    shards = finished(folder)
    here = shards[-1]["next"] if shards else {"file": 0, "item": 0, "train_bytes": 0}
    limit = config.limit_bytes or sys.maxsize
    begins = [0, *itertools.accumulate(source.bytes for source in sources)]
    total, position = begins[-1], 0
    writer = ShardWriter(tokenizer)
    train_bytes = here["train_bytes"]
    seen = corrupt = before = 0

    def tell(bytes_read: int) -> None:
        nonlocal position
        position = before + bytes_read

    for file in range(here["file"], len(sources)):
        full = limit - train_bytes < LONGEST_CHARACTER
        if full and sources[file].split in (TRAIN, BY_DOCUMENT):
            break
        before = position = begins[file]
        for number, item in enumerate(read(sources[file], config.validation_fraction, tell)):
            if file == here["file"] and number < here["item"]:
                continue
            seen += 1
            if isinstance(item, Corrupt):
                corrupt += 1
                writer.skip(item)
                if seen >= 1000:
                    _check_corrupt(config, corrupt, seen - corrupt, writer.facts["corrupt_examples"])
            elif item.split != TRAIN:
                writer.add(item.split, item.text)
            elif len(item.text) < config.minimum_characters:
                writer.facts["dropped"] += 1
            elif limit - train_bytes >= LONGEST_CHARACTER:
                train_bytes += writer.add(TRAIN, _first_bytes(item.text, limit - train_bytes))
            else:
                break
            if writer.waiting >= BATCH_BYTES or writer.bytes >= shard_bytes:
                writer.encode()
                progress("encoding", min(position, total), total)
            if writer.bytes >= shard_bytes:
                following = {"file": file, "item": number + 1, "train_bytes": train_bytes}
                shards.append(writer.write(folder, len(shards), following))
                progress("encoding", min(position, total), total)
    following = {"file": len(sources), "item": 0, "train_bytes": train_bytes}
    if not writer.empty:
        writer.encode()
        shards.append(writer.write(folder, len(shards), following))
    progress("encoding", total, total)
    return shards


def _first_bytes(text: str, size: int) -> str:
    """A text cut to at most `size` bytes, between characters."""
    return text if len(text) * LONGEST_CHARACTER <= size else text.encode()[:size].decode("utf-8", "ignore")


# Index


def _index(
    config: DataConfig,
    sources: list[Source],
    binary: list[str],
    tokenizer: Tokenizer,
    shards: list[dict[str, Any]],
) -> dict[str, Any]:
    totals: dict[str, dict[str, int]] = {"documents": {}, "bytes": {}, "tokens": {}}
    for entry in shards:
        for split, facts in entry["splits"].items():
            for what, count in totals.items():
                count[split] = count.get(split, 0) + facts[what]
    dropped = sum(entry["dropped"] for entry in shards)
    examples = [example for entry in shards for example in entry["corrupt_examples"]][:EXAMPLES]
    report = Report(
        files=len(sources),
        dropped=dropped,
        corrupt=sum(entry["corrupt"] for entry in shards),
        corrupt_examples=tuple(examples),
        binary_files=tuple(binary[:EXAMPLES]),
        held_out_files=tuple(source.path for source in sources if source.split in (VALID, TEST)),
        **totals,
    )
    documents = report.documents
    _check_corrupt(config, report.corrupt, sum(documents.values()) + dropped, examples)
    if not documents:
        raise _no_text(config, sources)
    if TEXT not in documents:
        _check_splits(config, documents, sources)
    content = [[(split, each["sha256"]) for split, each in entry["splits"].items()] for entry in shards]
    content = [tokenizer.digest, *content]
    return {
        "format": FORMAT,
        "digest": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        "report": dataclasses.asdict(report),
        "shards": [{"splits": entry["splits"]} for entry in shards],
    }


def _check_splits(config: DataConfig, documents: Mapping[str, int], sources: list[Source]) -> None:
    if TRAIN not in documents:
        raise _no_text(config, sources)
    wanted = config.validation is not None or config.validation_fraction > 0
    if wanted and not (VALID in documents or TEST in documents):
        raise DataError(
            f"data.path={config.path} gives nothing to hold out: {documents[TRAIN]:,} documents at "
            f"data.validation_fraction={config.validation_fraction}; raise it, or give data.validation"
        )


def _check_corrupt(config: DataConfig, corrupt: int, read_well: int, examples: list[str]) -> None:
    documents = corrupt + read_well
    if corrupt > config.corrupt_share * documents:
        raise DataError(
            f"{corrupt:,} of {documents:,} documents are corrupt, more than "
            f"data.corrupt_share={config.corrupt_share}: {'; '.join(examples[:3])}"
        )


def _no_text(config: DataConfig, sources: list[Source]) -> DataError:
    """Why there is nothing to train on, found by reading all of it once more."""
    short, examples = 0, []
    for source in sources:
        for item in read(source, config.validation_fraction):
            if isinstance(item, Corrupt):
                examples.append(f"{item.where}: {item.why}")
            elif item.split == TRAIN:
                short += 1
    if examples:
        return DataError(f"data.path={config.path}: all text is corrupt: {'; '.join(examples[:3])}")
    if short:
        return DataError(
            f"data.path={config.path} holds nothing to train on: {short:,} documents, all shorter than "
            f"data.minimum_characters={config.minimum_characters}"
        )
    return DataError(f"data.path={config.path} holds no text: {len(sources):,} files without a document")


# Files


def _remove_unfinished(folder: Path) -> None:
    for path in folder.glob("*.unfinished"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(folder: Path, progress: Progress) -> Iterator[None]:
    """One process prepares a folder at a time, the others wait; the lock ends with its process."""
    import fcntl

    with open(folder / "lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            progress(f"waiting for process {lock.read().strip() or '?'}, which prepares the same data", 0, 0)
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield

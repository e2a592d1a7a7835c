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
from jaxlm.data.corpus import EXAMPLES, INDEX, MODEL, Corpus, Report, open_corpus, read_index, split_of
from jaxlm.data.mixture import shares
from jaxlm.data.parts import WHOLE, Parts, find_parts, origin
from jaxlm.data.progress import Progress, silent
from jaxlm.data.sample import sample
from jaxlm.data.shards import ShardWriter, finished
from jaxlm.data.sources import BY_DOCUMENT, TEST, TEXT, TRAIN, VALID, Corrupt, Source, find_sources, read
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.files import DiskFull, room, user_cache, write_whole

FORMAT = 2  # raised when the same text would give other files
SHARD_BYTES = 128 << 20  # text per shard: what an interruption may cost
LONGEST_CHARACTER = 4  # bytes in UTF-8
BATCH_BYTES = 4 << 20  # text encoded at a time, shared among the cores
SKIPPED = 10_000  # documents read past the limit between two words about it


def prepare(config: DataConfig, progress: Progress = silent, *, shard_bytes: int = SHARD_BYTES) -> Corpus:
    """The corpus a config describes, from the cache where it has been prepared before."""
    parts, binary = find_parts(config)
    return _prepare(config, parts, binary, progress, shard_bytes)


def prepare_text(
    path: str, tokenizer: str | os.PathLike[str], config: DataConfig, progress: Progress = silent
) -> Corpus:
    """Other text for an existing tokenizer: all of it, as the one split `text`."""
    config = dataclasses.replace(
        config,
        path=path,
        mixture={},
        validation=None,
        validation_fraction=0.0,
        minimum_characters=0,
        limit_bytes=None,
        tokenizer=TokenizerConfig(path=str(tokenizer)),
    )
    sources, binary = find_sources(config)
    sources = [dataclasses.replace(source, split=TEXT) for source in sources]
    return _prepare(config, {WHOLE: sources}, binary, progress, SHARD_BYTES)


def _prepare(config: DataConfig, parts: Parts, binary: list[str], progress: Progress, shard_bytes: int) -> Corpus:
    folder = corpus_folder(config, parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"data.cache: {folder} cannot be made: {error.strerror}") from error
    try:
        with room(folder), _alone(folder, progress):
            if (index := read_index(folder)) is None:
                _remove_unfinished(folder)
                tokenizer = _tokenizer(folder, config, parts, progress)
                shards = _encode(folder, config, parts, tokenizer, progress, shard_bytes)
                index = _index(config, parts, binary, tokenizer, shards)
                write_whole(folder / INDEX, json.dumps(index, indent=1).encode())
    except DiskFull as error:
        raise DataError(
            f"data.cache: {error}. Make room there and start again, which goes on after the last whole shard, "
            "or name another disk in data.cache"
        ) from error
    report = index["report"]
    read_well = sum(report["documents"].values()) + report["dropped"] + report["beyond_limit"]
    _check_corrupt(config, report["corrupt"], read_well, report["corrupt_examples"])
    return open_corpus(folder)


def cache_folder(config: DataConfig) -> Path:
    """Where prepared corpora lie: `data.cache`, else below the user's cache folder."""
    return user_cache("data") if config.cache is None else Path(config.cache).expanduser()


def corpus_folder(config: DataConfig, parts: Parts) -> Path:
    """One folder per thing that would change the tokens; how rows are cut from them is not among these, nor are the
    weights of a mixture unless its tokenizer is learned."""
    relevant = dataclasses.asdict(config)
    for key in ("sequence", "mode", "cache", "corrupt_share", "mixture"):
        del relevant[key]
    if config.parallel is None:
        del relevant["parallel"]
    if config.mixture and config.tokenizer.path is None:
        weights = {name: part.weight for name, part in sorted(config.mixture.items())}
        relevant["shares"] = {name: str(share) for name, share in shares(weights).items()}
    library = "sentencepiece"
    if config.tokenizer.path is not None:
        tokenizer = Tokenizer.load(config.tokenizer.path)
        relevant["tokenizer"], library = tokenizer.digest, tokenizer.library
    facts = {
        "format": FORMAT,
        library: importlib.metadata.version(library),
        "config": relevant,
        "sources": [(part, dataclasses.astuple(source)) for part, sources in parts.items() for source in sources],
    }
    return cache_folder(config) / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


# Tokenizer


def _tokenizer(folder: Path, config: DataConfig, parts: Parts, progress: Progress) -> Tokenizer:
    path = folder / MODEL
    if path.is_file():
        return Tokenizer.load(path)
    if config.tokenizer.path is not None:
        tokenizer = Tokenizer.load(config.tokenizer.path)
    else:
        samples = sample(config, parts, progress)
        for part, texts in samples.items():
            if not texts:
                raise _no_text(config, part, parts[part])
        texts = list(itertools.chain.from_iterable(samples.values()))
        size = sum(len(text) for text in texts)
        stage = f"learning {config.tokenizer.vocab:,} tokens ({config.tokenizer.kind})"
        progress(stage, 0, size)
        tokenizer = Tokenizer.train(texts, config.tokenizer)
        progress(stage, size, size)
    write_whole(path, tokenizer.model)
    return tokenizer


# Shards


def _encode(
    folder: Path,
    config: DataConfig,
    parts: Parts,
    tokenizer: Tokenizer,
    progress: Progress,
    shard_bytes: int,
) -> list[dict[str, Any]]:
    """Writes the shards that are missing and returns the entries of all."""
    shards = finished(folder)
    files = [(part, source) for part, sources in parts.items() for source in sources]
    here = shards[-1]["next"] if shards else {"file": 0, "item": 0, "train_bytes": {}}
    limit = config.limit_bytes or sys.maxsize
    begins = [0, *itertools.accumulate(source.bytes for _, source in files)]
    total, position = begins[-1], 0
    writer = ShardWriter(tokenizer)
    train_bytes = dict.fromkeys(parts, 0) | here["train_bytes"]
    seen = corrupt = before = 0

    def tell(bytes_read: int) -> None:
        nonlocal position
        position = before + bytes_read

    for file in range(here["file"], len(files)):
        part, source = files[file]
        if limit - train_bytes[part] < LONGEST_CHARACTER and source.split == TRAIN:
            continue
        before = position = begins[file]
        for number, item in enumerate(read(source, config.validation_fraction, tell)):
            if file == here["file"] and number < here["item"]:
                continue
            seen += 1
            left = limit - train_bytes[part]
            if isinstance(item, Corrupt):
                corrupt += 1
                writer.skip(item)
                if seen >= 1000:
                    _check_corrupt(config, corrupt, seen - corrupt, writer.facts["corrupt_examples"])
            elif item.split != TRAIN:
                writer.add(split_of(item.split, part), item.text, item.prompt)
            elif left < LONGEST_CHARACTER:
                if source.split != BY_DOCUMENT:
                    break
                writer.facts["beyond"] += 1
                if writer.facts["beyond"] % SKIPPED == 0:
                    progress("data.limit_bytes is reached; reading on for what is held out", position, total)
            elif item.shorter(config.minimum_characters):
                writer.facts["dropped"] += 1
            else:
                text = _first_bytes(item.text, left) if item.prompt is None else item.text
                train_bytes[part] += writer.add(split_of(TRAIN, part), text, item.prompt)
            if writer.waiting >= BATCH_BYTES or writer.bytes >= shard_bytes:
                writer.encode()
                progress("encoding", min(position, total), total)
            if writer.bytes >= shard_bytes:
                following = {"file": file, "item": number + 1, "train_bytes": train_bytes}
                shards.append(writer.write(folder, len(shards), following))
                progress("encoding", min(position, total), total)
    following = {"file": len(files), "item": 0, "train_bytes": train_bytes}
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
    parts: Parts,
    binary: list[str],
    tokenizer: Tokenizer,
    shards: list[dict[str, Any]],
) -> dict[str, Any]:
    totals: dict[str, dict[str, int]] = {"documents": {}, "bytes": {}, "tokens": {}}
    for entry in shards:
        for split, facts in entry["splits"].items():
            for what, count in totals.items():
                count[split] = count.get(split, 0) + facts[what]
    sources = [source for each in parts.values() for source in each]
    dropped, beyond = (sum(entry[what] for entry in shards) for what in ("dropped", "beyond"))
    examples = [example for entry in shards for example in entry["corrupt_examples"]][:EXAMPLES]
    report = Report(
        files=len(sources),
        dropped=dropped,
        beyond_limit=beyond,
        corrupt=sum(entry["corrupt"] for entry in shards),
        corrupt_examples=tuple(examples),
        binary_files=tuple(binary[:EXAMPLES]),
        held_out_files=tuple(source.path for source in sources if source.split in (VALID, TEST)),
        **totals,
    )
    documents = report.documents
    _check_corrupt(config, report.corrupt, sum(documents.values()) + dropped + beyond, examples)
    if not documents:
        part = next(iter(parts))
        raise _no_text(config, part, parts[part])
    if TEXT not in documents:
        _check_splits(config, documents, parts)
    content = [[(split, each["sha256"]) for split, each in entry["splits"].items()] for entry in shards]
    content = [tokenizer.digest, *content]
    return {
        "format": FORMAT,
        "digest": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        "report": dataclasses.asdict(report),
        "prompts": config.parallel is not None,
        "shards": [{"splits": entry["splits"]} for entry in shards],
    }


def _check_splits(config: DataConfig, documents: Mapping[str, int], parts: Parts) -> None:
    for part in config.mixture or (WHOLE,):
        if split_of(TRAIN, part) not in documents:
            raise _no_text(config, part, parts[part])
    given = config.validation is not None or any(part.validation is not None for part in config.mixture.values())
    if (given or config.validation_fraction > 0) and all(split.startswith(TRAIN) for split in documents):
        origins = " and ".join(origin(config, part) for part in config.mixture or (WHOLE,))
        raise DataError(
            f"{origins} gives nothing to hold out: {sum(documents.values()):,} documents at "
            f"data.validation_fraction={config.validation_fraction}; raise it, or give data.validation"
        )


def _check_corrupt(config: DataConfig, corrupt: int, read_well: int, examples: list[str]) -> None:
    documents = corrupt + read_well
    if corrupt > config.corrupt_share * documents:
        raise DataError(
            f"{corrupt:,} of {documents:,} documents are corrupt, more than "
            f"data.corrupt_share={config.corrupt_share}: {'; '.join(examples[:3])}"
        )


def _no_text(config: DataConfig, part: str, sources: list[Source]) -> DataError:
    """Why there is nothing to train on, found by reading all of the part once more."""
    short, examples = 0, []
    for source in sources:
        for item in read(source, config.validation_fraction):
            if isinstance(item, Corrupt):
                examples.append(f"{item.where}: {item.why}")
            elif item.split == TRAIN:
                short += 1
    text = origin(config, part)
    if examples:
        return DataError(f"{text}: all text is corrupt: {'; '.join(examples[:3])}")
    if short:
        return DataError(
            f"{text} holds nothing to train on: {short:,} documents, all shorter than "
            f"data.minimum_characters={config.minimum_characters}"
        )
    return DataError(f"{text} holds no text: {len(sources):,} files without a document")


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

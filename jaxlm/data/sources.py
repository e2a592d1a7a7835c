"""Finds the text a config points at and reads it document by document, each with the split it belongs to.

A text file is one document; a JSONL file (C4 format: `text`, `url`, `timestamp`) holds one per line; both may
be gzip-compressed. What is held out is decided by a stable hash of a name, so it is the same on every machine
and does not move when files are added.
"""

import csv
import dataclasses
import glob
import gzip
import hashlib
import json
import os
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, cast

from jaxlm.data.config import STDLIB, DataConfig, DataError

TRAIN, VALID, TEST = "train", "valid", "test"
TEXT = "text"  # a text by itself, neither trained on nor held out from anything
SPLITS = (TRAIN, VALID, TEST, TEXT)
BY_DOCUMENT, BY_TAIL = "by document", "by tail"  # a file that holds both training and held-out text

MANIFEST = "manifest.csv"
MANIFEST_SPLITS = {
    "train": TRAIN,
    "valid": VALID,
    "val": VALID,
    "validation": VALID,
    "dev": VALID,
    "test": TEST,
}

# Not prose and not code: generated tables, test fixtures, what other projects installed.
STDLIB_SKIP = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "pydoc_data",
               "encodings", "ensurepip", "lib-dynload"}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """One file: `name` is its path below the corpus, the same on every machine."""

    path: str
    name: str
    bytes: int
    modified: int
    split: str  # train, valid, test, or a rule for a file that holds several

    @property
    def jsonl(self) -> bool:
        return _plain_suffix(self.path) in (".jsonl", ".json")

    @property
    def gzipped(self) -> bool:
        return self.path.endswith(".gz")


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A text and the split it belongs to."""

    text: str
    split: str


@dataclasses.dataclass(frozen=True, slots=True)
class Corrupt:
    """A place that could not be read as text."""

    where: str
    why: str


def stable_hash(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64


def find_sources(config: DataConfig) -> tuple[list[Source], list[str]]:
    """Every file with its split, in an order given by hashes of the names; and the binary files left out."""
    binary: list[str] = []
    found = _list(config.path, "data.path", binary)
    splits = None if config.path == STDLIB else _manifest(Path(config.path).expanduser())  # by path
    if config.validation is not None:
        held_out = _list(config.validation, "data.validation", binary)
        theirs = {os.path.realpath(path) for path, _ in held_out}
        ours = [(path, name) for path, name in found if os.path.realpath(path) not in theirs]
        if splits is not None:
            ours = [(path, name) for path, name in ours if splits[path] == TRAIN]
        if not ours:
            raise DataError(f"data.path={config.path} holds no file outside data.validation={config.validation}")
        sources = [_source(path, name, TRAIN) for path, name in ours]
        sources += [_source(path, name, VALID) for path, name in held_out]
    elif splits is not None:
        sources = [_source(path, name, splits[path]) for path, name in found]
    else:
        sources = _split_by_name(found, config.validation_fraction)
    held_out_first = sorted(sources, key=lambda source: (source.split == TRAIN, stable_hash(source.name)))
    return held_out_first, binary


def read(
    source: Source, validation_fraction: float, tell: Callable[[int], None] | None = None
) -> Iterator[Document | Corrupt]:
    """The documents of one file in order. `tell` hears how many bytes of the file have been read."""
    try:
        with open(source.path, "rb") as raw:
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw) if source.gzipped else raw)
            if source.jsonl:
                for item in _read_lines(source, stream, validation_fraction):
                    yield item
                    if tell:
                        tell(raw.tell())
            else:
                yield from _read_whole(source, stream.read(), validation_fraction)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{source.path} is not a readable gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"{source.path} cannot be read: {error.strerror or error}") from error


def _read_whole(source: Source, content: bytes, validation_fraction: float) -> Iterator[Document | Corrupt]:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        yield Corrupt(f"{source.path}:{line}", f"not UTF-8 (byte 0x{content[error.start]:02x})")
        return
    if source.split != BY_TAIL:
        yield Document(text, source.split)
        return
    cut = int(len(text) * (1 - validation_fraction))
    for mark in ("\n\n", "\n", " "):
        if 0 <= (found := text.find(mark, cut)) < len(text) - len(mark):
            cut = found + len(mark)
            break
    yield Document(text[cut:], VALID)
    yield Document(text[:cut], TRAIN)


def _read_lines(source: Source, stream: IO[bytes], validation_fraction: float) -> Iterator[Document | Corrupt]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        where = f"{source.path}:{number}"
        try:
            record = json.loads(line)
            text = record["text"]
            text.encode("utf-8")
        except UnicodeDecodeError as error:
            yield Corrupt(where, f"not UTF-8 (byte 0x{line[error.start]:02x})")
        except UnicodeEncodeError:
            yield Corrupt(where, "`text` holds a lone surrogate, which has no UTF-8 form")
        except (json.JSONDecodeError, RecursionError) as error:
            yield Corrupt(where, f"not JSON ({getattr(error, 'msg', 'nested too deep')})")
        except (TypeError, KeyError, IndexError, AttributeError):
            yield Corrupt(where, "no `text` string in this line")
        else:
            split = source.split
            if split == BY_DOCUMENT:
                url = record.get("url")
                name = url if isinstance(url, str) and url else f"{source.name}:{number}"
                split = VALID if stable_hash(name) < validation_fraction else TRAIN
            yield Document(text, split)


def _list(spec: str, key: str, binary: list[str]) -> list[tuple[str, str]]:
    """(path, name) of each file a folder, glob, file or the word `stdlib` stands for."""
    if spec == STDLIB:
        return _stdlib(key)
    path = Path(spec).expanduser()
    if path.is_file():
        return [(str(path), path.name)]
    if path.is_dir():
        root = path
        if (named := _manifest(path)) is not None:
            files = [Path(each) for each in named]
        else:
            files = sorted(each for each in path.rglob("*") if each.is_file() and not _hidden(each, path))
        if not files:
            raise DataError(f"{key}={spec} is an empty folder: it holds no file to read")
    elif glob.has_magic(spec):
        files = sorted(Path(each) for each in glob.glob(str(path), recursive=True) if os.path.isfile(each))
        if not files:
            raise DataError(f"{key}={spec} matches no file (current folder: {os.getcwd()})")
        root = Path(os.path.commonpath([each.parent for each in files]))
    else:
        raise DataError(f"{key}={spec} does not exist (current folder: {os.getcwd()})")
    text = []
    for each in files:
        if _is_binary(each):
            binary.append(str(each))
        else:
            text.append((str(each), each.relative_to(root).as_posix()))
    if not text:
        raise DataError(f"{key}={spec} holds no text: {len(files)} files, all binary")
    return text


def _stdlib(key: str) -> list[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(each for each in folders if each not in STDLIB_SKIP and not each.startswith("config-"))
        for name in sorted(names):
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                path = Path(folder, name)
                files.append((str(path), path.relative_to(root).as_posix()))
    if not files:
        raise DataError(f"{key}=stdlib: no Python sources in {root}; give a folder of text instead")
    return files


def _manifest(folder: Path) -> dict[str, str] | None:
    """Path -> split, from the folder's manifest.csv (columns file, split); None where there is none such."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if not {"file", "split"} <= set(rows.fieldnames or ()):
            return None
        splits = {}
        for row in rows:
            if row["split"] not in MANIFEST_SPLITS:
                known = ", ".join(MANIFEST_SPLITS)
                raise DataError(f"{path}:{rows.line_num}: split {row['split']!r} is none of {known}")
            splits[str(_existing(folder, row["file"]))] = MANIFEST_SPLITS[row["split"]]
    return splits


def _existing(folder: Path, name: str) -> Path:
    for candidate in (name, name + ".gz", name + ".txt.gz", name + ".txt"):
        if (folder / candidate).is_file():
            return folder / candidate
    raise DataError(f"{folder / MANIFEST} names {name}, but neither {name} nor {name}.gz is in {folder}")


def _split_by_name(found: list[tuple[str, str]], fraction: float) -> list[Source]:
    """Each text file on one side; a lone text file gives its tail; a JSONL file is split by document."""
    sources = [_source(path, name, BY_DOCUMENT) for path, name in found]
    whole = [source for source in sources if not source.jsonl]
    if fraction == 0:
        return [dataclasses.replace(source, split=TRAIN) for source in sources]
    if len(sources) == 1 and whole:
        return [dataclasses.replace(sources[0], split=BY_TAIL)]
    held_out = {source.name for source in whole if stable_hash(source.name) < fraction}
    if len(whole) > 1:  # a small folder must not end up with nothing on one side
        ranked = sorted((source.name for source in whole), key=stable_hash)
        held_out = (held_out or {ranked[0]}) - {ranked[-1]}
    split = {source.name: VALID if source.name in held_out else TRAIN for source in whole}
    return [dataclasses.replace(source, split=split.get(source.name, BY_DOCUMENT)) for source in sources]


def _source(path: str, name: str, split: str) -> Source:
    stat = os.stat(path)
    return Source(path, name, stat.st_size, stat.st_mtime_ns, split)


def _plain_suffix(path: str) -> str:
    return PurePosixPath(path.removesuffix(".gz")).suffix.lower()


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(root).parts)


def _is_binary(path: Path) -> bool:
    """Whether the first bytes hold a NUL, as images, archives and weights do and text does not."""
    if path.name.endswith(".gz"):
        return False
    try:
        with open(path, "rb") as file:
            return b"\0" in file.read(8192)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error

"""Finds the files a config points at, on this machine or behind a URL, each with its split."""

import dataclasses
import glob
import os
import sysconfig
from pathlib import Path

from jaxlm.data.config import STDLIB, DataConfig, DataError
from jaxlm.data.sources import pairs, remote, splits, tfds
from jaxlm.data.sources.opening import is_url, raw, reported
from jaxlm.data.sources.source import TEST, TRAIN, UNDECIDED, VALID, Source, stable_hash

# Not prose and not code: generated tables, test fixtures, what other projects installed.
STDLIB_SKIP = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "pydoc_data",
               "encodings", "ensurepip", "lib-dynload"}  # fmt: skip


def find_sources(config: DataConfig) -> tuple[list[Source], list[str]]:
    """Every file with its split, in an order given by hashes of the names; and the binary files left out.

    What is held out is decided by, in this order: `data.validation`; the data set itself (a manifest.csv, the
    splits of a Hugging Face or TensorFlow data set, file names such as validation-00000-of-00001.parquet beside
    train-...); a stable hash of names, the same on every machine, which does not move when files are added.
    """
    binary: list[str] = []
    found = _list(config, config.path, "data.path", binary)
    if config.validation is None:
        sources = splits.split_by_hash(found, config.validation_fraction)
    else:
        held_out = _list(config, config.validation, "data.validation", binary)
        held_out = [source for source in held_out if source.split in (VALID, TEST)] or held_out
        theirs = {_identity(source) for source in held_out}
        ours = [source for source in found if source.split in (TRAIN, UNDECIDED) and _identity(source) not in theirs]
        if not ours:
            raise DataError(f"data.path={config.path} holds no file outside data.validation={config.validation}")
        sources = [dataclasses.replace(source, split=TRAIN) for source in ours]
        sources += [dataclasses.replace(source, split=VALID) for source in held_out]
    return sorted(sources, key=lambda source: (source.split == TRAIN, stable_hash(source.name))), binary


def _identity(source: Source) -> tuple[str, str]:
    return (source.path if is_url(source.path) else os.path.realpath(source.path), source.part)


def _list(config: DataConfig, spec: str, key: str, binary: list[str]) -> list[Source]:
    """The files that a folder, glob, file, URL, data set name or the word `stdlib` stands for."""
    if config.parallel is not None:
        return list(pairs.find(spec, key, config.parallel))
    if spec == STDLIB:
        return _stdlib(key)
    if spec.startswith(tfds.PREFIX):
        return tfds.find(spec, key)
    if not is_url(spec) and tfds.is_prepared(Path(spec).expanduser()):
        return tfds.shards(Path(spec).expanduser(), f"{key}={spec}")
    files = remote.find(spec, key) if is_url(spec) else _local(spec, key)
    text = []
    for source in files:
        if _is_binary(source):
            binary.append(source.path)
        else:
            text.append(source)
    if not text:
        raise DataError(f"{key}={spec} holds no text: {len(files)} files, all binary")
    return text


def _local(spec: str, key: str) -> list[Source]:
    path = Path(spec).expanduser()
    if path.is_file():
        return [_source(path, path.name)]
    if path.is_dir():
        names = {each.relative_to(path).as_posix(): each for each in sorted(path.rglob("*")) if each.is_file()}
        files = [_source(each, name) for name, each in names.items() if not remote.hidden(name)]
        if not files:
            raise DataError(f"{key}={spec} is an empty folder: it holds no file to read")
        return splits.given(files, str(path))
    if glob.has_magic(spec):
        files = sorted(Path(each) for each in glob.glob(str(path), recursive=True) if os.path.isfile(each))
        if not files:
            raise DataError(f"{key}={spec} matches no file (current folder: {os.getcwd()})")
        root = Path(os.path.commonpath([each.parent for each in files]))
        return splits.named([_source(each, each.relative_to(root).as_posix()) for each in files])
    raise DataError(f"{key}={spec} does not exist (current folder: {os.getcwd()})")


def _stdlib(key: str) -> list[Source]:
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(each for each in folders if each not in STDLIB_SKIP and not each.startswith("config-"))
        for name in sorted(names):
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                path = Path(folder, name)
                files.append(_source(path, path.relative_to(root).as_posix()))
    if not files:
        raise DataError(f"{key}=stdlib: no Python sources in {root}; give a folder of text instead")
    return files


def _source(path: Path, name: str) -> Source:
    stat = os.stat(path)
    return Source(str(path), name, stat.st_size, stat.st_mtime_ns, UNDECIDED)


def _is_binary(source: Source) -> bool:
    """Whether the first bytes hold a NUL, as images, archives and weights do and text does not."""
    if source.compression or source.format not in ("text", "jsonl"):
        return False
    with reported(source.path), raw(source.path) as file:
        return b"\0" in file.read(8192)

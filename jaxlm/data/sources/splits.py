"""Decides which text is held out: by a manifest, by the names a data set gives its parts, or by hashes of names."""

import csv
import dataclasses
import io
import json
import re
from pathlib import PurePosixPath
from typing import Any

from jaxlm.data.config import DataError
from jaxlm.data.sources.opening import raw, reported
from jaxlm.data.sources.source import (
    BY_DOCUMENT,
    BY_TAIL,
    TEST,
    TRAIN,
    UNDECIDED,
    VALID,
    Source,
    stable_hash,
)

MANIFEST = "manifest.csv"
NAMES = {
    "train": TRAIN,
    "valid": VALID,
    "val": VALID,
    "validation": VALID,
    "dev": VALID,
    "test": TEST,
}
IN_FILE_NAME = re.compile(rf"(?:^|[-_.])({'|'.join(NAMES)})(?=[-_.]|$)")  # c4-train.00000-of-01024.json.gz
DESCRIPTION = re.compile(r"(readme|licen[cs]e|dataset_infos?|dataset_dict|state)(\.(md|txt|json))?")


def given(sources: list[Source], root: str) -> list[Source]:
    """What a folder says itself about its files: those to read, and their splits where it gives any."""
    by_name = {source.name: source for source in sources}
    for said in (_manifest(by_name, root), _saved(by_name, root)):
        if said is not None:
            return said
    return named(sources)


def named(sources: list[Source]) -> list[Source]:
    """Files of many documents split by their names (train-00000-of-00002.parquet, test/00.jsonl), where these
    name both training and held-out text. What describes such a data set, or tables, is no text to learn."""
    sides = {source.name: side_of(source.name) for source in sources if source.many and not _describes(source)}
    if telling := {TRAIN} < set(sides.values()) - {None}:
        split = {name: side or TRAIN for name, side in sides.items()}
        sources = [dataclasses.replace(source, split=split.get(source.name, UNDECIDED)) for source in sources]
    if telling or any(source.format in ("parquet", "arrow") for source in sources):
        sources = [source for source in sources if not _describes(source)]
    return sources


def roles(names: list[str], chosen: list[str] | None, what: str) -> dict[str, str]:
    """The side of each split of a data set by name; `chosen` keeps some, each with its `-validation` and `-test`.

    Where no split is held out by name, the others are undecided.
    """
    listed = ", ".join(names)
    if unknown := [name for name in chosen or () if name not in names]:
        raise DataError(f"{what}: there is no split {', '.join(unknown)}; there are {listed}")
    sides, unclear = {}, []
    for name in names:
        of, _, side = name.rpartition("-")  # de-validation, of mC4
        paired = of in names and side in ("validation", "test")
        if chosen is not None and name not in chosen and not (paired and of in chosen):
            continue
        if name in NAMES or paired:
            sides[name] = NAMES[side if paired else name]
        else:
            sides[name] = TRAIN
            if chosen is None and f"{name}-validation" not in names:
                unclear.append(name)
    if unclear:
        raise DataError(
            f"{what} has splits whose use is not clear from their names ({', '.join(unclear)} of {listed}): "
            f"choose those to read, as in tfds:NAME[{names[0]}]"
        )
    if TRAIN in sides.values() and len(set(sides.values())) == 1:
        return dict.fromkeys(sides, UNDECIDED)
    return sides


def split_by_hash(sources: list[Source], fraction: float) -> list[Source]:
    """What is undecided: each text file on one side; a lone text file gives its tail; others by document."""
    undecided = [source for source in sources if source.split == UNDECIDED]
    whole = [source for source in undecided if not source.many]
    held_out = {source.name for source in whole if stable_hash(source.name) < fraction}
    if len(whole) > 1:  # a small folder must not end up with nothing on one side
        ranked = sorted((source.name for source in whole), key=stable_hash)
        held_out = (held_out or {ranked[0]}) - {ranked[-1]}
    rules = {source.name: VALID if source.name in held_out else TRAIN for source in whole}
    if len(sources) == 1 and whole:
        rules = {whole[0].name: BY_TAIL}
    if fraction == 0:
        rules = dict.fromkeys((source.name for source in undecided), TRAIN)
    return [
        dataclasses.replace(source, split=rules.get(source.name, BY_DOCUMENT)) if source.split == UNDECIDED else source
        for source in sources
    ]


def side_of(name: str) -> str | None:
    """The side that a file name, else its innermost telling folder, speaks of."""
    *folders, file = PurePosixPath(name).parts
    if found := IN_FILE_NAME.findall(file):
        return NAMES[found[-1]]
    return next((NAMES[folder] for folder in reversed(folders) if folder in NAMES), None)


def _describes(source: Source) -> bool:
    return DESCRIPTION.fullmatch(PurePosixPath(source.name).name.lower()) is not None


def _manifest(by_name: dict[str, Source], root: str) -> list[Source] | None:
    """The files that the folder's manifest.csv names (columns file, split); None where there is none such."""
    if MANIFEST not in by_name:
        return None
    path = by_name[MANIFEST].path
    rows = csv.DictReader(io.StringIO(_content(path).decode("utf-8"), newline=""))
    if not {"file", "split"} <= set(rows.fieldnames or ()):
        return None
    sources = {}
    for row in rows:
        if row["split"] not in NAMES:
            raise DataError(f"{path}:{rows.line_num}: split {row['split']!r} is none of {', '.join(NAMES)}")
        name = row["file"]
        candidates = (name, name + ".gz", name + ".zst", name + ".txt.gz", name + ".txt.zst", name + ".txt")
        there = next((by_name[each] for each in candidates if each in by_name), None)
        if there is None:
            raise DataError(f"{path} names {name}, but neither {name} nor {name}.gz is in {root}")
        sources[there.name] = dataclasses.replace(there, split=NAMES[row["split"]])
    return list(sources.values())


def _saved(by_name: dict[str, Source], root: str) -> list[Source] | None:
    """The files of a folder that `datasets` wrote with save_to_disk; None where it did not."""
    if "dataset_dict.json" not in by_name:
        return _parts(by_name, "", UNDECIDED) if {"state.json", "dataset_info.json"} <= set(by_name) else None
    names = _said(by_name["dataset_dict.json"].path, "splits")
    if unknown := [name for name in names if name not in NAMES]:
        raise DataError(
            f"{root} has splits whose use is not clear from their names ({', '.join(unknown)} of {', '.join(names)}): "
            "give one of its folders as data.path, another as data.validation"
        )
    sides = {name: NAMES[name] for name in names}
    if set(sides.values()) == {TRAIN}:
        sides = dict.fromkeys(names, UNDECIDED)
    return [source for name, side in sides.items() for source in _parts(by_name, f"{name}/", side)]


def _parts(by_name: dict[str, Source], prefix: str, side: str) -> list[Source]:
    state = by_name.get(f"{prefix}state.json")
    if state is None:
        raise DataError(f"dataset_dict.json names {prefix} but there is no {prefix}state.json beside it")
    sources = []
    for entry in _said(state.path, "_data_files"):
        part = by_name.get(prefix + entry["filename"])
        if part is None:
            raise DataError(f"{state.path} names {entry['filename']}, which is not there")
        sources.append(dataclasses.replace(part, split=side))
    return sources


def _said(path: str, key: str) -> list[Any]:
    """A list in a JSON file of a data set."""
    try:
        return list(json.loads(_content(path))[key])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not what `datasets` writes: {type(error).__name__}: {error}") from error


def _content(path: str) -> bytes:
    with reported(path), raw(path) as file:
        return file.read()

"""Finds and reads parallel text: pairs of a source and its translation, the target.

Two files of lines (train.en and train.de, as Multi30k and WMT have them), a TSV file of two columns, or a JSONL file
with a key per language, by itself or in `translation`. Line n of one file belongs to line n of the other, so lines end
at a newline byte and nowhere else: text holds U+2028 and the like.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from jaxlm.data.config import DataError, Parallel
from jaxlm.data.sources import splits
from jaxlm.data.sources.opening import is_url, opened
from jaxlm.data.sources.source import COMPRESSIONS, TRAIN, UNDECIDED, Corrupt, Row, Source

TSV, JSONL = ".tsv", ".jsonl"


@dataclasses.dataclass(frozen=True, slots=True)
class Pairs(Source):
    """A file of pairs; of two files, the one with the sources, and `other` is the one with the targets."""

    languages: tuple[str, str] = ("", "")
    other: Source | None = None

    @property
    def format(self) -> str:
        return "pairs"


def find(spec: str, key: str, parallel: Parallel) -> list[Pairs]:
    """The files of pairs in a folder (not in folders within it), or the one file, each with the split of its name.

    Raises DataError where there are none, where one of two files is missing, and where some names of a folder tell the
    split and others do not.
    """
    path = Path(spec).expanduser()
    if is_url(spec) or not path.exists():
        where = "is a URL: pairs are read from this machine" if is_url(spec) else "does not exist"
        raise DataError(f"{key}={spec} {where} (current folder: {os.getcwd()}); give {_wanted(parallel)}")
    if path.is_file():
        if _bare(path.name)[1] not in (TSV, JSONL):
            raise DataError(f"{key}={spec} is no file of pairs; give {_wanted(parallel)}")
        return [_whole(path, parallel)]
    files = {each.name: each for each in sorted(path.iterdir()) if each.is_file() and not each.name.startswith(".")}
    found = [pair for name in files if (pair := _pair(files, name, spec, key, parallel))]
    if not found:
        listed = ", ".join(list(files)[:5]) or "nothing"
        raise DataError(f"{key}={spec} holds no pairs, but {listed}; give {_wanted(parallel)}")
    return _with_splits(found, spec, key)


def _wanted(parallel: Parallel) -> str:
    source, target = parallel.source, parallel.target
    return f"a folder with files such as train.{source} and train.{target}, or a .tsv or .jsonl file"


def _bare(name: str) -> tuple[str, str]:
    """`train.en.gz` as `train` and `.en`."""
    path = Path(name)
    path = path.with_suffix("") if path.suffix in COMPRESSIONS else path
    return path.stem, path.suffix


def _pair(files: dict[str, Path], name: str, spec: str, key: str, parallel: Parallel) -> Pairs | None:
    """The pairs of which this file is the first; None where it is not a first one."""
    stem, suffix = _bare(name)
    if suffix in (TSV, JSONL):
        return _whole(files[name], parallel)
    languages = (parallel.source, parallel.target)
    if suffix not in (f".{language}" for language in languages):
        return None
    sides = [[each for each in files if _bare(each) == (stem, f".{language}")] for language in languages]
    for side, language in zip(sides, languages, strict=True):
        if not side:
            raise DataError(f"{key}={spec} holds {name} and no {stem}.{language} that goes with it")
        if len(side) > 1:
            raise DataError(f"{key}={spec} holds the same text twice: {' and '.join(side)}; remove one of them")
    if suffix != f".{parallel.source}":
        return None
    path, stat, other = files[name], os.stat(files[name]), _source(files[sides[1][0]])
    return Pairs(str(path), name, stat.st_size, stat.st_mtime_ns, UNDECIDED, languages=languages, other=other)


def _whole(path: Path, parallel: Parallel) -> Pairs:
    stat = os.stat(path)
    languages = (parallel.source, parallel.target)
    return Pairs(str(path), path.name, stat.st_size, stat.st_mtime_ns, UNDECIDED, languages=languages)


def _source(path: Path) -> Source:
    stat = os.stat(path)
    return Source(str(path), path.name, stat.st_size, stat.st_mtime_ns, UNDECIDED)


def _with_splits(found: list[Pairs], spec: str, key: str) -> list[Pairs]:
    """Each with the split that its name tells, where the names tell both training and held-out text."""
    sides = {pairs.name: splits.side_of(_bare(pairs.name)[0]) for pairs in found}
    if not {TRAIN} < set(sides.values()) - {None}:
        return found
    if unclear := [name for name, side in sides.items() if side is None]:
        raise DataError(
            f"{key}={spec}: {', '.join(unclear)} may be for training or for testing; rename it so that it says which, "
            f"as in train-{unclear[0]}, or move it away"
        )
    return [dataclasses.replace(pairs, split=sides[pairs.name] or TRAIN) for pairs in found]


def read_pairs(source: Source, tell: Callable[[int], None]) -> Iterator[Row | Corrupt]:
    """The pairs of one source; a side that is empty, or cannot be read, is a Corrupt in its place.

    Raises DataError where two files have different numbers of lines.
    """
    assert isinstance(source, Pairs)
    if source.other is not None:
        yield from _two_files(source, source.other, tell)
        return
    parse = _from_json if _bare(source.name)[1] == JSONL else _Columns(source.languages)
    with opened(source) as (file, lines):
        for number, line in enumerate(lines, 1):
            if isinstance(parse, _Columns) and number == 1 and parse.is_header(line):
                continue
            place = f"{source.path}:{number}"
            yield _checked(source, number, (place, place), parse(line, source.languages))
            tell(file.tell())


def _two_files(source: Pairs, other: Source, tell: Callable[[int], None]) -> Iterator[Row | Corrupt]:
    with opened(source) as (file, ours), opened(other) as (_, theirs):
        for number, sides in enumerate(itertools.zip_longest(ours, theirs), 1):
            if None in sides:
                counts = (_count(number, sides[0], ours), _count(number, sides[1], theirs))
                raise DataError(
                    f"{source.path} has {counts[0]:,} lines and {other.path} {counts[1]:,}: line n of one must be the "
                    "translation of line n of the other"
                )
            where = (f"{source.path}:{number}", f"{other.path}:{number}")
            yield _checked(source, number, where, sides)
            tell(file.tell())


def _count(number: int, line: bytes | None, lines: IO[bytes]) -> int:
    """All lines of a file that has been read up to line `number`, which is `line`."""
    return number - 1 if line is None else number + sum(1 for _ in lines)


Sides = tuple[bytes | str | None, bytes | str | None] | str
"""Source and target, None for one that is missing; or what is wrong with both."""


class _Columns:
    """Splits the lines of a TSV file: by the languages in its first line, else into source and target."""

    def __init__(self, languages: tuple[str, str]):
        self.languages, self.columns, self.order = languages, 2, (0, 1)

    def is_header(self, line: bytes) -> bool:
        names = line.decode("utf-8", "replace").rstrip("\r\n").split("\t")
        if not set(self.languages) <= set(names):
            return False
        self.columns = len(names)
        self.order = (names.index(self.languages[0]), names.index(self.languages[1]))
        return True

    def __call__(self, line: bytes, languages: tuple[str, str]) -> Sides:
        fields = line.split(b"\t")
        if len(fields) != self.columns:
            return f"{len(fields)} columns instead of {self.columns}" if line.strip() else "the line is empty"
        return fields[self.order[0]], fields[self.order[1]]


def _from_json(line: bytes, languages: tuple[str, str]) -> Sides:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({getattr(error, 'msg', error)})" if line.strip() else "the line is empty"
    if isinstance(record, dict) and isinstance(record.get("translation"), dict):
        record = record["translation"]
    if not isinstance(record, dict):
        return "not a JSON object"
    absent = [f"`{name}`" for name in languages if not isinstance(record.get(name), str)]
    return f"no {' and no '.join(absent)} string" if absent else (record[languages[0]], record[languages[1]])


def _checked(source: Pairs, number: int, where: tuple[str, str], sides: Sides) -> Row | Corrupt:
    if isinstance(sides, str):
        return Corrupt(where[0], sides)
    texts = []
    for language, place, side in zip(source.languages, where, sides, strict=True):
        try:
            text = side.decode("utf-8") if isinstance(side, bytes) else str(side)
            text.encode("utf-8")
        except UnicodeDecodeError as error:
            return Corrupt(place, f"not UTF-8 (byte 0x{error.object[error.start]:02x})")
        except UnicodeEncodeError:
            return Corrupt(place, f"`{language}` holds a lone surrogate, which has no UTF-8 form")
        if not text.strip():
            return Corrupt(place, f"the {language} side is empty")
        texts.append(text.strip())
    return Row(number, texts[1], None, prompt=texts[0])

"""One labelled text as every loader gives it, and how raw text becomes words."""

import csv
import gzip
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxlm.data.config import DataError

TRAIN, VALID, TEST = "train", "valid", "test"

WORD = re.compile(r"<[a-z]+>|\w+(?:'\w+)?|[^\w\s]")
"""A placeholder such as <user>, a word with its apostrophe, or one character that is neither."""


@dataclass(frozen=True, slots=True)
class Post:
    """One labelled text.

    Attributes:
        id: what the data set calls it.
        words: its words, lower case.
        label: index into the classes of its data set.
        split: train, valid or test.
        rationale: per word whether a person marked it as a reason; None where nobody was asked.
        groups: groups that people, not word lists, say it speaks of; None where nobody was asked.
    """

    id: str
    words: tuple[str, ...]
    label: int
    split: str
    rationale: tuple[bool, ...] | None = None
    groups: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Labelled:
    """A data set of labelled texts.

    Attributes:
        name: e.g. HateXplain.
        licence: under which it may be used.
        classes: names; class 0 is the harmless one, so that the score of a text is 1 - p(class 0).
        posts: its rows, in the order of the file.
        left_out: rows that could not be used, by reason.
    """

    name: str
    licence: str
    classes: tuple[str, ...]
    posts: tuple[Post, ...]
    left_out: dict[str, int] = field(default_factory=dict)

    def split(self, name: str) -> list[Post]:
        return [post for post in self.posts if post.split == name]


def words(text: str) -> tuple[str, ...]:
    """The lower-case words and signs of a text."""
    return tuple(WORD.findall(text.lower()))


def find(path: str | Path, key: str, names: Sequence[str]) -> Path:
    """The file at `path`, or the first of `names` (each also with .gz) in the folder there. Raises DataError."""
    found = Path(path).expanduser()
    if found.is_dir():
        there = [found / f"{name}{end}" for name in names for end in ("", ".gz")]
        found = next((each for each in there if each.is_file()), there[0])
    if not found.is_file():
        raise DataError(f"{key}={path}: there is no file {found}; expected {' or '.join(names)}, plain or .gz")
    return found


def opened(path: Path) -> io.TextIOBase:
    """A UTF-8 text file, plain or .gz. Raises DataError."""
    try:
        if path.suffix == ".gz":
            return io.TextIOWrapper(gzip.open(path), "utf-8", newline="")
        return path.open(encoding="utf-8", newline="")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def table(path: Path, needed: Iterable[str]) -> Iterator[dict[str, str]]:
    """The rows of a CSV file with a header. Raises DataError naming the columns that are missing."""
    csv.field_size_limit(1 << 24)
    try:
        with opened(path) as file:
            rows = csv.DictReader(file)
            require(path, needed, rows.fieldnames or ())
            yield from rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no readable CSV file: {error}") from error


def records(path: Path, needed: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file. Raises DataError naming the line, and the keys that are missing in it."""
    try:
        with opened(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        row = json.loads(line)
                    except ValueError as error:
                        raise DataError(f"{path}:{number} is no JSON: {error}") from error
                    require(f"{path}:{number}", needed, row)
                    yield row
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no readable text: {error}") from error


def require(where: object, needed: Iterable[str], there: Iterable[str]) -> None:
    """Raises DataError for columns that are not there."""
    if missing := [name for name in needed if name not in there]:
        raise DataError(f"{where} has no column {', '.join(missing)}; it has {', '.join(list(there)[:12]) or 'none'}")


def usable(posts: Sequence[Post], where: object) -> tuple[Post, ...]:
    """Raises DataError for a file without a row."""
    if not posts:
        raise DataError(f"{where} holds no row")
    return tuple(posts)

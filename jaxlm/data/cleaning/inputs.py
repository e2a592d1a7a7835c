"""Finds the files to clean and reads the pages of each, whatever their format."""

import dataclasses
import glob
import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from jaxlm.data.cleaning.archive import read_archive
from jaxlm.data.cleaning.pages import Corrupt, Item, Page, from_seconds, timestamp
from jaxlm.data.config import DataError
from jaxlm.data.sources.opening import opened
from jaxlm.data.sources.source import UNDECIDED, Source

Kind = Literal["archive", "jsonl", "html"]
KINDS: dict[str, Kind] = {
    ".warc": "archive",
    ".wet": "archive",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
}
KNOWN = ".warc, .wet, .html, .htm, .xhtml (also .gz), .jsonl and .json (also .gz and .zst)"
REPORT = "report.json"  # what a cleaning leaves beside its text is no input of the next
FILES_PER_BATCH = 500  # saved pages are one file each: so many are cleaned, and kept when interrupted, together


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    """One file: `name` is its path below the input folder, the same on every machine."""

    path: str
    name: str
    bytes: int
    modified: int  # nanoseconds since 1970
    kind: Kind

    @property
    def source(self) -> Source:
        return Source(self.path, self.name, self.bytes, self.modified, UNDECIDED)

    def read(self, tell: Callable[[int], None]) -> Iterator[Item]:
        """Its pages, and what is none. `tell` hears how many bytes of it have been read."""
        read = {"archive": _archive, "jsonl": _lines, "html": _html}[self.kind]
        try:
            yield from read(self, tell)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror or error}") from error
        tell(self.bytes)


def find_inputs(spec: str, out: Path) -> tuple[list[Input], list[str]]:
    """The files that a folder, glob or file stands for, by name, and those of other kinds; nothing from `out`."""
    path = Path(spec).expanduser()
    if path.is_file():
        files, root = [path], path.parent
    elif path.is_dir():
        files, root = list(path.rglob("*")), path
    elif glob.has_magic(spec):
        files = [Path(each) for each in glob.glob(str(path), recursive=True)]
        root = Path(os.path.commonpath([each.parent for each in files])) if files else path
    else:
        raise DataError(f"input {spec} does not exist (current folder: {os.getcwd()})")
    inputs, others, ours = [], [], out.resolve()
    if ours in (root.resolve(), *root.resolve().parents):
        raise DataError(f"out={out} is where the input lies: give a folder of its own")
    for each in sorted(files, key=lambda each: each.relative_to(root).as_posix()):
        name = each.relative_to(root)
        hidden = any(part.startswith(".") for part in name.parts)
        if hidden or not each.is_file() or name.name == REPORT or ours in each.resolve().parents:
            continue
        if (kind := kind_of(each)) is None:
            others.append(str(each))
        else:
            stat = each.stat()
            inputs.append(Input(str(each), name.as_posix(), stat.st_size, stat.st_mtime_ns, kind))
    if not inputs:
        seen = f"; {len(others):,} of other kinds, {others[0]} first" if others else ""
        raise DataError(f"input {spec} holds no file to clean{seen}. These are read: {KNOWN}")
    return inputs, others


def kind_of(path: Path) -> Kind | None:
    """How a file is read, by its name."""
    packed = path.suffix.lower()
    name = path.with_suffix("") if packed in (".gz", ".zst") else path
    kind = KINDS.get(name.suffix.lower())
    return None if packed == ".zst" and kind != "jsonl" else kind


def batches(inputs: list[Input]) -> list[tuple[Input, ...]]:
    """What is cleaned in one go: each file by itself, saved pages many together."""
    found: list[tuple[Input, ...]] = []
    together: list[Input] = []
    for each in inputs:
        if each.kind == "html" and len(together) < FILES_PER_BATCH:
            together.append(each)
            continue
        if together:
            found.append(tuple(together))
        together = [each] if each.kind == "html" else []
        if not together:
            found.append((each,))
    return [*found, tuple(together)] if together else found


def _archive(file: Input, tell: Callable[[int], None]) -> Iterator[Item]:
    return read_archive(file.path, tell)


def _html(file: Input, tell: Callable[[int], None]) -> Iterator[Item]:
    from jaxlm.data.cleaning.extraction import own_url

    try:
        with opened(file.source) as (_, stream):
            content = stream.read()
    except DataError as error:
        yield _damage(file.path, error)
        return
    url = own_url(content) or _place(file)
    yield Page(url, from_seconds(file.modified / 1e9), content)


def _lines(file: Input, tell: Callable[[int], None]) -> Iterator[Item]:
    number = 0
    try:
        with opened(file.source) as (raw, stream):
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield _from_json(line, file, number)
                    tell(raw.tell())
    except DataError as error:
        yield _damage(f"{file.path}:{number + 1}", error)


def _damage(where: str, error: DataError) -> Corrupt:
    """Compressed content that is damaged counts as corrupt; a file that cannot be opened or read stops the work."""
    if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, gzip.BadGzipFile):
        raise error
    return Corrupt(where, f"this and what follows cannot be unpacked ({error.__cause__ or error})")


def _from_json(line: bytes, file: Input, number: int) -> Item:
    where = f"{file.path}:{number}"
    try:
        record = json.loads(line)
        text, url, when = record["text"], record.get("url"), record.get("timestamp")
        f"{text}{url}".encode()
        text.strip()
    except UnicodeDecodeError as error:
        return Corrupt(where, f"not UTF-8 (byte 0x{line[error.start]:02x})")
    except UnicodeEncodeError:
        return Corrupt(where, "a lone surrogate, which has no UTF-8 form")
    except (json.JSONDecodeError, RecursionError) as error:
        return Corrupt(where, f"not JSON ({getattr(error, 'msg', 'nested too deep')})")
    except (TypeError, KeyError, IndexError, AttributeError):
        return Corrupt(where, "no `text` string in this line")
    url = url if isinstance(url, str) and url else f"{_place(file)}#{number}"
    return Page(url, timestamp(when if isinstance(when, str) else None), text)


def _place(file: Input) -> str:
    """What stands for the URL of a page that has none."""
    return f"file:{quote(file.name)}"

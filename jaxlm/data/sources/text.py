"""Reads text files, each one document, and JSONL files (C4 format: `text`, `url`, `timestamp`), one per line."""

import json
from collections.abc import Callable, Iterator

from jaxlm.data.sources.opening import opened
from jaxlm.data.sources.source import BY_TAIL, TRAIN, VALID, Corrupt, Document, Row, Source, checked


def read_whole(source: Source, validation_fraction: float) -> Iterator[Document | Corrupt]:
    """The one document of a text file; two where its tail is held out."""
    with opened(source) as (_, stream):
        content = stream.read()
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


def read_jsonl(source: Source, tell: Callable[[int], None]) -> Iterator[Row | Corrupt]:
    """The lines of a JSONL file; empty ones are no documents, but count as lines."""
    with opened(source) as (file, stream):
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield _parsed(source, number, line)
                tell(file.tell())


def _parsed(source: Source, number: int, line: bytes) -> Row | Corrupt:
    where = f"{source.path}:{number}"
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        return Corrupt(where, f"not UTF-8 (byte 0x{line[error.start]:02x})")
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        why = "nested too deep" if isinstance(error, RecursionError) else getattr(error, "msg", error)
        return Corrupt(where, f"not JSON ({why})")
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        return Corrupt(where, "no `text` string in this line")
    return checked(source, number, record["text"], record.get("url"))

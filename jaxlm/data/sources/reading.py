"""Reads any source document by document, each with the split it belongs to."""

from collections.abc import Callable, Iterator

from jaxlm.data.sources import tfds
from jaxlm.data.sources.columns import read_arrow, read_parquet
from jaxlm.data.sources.pairs import read_pairs
from jaxlm.data.sources.source import BY_DOCUMENT, TRAIN, VALID, Corrupt, Document, Source, stable_hash
from jaxlm.data.sources.text import read_jsonl, read_whole

READERS = {"jsonl": read_jsonl, "parquet": read_parquet, "arrow": read_arrow, "tfds": tfds.read,
           "pairs": read_pairs}  # fmt: skip


def read(
    source: Source, validation_fraction: float, tell: Callable[[int], None] | None = None
) -> Iterator[Document | Corrupt]:
    """The documents of one file in order. `tell` hears how many bytes of the file have been read.

    What is wrong with one document is a Corrupt in its place; a file that is damaged as a whole (compression,
    container) is a DataError.
    """
    if not source.many:
        yield from read_whole(source, validation_fraction)
        return
    for row in READERS[source.format](source, tell or (lambda _: None)):
        if isinstance(row, Corrupt):
            yield row
            continue
        split = source.split
        if split == BY_DOCUMENT:
            name = row.url or f"{source.name}:{row.number}"
            split = VALID if stable_hash(name) < validation_fraction else TRAIN
        yield Document(row.text, split, row.prompt)

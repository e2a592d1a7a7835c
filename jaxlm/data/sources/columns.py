"""Reads Parquet files and Arrow files (Hugging Face `datasets`) batch by batch: columns `text` and `url`."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

from jaxlm.data.config import DataError
from jaxlm.data.sources.opening import opened
from jaxlm.data.sources.source import Corrupt, Row, Source, checked

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 128  # rows held at a time
BUFFER = 1 << 20  # bytes of a column chunk read at a time, instead of the whole chunk
ARROW_FILE = b"ARROW1"  # how the Arrow file format begins; `datasets` writes the stream format, which has no mark


def read_parquet(source: Source, tell: Callable[[int], None]) -> Iterator[Row | Corrupt]:
    """The rows of a Parquet file. `tell` hears the share of the rows that have been read, as bytes of the file."""
    import pyarrow.parquet as parquet

    with opened(source) as (_, stream):
        with _damage(source):
            file = parquet.ParquetFile(stream, pre_buffer=False, buffer_size=BUFFER, page_checksum_verification=True)
            columns = _columns(source, file.schema_arrow)
        rows = max(file.metadata.num_rows, 1)
        batches = file.iter_batches(batch_size=BATCH, columns=columns, use_threads=False)
        yield from _rows(source, batches, lambda number: tell(source.bytes * number // rows))


def read_arrow(source: Source, tell: Callable[[int], None]) -> Iterator[Row | Corrupt]:
    """The rows of an Arrow file, in the stream format or the file format."""
    import pyarrow as pa

    with opened(source) as (file, stream):
        with _damage(source):
            begins = stream.read(len(ARROW_FILE))
            stream.seek(0)
            if begins == ARROW_FILE:
                whole = pa.ipc.open_file(stream)
                schema = whole.schema
                batches = (whole.get_batch(index) for index in range(whole.num_record_batches))
            else:
                batches = pa.ipc.open_stream(stream)
                schema = batches.schema
            _columns(source, schema)
        yield from _rows(source, batches, lambda _: tell(file.tell()))


def _rows(source: Source, batches: Any, tell: Callable[[int], None]) -> Iterator[Row | Corrupt]:
    number, batches = 0, iter(batches)
    while True:
        with _damage(source):
            batch = cast("pa.RecordBatch | None", next(batches, None))
        if batch is None:
            return
        for start in range(0, batch.num_rows, BATCH):
            part = batch.slice(start, BATCH)
            with _damage(source):
                texts = _values(part, "text")
                urls = _values(part, "url") if "url" in part.schema.names else [None] * len(texts)
            for text, url in zip(texts, urls, strict=True):
                number += 1
                yield checked(source, number, text, url)
                tell(number)


def _columns(source: Source, schema: "pa.Schema") -> list[str]:
    """The columns to read; refuses a file without texts in `text`."""
    if "text" not in schema.names:
        raise DataError(f"{source.path} has no column `text`; it has {', '.join(schema.names) or 'none'}")
    if not _is_text(kind := schema.field("text").type):
        raise DataError(f"{source.path}: column `text` holds {kind}, not strings")
    return [name for name in ("text", "url") if name in schema.names and _is_text(schema.field(name).type)]


def _is_text(kind: "pa.DataType") -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = cast("pa.DictionaryType", kind).value_type
    return any(is_kind(kind) for is_kind in (types.is_string, types.is_large_string, types.is_string_view,
                                             types.is_binary, types.is_large_binary, types.is_binary_view))  # fmt: skip


def _values(batch: "pa.RecordBatch", name: str) -> list[bytes | None]:
    """A column as bytes, not strings, so that one text that is not UTF-8 costs one row and not the batch."""
    import pyarrow as pa

    column = batch.column(name)
    if not _is_text(column.type):
        return [None] * len(column)
    if pa.types.is_dictionary(column.type):
        column = cast("pa.DictionaryArray", column).dictionary_decode()
    return column.cast(pa.large_binary()).to_pylist()


@contextlib.contextmanager
def _damage(source: Source) -> Iterator[None]:
    """What pyarrow says of a damaged file, as one DataError."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, EOFError) as error:
        kind = "Parquet" if source.format == "parquet" else "Arrow"
        raise DataError(f"{source.path} is not a readable {kind} file: {error}") from error

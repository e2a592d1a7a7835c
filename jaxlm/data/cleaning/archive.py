"""Reads WARC and WET archives record by record; what is damaged is named by its offset and the rest is read on.

A gzip member is decompressed to its end, and its checksum verified, before anything in it is used. (The iterator
of `warcio` passes over truncated and damaged members in silence, https://github.com/webrecorder/warcio/issues/138
and /127; its parsers of headers and of chunked bodies are used here.)
"""

import io
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from jaxlm.data.cleaning.pages import Corrupt, Item, Page, Skipped, missing, timestamp

CHUNK = 1 << 14  # compressed bytes read at a time
SPOOL = 64 << 20  # a member that holds more lies on disk while it is read
LONGEST = 32 << 20  # bytes of a record that could be a page
MEMBER = b"\x1f\x8b\x08"
RECORD = b"WARC/1."
HTML = ("text/html", "application/xhtml+xml")


def read_archive(path: str, tell: Callable[[int], None]) -> Iterator[Item]:
    """The records of a .warc, .wet, .warc.gz or .wet.gz file in order. `tell` hears the bytes of the file read."""
    with open(path, "rb", buffering=1 << 20) as file:
        compressed = file.read(2) == MEMBER[:2]
        file.seek(0)
        if not compressed:
            yield from _records(file, path, lambda offset, number: f"{path} at byte {offset:,}", tell)
            return
        for start, end, content in _members(file):
            place = f"{path} at byte {start:,}"
            if isinstance(content, str):
                yield Corrupt(place, content)
            else:
                with content:
                    name = lambda offset, number, place=place: f"{place}, record {number}" if number > 1 else place
                    yield from _records(content, path, name, lambda done: None)
            tell(end)


def _members(file: IO[bytes]) -> Iterator[tuple[int, int, IO[bytes] | str]]:
    """(start, end, content) of each gzip member; instead of the content, why it cannot be read."""
    size, start = os.fstat(file.fileno()).st_size, 0
    while start < size:
        file.seek(start)
        content, unzip = tempfile.SpooledTemporaryFile(SPOOL), zlib.decompressobj(31)  # noqa: SIM115 (the caller closes)
        try:
            while not unzip.eof:
                if not (chunk := file.read(CHUNK)):
                    raise EOFError("the file ends in the middle of a record")
                content.write(unzip.decompress(chunk))
        except (zlib.error, EOFError) as error:
            content.close()
            end = _next_member(file, start + 1, size)
            why = str(error).removeprefix("Error ")
            yield start, end, f"damaged gzip member ({why}); {end - start:,} bytes are passed over"
        else:
            end = file.tell() - len(unzip.unused_data)
            content.seek(0)
            yield start, end, content
        start = end


def _next_member(file: IO[bytes], start: int, size: int) -> int:
    """Where the next gzip member that opens with a record begins; the size of the file where there is none."""
    while start < size:
        file.seek(start)
        window = file.read(1 << 20)
        at = window.find(MEMBER)
        while at >= 0:
            file.seek(start + at)
            try:
                if zlib.decompressobj(31).decompress(file.read(CHUNK), len(RECORD)) == RECORD:
                    return start + at
            except zlib.error:
                pass  # these three bytes were no beginning: look further
            at = window.find(MEMBER, at + 1)
        start += max(len(window) - len(MEMBER) + 1, 1)
    return size


def _records(
    stream: IO[bytes], path: str, name: Callable[[int, int], str], tell: Callable[[int], None]
) -> Iterator[Item]:
    """The records of uncompressed WARC. `name(offset, number)` is how a damaged one is called."""
    try:
        from warcio.statusandheaders import StatusAndHeadersParser
    except ImportError:
        raise missing("warcio", f"reading {path}") from None
    parser = StatusAndHeadersParser(["WARC/"])
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    number, lost = 0, False
    while line := stream.readline():
        if not line.strip():
            continue
        offset = stream.tell() - len(line)
        if not line.startswith(RECORD):
            if not lost:
                number += 1
                yield Corrupt(name(offset, number), "no record begins here; passed over up to the next that does")
            lost = True
            continue
        number, lost = number + 1, False
        head = parser.parse(stream, line)
        length = head.get_header("Content-Length") or ""
        if not length.isdigit():
            lost = True
            yield Corrupt(name(offset, number), f"Content-Length {length!r} is no number")
            continue
        end = stream.tell() + int(length)
        if end > size:
            lost = True
            yield Corrupt(name(offset, number), "the file ends before this record does")
            continue
        yield _item(head, stream, int(length), name(offset, number))
        stream.seek(end)
        tell(end)


def _item(head: Any, stream: IO[bytes], length: int, where: str) -> Item:
    """What a record holds; `stream` stands at its content."""
    kind = head.get_header("WARC-Type") or "untyped"
    if kind not in ("response", "resource", "conversion"):
        return Skipped(f"{kind} record")
    if length > LONGEST:
        return Skipped(f"larger than {LONGEST >> 20} MiB")
    content = stream.read(length)
    url = (head.get_header("WARC-Target-URI") or "").strip("<> ")
    when = timestamp(head.get_header("WARC-Date"))
    if kind == "response":
        return _response(url, when, content, where)
    media, charset = media_type(head.get_header("Content-Type"))
    if kind == "resource":
        return Page(url, when, content, charset) if media in HTML else Skipped("not HTML")
    if media != "text/plain":
        return Skipped("not text")
    try:
        return Page(url, when, content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Corrupt(where, f"not UTF-8 (byte 0x{content[error.start]:02x})")


def _response(url: str, when: str, content: bytes, where: str) -> Item:
    from warcio.bufferedreaders import ChunkedDataReader
    from warcio.statusandheaders import StatusAndHeadersParser

    stream = io.BytesIO(content)
    if not content.startswith(b"HTTP/"):
        return Skipped("not HTTP")
    http = StatusAndHeadersParser([], verify=False).parse(stream)
    if http.get_statuscode() != "200":
        return Skipped("HTTP status other than 200")
    media, charset = media_type(http.get_header("Content-Type"))
    if media not in HTML:
        return Skipped("not HTML")
    chunked = (http.get_header("Transfer-Encoding") or "").lower() == "chunked"
    body = ChunkedDataReader(stream).read() if chunked else stream.read()
    try:
        body = _decoded(body, (http.get_header("Content-Encoding") or "").lower())
    except (zlib.error, ValueError) as error:
        return Corrupt(where, str(error))
    return Page(url, when, body, charset)


def _decoded(body: bytes, encoding: str) -> bytes:
    """The body without its content encoding. Archives often name one that the crawler had already taken off."""
    if encoding in ("gzip", "x-gzip") and body.startswith(MEMBER[:2]):
        return zlib.decompress(body, 31)
    if encoding == "deflate" and not body.lstrip().startswith(b"<"):
        return zlib.decompress(body, 15 if body[:1] == b"\x78" else -15)
    if encoding in ("br", "zstd") and not body.lstrip().startswith(b"<"):
        raise ValueError(f"Content-Encoding {encoding} cannot be decoded here")
    return body


def media_type(value: str | None) -> tuple[str, str | None]:
    """("text/html", "utf-8") of `text/html; charset=UTF-8`."""
    media, *parameters = (value or "").lower().split(";")
    for parameter in parameters:
        name, _, charset = parameter.partition("=")
        if name.strip() == "charset":
            return media.strip(), charset.strip(" \"'") or None
    return media.strip(), None

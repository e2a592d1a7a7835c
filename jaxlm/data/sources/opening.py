"""Opens a file by path or URL and takes off its compression, so that damage is one clear error."""

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from typing import IO, Any, cast

from jaxlm.data.config import DataError
from jaxlm.data.sources.source import Source

CHUNK = 1 << 16  # compressed bytes read at a time
EXTRAS = {  # what a protocol needs beyond what jaxlm always has
    "gs": "cloud", "gcs": "cloud", "s3": "cloud", "s3a": "cloud", "http": "cloud", "https": "cloud", "hf": "hf",
}  # fmt: skip


def is_url(path: str) -> bool:
    """Whether fsspec, and not the file system of this machine, has to open it."""
    return "://" in path


@contextlib.contextmanager
def opened(source: Source) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The file as it lies there, and its content without compression (the same stream where there is none)."""
    with reported(source.path), raw(source.path) as file:
        try:
            if source.compression == "gzip":
                yield file, cast(IO[bytes], gzip.GzipFile(fileobj=file))
            elif source.compression == "zstd":
                yield file, cast(IO[bytes], io.BufferedReader(_Zstandard(file), CHUNK))
            else:
                yield file, file
        except (EOFError, zlib.error, gzip.BadGzipFile, _Damaged) as error:
            raise DataError(f"{source.path} is not a readable {source.compression} file: {error}") from error


def raw(path: str) -> IO[bytes]:
    """A file of this machine or, for a URL, of wherever fsspec finds it."""
    if not is_url(path):
        return open(path, "rb")
    files, inner = file_system(path)
    return files.open(inner, "rb")


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path within it; what its protocol lacks is named."""
    import fsspec.core

    if "::" in url:
        raise DataError(f"{url}: chained URLs are not supported; give the URL of the files themselves")
    protocol = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        remedy = f"uv sync --extra {EXTRAS[protocol]}" if protocol in EXTRAS else "install what fsspec asks for"
        raise DataError(f"{url}: {protocol}:// needs a package that is not installed: {remedy} ({error})") from error
    except ValueError as error:
        raise DataError(f"{url}: {error}") from error


@contextlib.contextmanager
def reported(path: str) -> Iterator[None]:
    """Failures to read become a DataError that names the path.

    Each cloud has exceptions of its own (credentials, quota), so for a URL any exception counts as one.
    """
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        if not is_url(path):
            raise
        raise DataError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


class _Damaged(Exception):
    pass


class _Zstandard(io.RawIOBase):
    """The content of a zstd file, frame after frame; unlike `ZstdDecompressor.stream_reader` it hears of a cut."""

    def __init__(self, file: IO[bytes]):
        import zstandard

        self._file, self._error = file, zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)  # as `zstd --long=31` writes
        self._frame = None
        self._ready = memoryview(b"")
        self._begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            left = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            compressed = left or self._file.read(CHUNK)
            if not compressed:
                if not self._begun:
                    raise _Damaged("it is empty")
                if self._frame is not None and not self._frame.eof:
                    raise _Damaged("it ends in the middle of a frame")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame, self._begun = self._decompressor.decompressobj(), True
            try:
                self._ready = memoryview(self._frame.decompress(compressed))
            except self._error as error:
                raise _Damaged(str(error)) from error
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

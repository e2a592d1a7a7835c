"""Finds files behind a URL (gs://, s3://, https://, hf://, memory://, ...) through fsspec."""

import itertools
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from jaxlm.data.config import DataError
from jaxlm.data.sources import splits
from jaxlm.data.sources.opening import file_system, reported
from jaxlm.data.sources.source import UNDECIDED, Source

# What file systems call the facts that change with a file.
VERSIONS = ("etag", "ETag", "md5Hash", "blob_id", "Content-MD5", "Digest", "generation", "mtime", "modified", "updated",
            "LastModified", "last_modified", "Last-Modified", "created")  # fmt: skip


def find(spec: str, key: str) -> list[Source]:
    """The files that a URL of a file, a folder or a glob stands for."""
    files, path = file_system(spec)
    web = spec.partition("://")[0] in ("http", "https")  # where `?` begins a query and a folder ends with a slash
    with reported(spec):
        files.invalidate_cache()
        if any(mark in path for mark in ("*[" if web else "*?[")):
            found = {each: info for each, info in files.glob(path, detail=True).items() if info["type"] == "file"}
            if not found:
                raise DataError(f"{key}={spec} matches no file")
            root = _common_folder(list(found))
            return splits.named([_source(files, each, each.removeprefix(root), found[each]) for each in sorted(found)])
        try:
            info = files.info(path)
        except FileNotFoundError as error:
            raise DataError(f"{key}={spec} does not exist") from error
        if info["type"] == "file" and not path.endswith("/"):
            return [_source(files, path, PurePosixPath(urlsplit(path).path if web else path).name, info)]
        root = path.rstrip("/") + "/"
        inside = {each.removeprefix(root): (each, info) for each, info in files.find(path, detail=True).items()}
        read = [_source(files, inside[name][0], name, inside[name][1]) for name in sorted(inside) if not hidden(name)]
        if not read:
            raise DataError(f"{key}={spec} is an empty folder: it holds no file to read")
        return splits.given(read, spec)


def hidden(name: str) -> bool:
    """Whether a file or one of its folders is not meant to be seen."""
    return any(part.startswith(".") or part == "__pycache__" for part in PurePosixPath(name).parts)


def _common_folder(paths: list[str]) -> str:
    folders = [path.split("/")[:-1] for path in paths]
    same = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False))
    return "".join(f"{names[0]}/" for names in same)


def _source(files: Any, path: str, name: str, info: dict[str, Any]) -> Source:
    tag = "; ".join(f"{fact}={info[fact]}" for fact in VERSIONS if info.get(fact))
    return Source(files.unstrip_protocol(path), name, info.get("size") or 0, 0, UNDECIDED, tag=tag)

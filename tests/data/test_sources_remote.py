"""Files behind a URL are read like files on disk, through fsspec."""

import gzip
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import replace

import fsspec
import pyarrow.parquet as parquet
import pytest
import zstandard

from jaxlm.data.config import DataConfig, DataError
from jaxlm.data.prepare import prepare
from jaxlm.data.sources import Document, Source, find_sources, read
from tests.data import writers

TEXTS = [f"document {number} \u00e9 " * 20 for number in range(60)]


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """An empty file system in memory, `memory://`."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def put(url: str, content: bytes) -> None:
    with fsspec.open(url, "wb") as file:
        file.write(content)  # pyright: ignore[reportAttributeAccessIssue]


def found(path: str, validation_fraction: float = 0.0, validation: str | None = None) -> list[Source]:
    return find_sources(DataConfig(path=path, validation=validation, validation_fraction=validation_fraction))[0]


def texts(path: str) -> list[str]:
    items = [item for source in found(path) for item in read(source, 0.0)]
    return sorted(item.text for item in items if isinstance(item, Document))


@pytest.mark.usefixtures("memory")
def test_files_folders_and_globs_behind_a_url_are_read_in_every_format():
    table = io.BytesIO()
    parquet.write_table(writers.table(TEXTS[30:40]), table)
    put("memory://bucket/c4/a.jsonl", lines(TEXTS[:10]))
    put("memory://bucket/c4/deep/b.jsonl.gz", gzip.compress(lines(TEXTS[10:20])))
    put("memory://bucket/c4/c.jsonl.zst", zstandard.compress(lines(TEXTS[20:30])))
    put("memory://bucket/c4/d.parquet", table.getvalue())
    put("memory://bucket/c4/.hidden", b"not read")
    assert texts("memory://bucket/c4") == sorted(TEXTS[:40])
    assert texts("memory://bucket/c4/") == sorted(TEXTS[:40])
    assert texts("memory://bucket/c4/**/*.gz") == sorted(TEXTS[10:20])
    assert texts("memory://bucket/c4/d.parquet") == sorted(TEXTS[30:40])
    assert {source.name for source in found("memory://bucket/c4")} == {
        "a.jsonl",
        "deep/b.jsonl.gz",
        "c.jsonl.zst",
        "d.parquet",
    }
    assert all(source.path.startswith("memory://") and source.bytes > 0 for source in found("memory://bucket/c4"))


@pytest.mark.usefixtures("memory")
def test_the_names_and_the_manifest_of_a_remote_data_set_give_its_splits():
    for side, part in (("train", TEXTS[:9]), ("validation", TEXTS[9:11])):
        put(f"memory://hub/en/c4-{side}.00000-of-00001.json.gz", gzip.compress(lines(part)))
    assert {source.split: source.name for source in found("memory://hub/en", validation_fraction=0.5)} == {
        "train": "c4-train.00000-of-00001.json.gz",
        "valid": "c4-validation.00000-of-00001.json.gz",
    }
    put("memory://novels/manifest.csv", b"file,split\none,train\ntwo,test\n")
    for name in ("one.txt.gz", "two.txt.gz", "three.txt.gz"):
        put(f"memory://novels/{name}", gzip.compress(name.encode()))
    assert {source.name: source.split for source in found("memory://novels")} == {
        "one.txt.gz": "train",
        "two.txt.gz": "test",
    }


@pytest.mark.usefixtures("memory")
def test_prepared_tokens_follow_the_remote_file(config: DataConfig):
    put("memory://bucket/a.jsonl", lines(TEXTS))
    config = replace(config, path="memory://bucket/a.jsonl")
    first = prepare(config)
    assert sum(first.report.documents.values()) == len(TEXTS)
    assert prepare(config).folder == first.folder
    put("memory://bucket/a.jsonl", lines(TEXTS[::-1]))  # as many bytes, at another time
    assert prepare(config).folder != first.folder


@pytest.mark.usefixtures("memory")
def test_local_training_text_may_have_remote_held_out_text(config: DataConfig):
    put("memory://bucket/held.txt", b"held out")
    sources = found(config.path, validation="memory://bucket/held.txt")
    assert [source.path for source in sources if source.split == "valid"] == ["memory:///bucket/held.txt"]


@pytest.mark.usefixtures("memory")
def test_what_is_not_there_is_named():
    put("memory://bucket/image.png", b"\x89\x00\x01")
    with pytest.raises(DataError, match=r"data\.path=memory://nowhere does not exist"):
        found("memory://nowhere")
    with pytest.raises(DataError, match=r"data\.path=memory://bucket/\*\.jsonl matches no file"):
        found("memory://bucket/*.jsonl")
    with pytest.raises(DataError, match=r"data\.path=memory://bucket holds no text: 1 files, all binary"):
        found("memory://bucket")
    with pytest.raises(DataError, match=r"simplecache::memory://x: chained URLs are not supported"):
        found("simplecache::memory://x")
    with pytest.raises(DataError, match=r"nonsense://x: Protocol not known: nonsense"):
        found("nonsense://x")


@pytest.mark.parametrize(
    ("url", "module"), [("gs://b/x", "gcsfs"), ("s3://b/x", "s3fs"), ("https://a.example/x.jsonl", "aiohttp")]
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    url: str, module: str, monkeypatch: pytest.MonkeyPatch
):
    for name in [name for name in sys.modules if name.partition(".")[0] == module or name.startswith("fsspec.impl")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"{url.split(':')[0]}:// needs a package .* uv sync --extra cloud"):
        found(url)


@pytest.mark.usefixtures("memory")
def test_what_a_cloud_says_is_said_with_the_path(monkeypatch: pytest.MonkeyPatch):
    class NoCredentials(Exception):
        pass

    def refuse(self, path, **kwargs):
        raise NoCredentials("unable to locate credentials")

    put("memory://bucket/a.jsonl", lines(TEXTS))
    (source,) = found("memory://bucket/a.jsonl")
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "_open", refuse)
    with pytest.raises(DataError, match=r"memory:///bucket/a\.jsonl cannot be read: NoCredentials: unable to locate"):
        next(read(source, 0.0))
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "info", refuse)
    with pytest.raises(DataError, match=r"memory://bucket/a\.jsonl cannot be read: NoCredentials"):
        found("memory://bucket/a.jsonl")

"""Writes the same documents in each format that a user may have them in."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import zstandard


def table(texts: Sequence[str | bytes | None], urls: Sequence[str] | None = None) -> pa.Table:
    columns: dict[str, pa.Array] = {"id": pa.array(range(len(texts)), pa.int64())}
    raw = [text.encode() if isinstance(text, str) else text for text in texts]
    columns["text"] = pa.array(raw, pa.binary()).view(pa.string())  # a view is not checked for UTF-8
    if urls is not None:
        columns["url"] = pa.array(urls)
    return pa.table(columns)


def jsonl(path: Path, texts: Sequence[str], urls: Sequence[str] | None = None) -> Path:
    """JSONL, compressed as the name says."""
    rows = [{"text": text} | ({"url": urls[n]} if urls else {}) for n, text in enumerate(texts)]
    return compressed(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def compressed(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".gz"):
        content = gzip.compress(content)
    elif path.name.endswith(".zst"):
        content = zstandard.compress(content)
    path.write_bytes(content)
    return path


def write_parquet(path: Path, content: pa.Table, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(content, path, **options)
    return path


def saved(folder: Path, shards: Sequence[pa.Table], rows_per_batch: int = 7) -> Path:
    """A folder as `datasets.Dataset.save_to_disk` writes it: Arrow IPC streams and two JSON files."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, shard.schema) as writer:
            writer.write_table(shard, max_chunksize=rows_per_batch)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}, indent=2))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"text": {"dtype": "string"}}}, indent=2))
    return folder


def saved_dict(folder: Path, **splits: pa.Table) -> Path:
    """A folder as `datasets.DatasetDict.save_to_disk` writes it."""
    for name, content in splits.items():
        saved(folder / name, [content])
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return folder

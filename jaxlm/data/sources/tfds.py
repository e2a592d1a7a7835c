"""Finds and reads data sets that TensorFlow Datasets has prepared as ArrayRecord, without TensorFlow.

`tfds:NAME[/CONFIG][:VERSION][[SPLIT,...]]` is looked for where TFDS keeps its data; nothing is downloaded.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxlm.data.config import DataError
from jaxlm.data.sources.source import Corrupt, Row, Source, checked
from jaxlm.data.sources.splits import roles

PREFIX = "tfds:"
SPEC = re.compile(
    r"tfds:(?P<name>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>\d+\.\d+\.\d+))?(\[(?P<splits>[^\[\]]*)\])?"
)
BATCH = 128  # records read at a time

# https://www.tensorflow.org/datasets/catalog/c4 and https://huggingface.co/datasets/allenai/c4
C4_IN_TFDS = ("en", "en.noclean", "realnewslike", "webtextlike", "multilingual")
C4_AS_JSONL = ("en", "en.noblocklist", "en.noclean", "realnewslike", "multilingual")


def find(spec: str, key: str) -> list[Source]:
    """The shards of the data set that `tfds:...` names, each with its split."""
    found = SPEC.fullmatch(spec)
    if found is None:
        raise DataError(f"{key}={spec} is not of the form tfds:NAME, tfds:NAME/CONFIG:1.2.3 or tfds:NAME[SPLIT,SPLIT]")
    chosen = None
    if found["splits"] is not None:
        chosen = [each.strip() for each in found["splits"].split(",")]
    folder = _version_folder(spec, key, found["name"], found["config"], found["version"])
    return shards(folder, f"{key}={spec}", chosen)


def shards(folder: Path, what: str, chosen: list[str] | None = None) -> list[Source]:
    """The shards of a prepared data set (the folder of a version, with its dataset_info.json)."""
    info = _builder(folder, what).info
    texts = info.features
    if "text" not in texts:
        raise DataError(f"{what} ({folder}) has no field `text`; it has {', '.join(sorted(texts))}")
    splits = roles(list(info.splits), chosen, what)
    prefix = "/".join(part for part in (info.name, info.config_name, str(info.version)) if part)
    sources = []
    for split, side in splits.items():
        for number, path in enumerate(info.splits[split].filepaths):
            name = f"{prefix}/{Path(path).name}"
            try:
                stat = os.stat(path)
            except OSError as error:
                raise DataError(f"{what} is incomplete: {path} cannot be read: {error.strerror}") from error
            part = f"{split}[{number}shard]"
            sources.append(Source(str(path), name, stat.st_size, stat.st_mtime_ns, side, part))
    return sources


def is_prepared(folder: Path) -> bool:
    """Whether a folder is a version of a data set, as TFDS writes it."""
    return (folder / "features.json").is_file() and (folder / "dataset_info.json").is_file()


def read(source: Source, tell: Callable[[int], None]) -> Iterator[Row | Corrupt]:
    """The records of one shard. `tell` hears the share of the records that have been read, as bytes of the file."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    records = _builder(Path(source.path).parent, source.path).as_data_source(split=source.part)
    try:
        with ArrayRecordDataSource(source.path) as file:
            there = len(file)
    except RuntimeError as error:
        raise DataError(f"{source.path} is not a readable ArrayRecord file: {error}") from error
    if there != len(records):
        raise DataError(f"{source.path} holds {there:,} records where dataset_info.json says {len(records):,}")
    for start in range(0, there, BATCH):
        for number, record in enumerate(_batch(records, range(start, min(start + BATCH, there))), start + 1):
            if isinstance(record, Exception):
                yield Corrupt(f"{source.path}:{number}", f"record not readable ({record})")
            else:
                yield checked(source, number, record["text"], record.get("url"))
            tell(source.bytes * number // there)


def prepared_splits(folder: Path, what: str) -> dict[str, Any]:
    """The splits of a prepared data set by name, each a sequence of examples with all their fields."""
    builder = _builder(folder, what)
    return {name: builder.as_data_source(split=name) for name in builder.info.splits}


def _batch(records: Any, numbers: range) -> list[Any]:
    """Records by number; where one of them is damaged, each alone, with the error in its place."""
    try:
        return list(records.__getitems__(list(numbers)))
    except Exception:
        return [_alone(records, number) for number in numbers]


def _alone(records: Any, number: int) -> Any:
    try:
        return records[number]
    except (OSError, MemoryError):  # the disk or the machine, not the record
        raise
    except Exception as error:  # damage shows as RuntimeError (checksum), protobuf's DecodeError or a missing key
        return error


def _builder(folder: Path, what: str) -> Any:
    import tensorflow_datasets

    try:
        builder = tensorflow_datasets.builder_from_directory(folder)
        known = (builder.info.file_format, *builder.info.alternative_file_formats)
        formats = [each.value for each in known if each is not None]
        if "array_record" in formats[1:]:
            builder.info.set_file_format("array_record", override=True, override_if_initialized=True)
    except (ValueError, KeyError, OSError) as error:
        raise DataError(f"{what}: {folder} is not a data set that TFDS can open: {error}") from error
    if "array_record" not in formats:
        raise DataError(
            f"{what} lies in {folder} as {', '.join(formats)}, which needs TensorFlow to read. Convert it, "
            "where tensorflow, apache-beam and tensorflow-datasets are installed: "
            f"tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record"
        )
    return builder


def _version_folder(spec: str, key: str, name: str, config: str | None, version: str | None) -> Path:
    root = _data_folder(spec, key)
    base = root / name / config if config else root / name
    versions = _versions(base)
    if not versions and config is None:
        configs = sorted(each.name for each in base.glob("*") if _versions(each))
        if len(configs) > 1:
            raise DataError(f"{key}={spec}: choose one of its configurations: {', '.join(configs)} (tfds:{name}/...)")
        if configs:
            base = base / configs[0]
            versions = _versions(base)
    if not versions:
        raise DataError(_absent(spec, key, base, name, config))
    if version is None:
        return versions[max(versions)]
    wanted = tuple(int(part) for part in version.split("."))
    if wanted not in versions:
        there = ", ".join(path.name for _, path in sorted(versions.items()))
        raise DataError(f"{key}={spec}: {base} has no version {version}; it has {there}")
    return versions[wanted]


def _data_folder(spec: str, key: str) -> Path:
    """$TFDS_DATA_DIR or ~/tensorflow_datasets, as TFDS has it."""
    folder = os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")
    if "://" in folder:
        raise DataError(f"{key}={spec}: TFDS_DATA_DIR={folder} must be a local or mounted folder to read ArrayRecord")
    return Path(folder).expanduser()


def _versions(folder: Path) -> dict[tuple[int, ...], Path]:
    found = {}
    for each in folder.glob("*"):
        if re.fullmatch(r"\d+\.\d+\.\d+", each.name) and (each / "dataset_info.json").is_file():
            found[tuple(int(part) for part in each.name.split("."))] = each
    return found


def _absent(spec: str, key: str, base: Path, name: str, config: str | None) -> str:
    """Why there is nothing to read, and the command that prepares it."""
    full = f"{name}/{config}" if config else name
    jsonl = ""
    if name == "c4" and config in C4_AS_JSONL:
        jsonl = (
            f"AllenAI publishes it as JSONL (https://huggingface.co/datasets/allenai/c4): "
            f"data.path=hf://datasets/allenai/c4/{config}, or a downloaded folder of its *.json.gz"
        )
    if name == "c4" and config is not None and config not in C4_IN_TFDS:
        why = f"{key}={spec}: TensorFlow Datasets has no {full}, only {', '.join(C4_IN_TFDS)}"
        return f"{why}. {jsonl}" if jsonl else why
    return (
        f"{key}={spec} was looked for in {base} and is not there (TFDS_DATA_DIR says where data sets lie; nothing is "
        f"downloaded by itself). Prepare it, where tensorflow and tensorflow-datasets are installed: "
        f"tfds build {full} --file_format=array_record --data_dir={_data_folder(spec, key)}"
        + (f". {jsonl}" if jsonl else "")
    )

"""The output folder: whose work it holds, who may write into it, and how finished shards get their names."""

import contextlib
import csv
import dataclasses
import hashlib
import importlib.metadata
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxlm.data.cleaning.config import Cleaning
from jaxlm.data.cleaning.inputs import REPORT, Input
from jaxlm.data.cleaning.output import SPLITS
from jaxlm.data.cleaning.report import Report
from jaxlm.data.config import DataError
from jaxlm.data.sources.splits import MANIFEST
from jaxlm.files import write_whole

FORMAT = 1  # raised when the same input would give another result
WORK = ".work"
LIBRARIES = ("lxml", "py3langid", "trafilatura", "warcio")


class Identity:
    """Digests by which finished work is known again: `rules` of what is done, `digest` of that and of the input."""

    def __init__(self, config: Cleaning, inputs: Sequence[Input]):
        self.config = config
        self.versions = {name: _version(name) for name in LIBRARIES}
        lists = [_digest_of(path) for path in (config.blocklist, config.domains)]
        rules = [FORMAT, dataclasses.asdict(config), lists, self.versions]
        files = [[each.name, each.bytes, each.modified] for each in inputs]
        self.rules = hashlib.sha256(json.dumps(rules).encode()).hexdigest()
        self.digest = hashlib.sha256(json.dumps([rules, files]).encode()).hexdigest()


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _digest_of(path: str | None) -> str | None:
    return None if path is None else hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()


def admit(out: Path, identity: Identity) -> Report | None:
    """The report of this very cleaning where `out` holds it, None where there is room for it.

    Raises DataError where `out` holds anything else, or where its files have changed since they were written.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"out={out} is a file: give a folder")
    if not (out / REPORT).is_file():
        # What bears our names was being published when a former attempt ended; it is written again.
        strange = [each.name for each in out.iterdir() if not _ours(each)] if out.is_dir() else []
        if strange:
            raise DataError(f"out={out} holds other files ({min(strange)}): give a new or an empty folder")
        return None
    try:
        report = Report.from_json(json.loads((out / REPORT).read_bytes()))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{out / REPORT} is no report of a cleaning: give another folder") from error
    if report.identity != identity.digest:
        now = json.loads(json.dumps(dataclasses.asdict(identity.config)))
        changed = [f"{key} was {old}, is {now.get(key)}" for key, old in report.config.items() if old != now.get(key)]
        why = "; ".join(changed) or "the input, a list or a library has changed since"
        raise DataError(f"out={out} holds another cleaning ({why}): give another folder, or delete this one")
    for shard in report.shards:
        path = out / shard["file"]
        if not path.is_file() or path.stat().st_size != shard["file_bytes"]:
            raise DataError(f"{path} is missing or has changed since it was written: delete {out} and clean again")
    return report


def _ours(path: Path) -> bool:
    return path.name in (WORK, MANIFEST, f"{MANIFEST}.unfinished", f"{REPORT}.unfinished") or (
        path.name.startswith("c4-") and (path.parent / WORK).is_dir()
    )


@contextlib.contextmanager
def alone(work: Path) -> Iterator[None]:
    """Holds the work folder for this process. Raises DataError where another has it, or where it cannot be made."""
    import fcntl

    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"out={work.parent} cannot be made: {error.strerror}") from None
    with open(work / "lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise DataError(f"process {lock.read().strip() or '?'} is cleaning into {work.parent} already") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """A finished shard of the work folder that holds documents, and the name it will have."""

    made: Path
    name: str
    facts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"file": self.name} | self.facts


def named(work: Path, stems: Sequence[str], entries: Sequence[dict[str, Any]]) -> list[Shard]:
    """The shards with documents, training first, named as those of C4: c4-train.00000-of-00012.json.gz."""
    found = []
    for split in SPLITS:
        full = [(stem, entry) for stem, entry in zip(stems, entries, strict=True) if entry[split]["documents"]]
        for number, (stem, entry) in enumerate(full):
            name = f"c4-{split}.{number:05d}-of-{len(full):05d}.json.gz"
            found.append(Shard(work / f"{stem}.{split}", name, {"split": split} | entry[split]))
    return found


def publish(out: Path, shards: Sequence[Shard], report: Report) -> None:
    """Moves the shards to `out`, lists them in manifest.csv, writes the report last and removes the work folder."""
    for shard in shards:
        os.replace(shard.made, out / shard.name)
    table = io.StringIO()
    rows = [("file", "split"), *((shard.name, shard.facts["split"]) for shard in shards)]
    csv.writer(table, lineterminator="\n").writerows(rows)
    write_whole(out / MANIFEST, table.getvalue().encode())
    write_whole(out / REPORT, (json.dumps(report.to_json(), indent=1) + "\n").encode())
    shutil.rmtree(out / WORK)

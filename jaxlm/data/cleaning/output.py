"""The last pass, one shard at a time: take out duplicates, apply the rules for whole pages, write C4's JSON lines."""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.cleaning.batches import Part
from jaxlm.data.cleaning.config import Cleaning
from jaxlm.data.cleaning.duplicates import runs, without_duplicates
from jaxlm.data.cleaning.language import identify
from jaxlm.data.cleaning.lists import Lists, blocked
from jaxlm.data.cleaning.rules import few_sentences
from jaxlm.data.cleaning.tally import Tally
from jaxlm.data.sources import stable_hash
from jaxlm.files import write_whole

SPLITS = ("train", "validation")
KEEP_PAGES, KEEP_UNITS = "keep.pages", "keep.units"


@dataclasses.dataclass(frozen=True, slots=True)
class Slice:
    """A part, and where its pages and units stand among those of all parts."""

    part: Part
    first_page: int
    first_unit: int


def shards(parts: Sequence[Part], size: int) -> list[list[Slice]]:
    """Which parts go into which shard: as many in a row as make `size` characters."""
    found: list[list[Slice]] = []
    page = unit = 0
    room = 0
    for part in parts:
        if room <= 0:
            found.append([])
            room = size
        found[-1].append(Slice(part, page, unit))
        room -= part.characters
        page, unit = page + part.pages, unit + part.units
    return found


def write_shard(
    slices: Sequence[Slice],
    config: Cleaning,
    lists: Lists,
    folder: Path,
    stem: str,
    held_out_below: float,
    tell: Callable[[int], None],
) -> dict[str, Any]:
    """Writes STEM.train and STEM.validation, gzip-compressed, the entry last, and returns the entry.

    Pages whose URL has a hash below `held_out_below` go to validation; `smallest` is the least hash of the shard.
    """
    tally, smallest = Tally(), 1.0
    files = {split: _Packer() for split in SPLITS}
    for slice in slices:
        table = slice.part.table()
        pages = np.fromfile(folder / KEEP_PAGES, bool, len(table), offset=slice.first_page)
        units = np.fromfile(folder / KEEP_UNITS, bool, slice.part.units, offset=slice.first_unit)
        for (url, when, text), keeps, (begin, end) in zip(
            slice.part.texts(), pages.tolist(), runs(table["units"]), strict=True
        ):
            if not keeps:
                tally.drop_page("duplicate_url", url)
            elif (kept := finish_page(url, text, units[begin:end], config, lists, tally)) is not None:
                place = stable_hash(url)
                smallest = min(smallest, place)
                files["validation" if place < held_out_below else "train"].add(kept, when, url)
        tell(slice.part.characters)
    entry = {"tally": tally.to_json(), "smallest": smallest}
    for split, packer in files.items():
        content = packer.close()
        write_whole(folder / f"{stem}.{split}", content)
        entry[split] = packer.facts | {"file_bytes": len(content)}
    write_whole(folder / f"{stem}.json", json.dumps(entry).encode())
    return entry


def whole(folder: Path, stem: str) -> dict[str, Any] | None:
    """The entry of a shard whose files are all there."""
    try:
        entry = json.loads((folder / f"{stem}.json").read_bytes())
        sizes = [(folder / f"{stem}.{split}").stat().st_size for split in SPLITS]
    except FileNotFoundError:
        return None
    return entry if sizes == [entry[split]["file_bytes"] for split in SPLITS] else None


def finish_page(url: str, text: str, keep: np.ndarray, config: Cleaning, lists: Lists, tally: Tally) -> str | None:
    """The text of a page without duplicates; None, and counted, where a rule for whole pages drops it."""
    kept, gone = without_duplicates(text, keep, config.deduplicate)
    for line in gone:
        tally.drop_line("duplicate", url, line)
    if gone and (not kept or few_sentences(kept, config)):
        return tally.drop_page("duplicate", url, kept or text)
    if len(kept) < config.minimum_characters:
        return tally.drop_page("too_short", url, kept)
    if config.language is not None:
        language, probability = identify(kept)
        if language != config.language or probability < config.language_probability:
            return tally.drop_page("language", url, f"{language}, probability {probability:.3f}")
    if lists.words is not None and (word := blocked(kept, lists.words)) is not None:
        return tally.drop_page("blocklist", url, word)
    return kept


class _Packer:
    """JSON lines as they are made, gzip-compressed without a time stamp; counts of what went in."""

    def __init__(self) -> None:
        self.gzip, self.digest, self.packed = zlib.compressobj(6, zlib.DEFLATED, 31), hashlib.sha256(), []
        self.facts: dict[str, Any] = {"documents": 0, "bytes": 0}

    def add(self, text: str, timestamp: str, url: str) -> None:
        record = {"text": text, "timestamp": timestamp, "url": url}
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        self.digest.update(line)
        self.packed.append(self.gzip.compress(line))
        self.facts["documents"] += 1
        self.facts["bytes"] += len(text.encode())

    def close(self) -> bytes:
        self.facts["sha256"] = self.digest.hexdigest()  # of the lines, whatever compresses them
        return b"".join([*self.packed, self.gzip.flush()])

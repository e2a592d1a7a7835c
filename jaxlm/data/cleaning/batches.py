"""The first pass, one batch of input files at a time: read, extract, apply the rules that need no other page."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from jaxlm.data.cleaning.config import Cleaning
from jaxlm.data.cleaning.duplicates import hashes, units
from jaxlm.data.cleaning.extraction import main_text
from jaxlm.data.cleaning.inputs import Input
from jaxlm.data.cleaning.lists import Lists, from_domain
from jaxlm.data.cleaning.pages import Page, Skipped, same_url, seconds
from jaxlm.data.cleaning.rules import clean_lines, few_sentences
from jaxlm.data.cleaning.tally import Tally
from jaxlm.data.config import DataError
from jaxlm.data.sources import Corrupt
from jaxlm.files import write_whole

PART = 64_000_000  # characters of text in memory, and in one file of the work folder
TABLE = np.dtype([("url", "<u8"), ("time", "<i8"), ("units", "<u4")])  # what is known of a page: 20 bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """Some pages that passed the first pass, in three files: texts, a table of the pages, hashes of their units."""

    prefix: str
    pages: int
    units: int
    characters: int

    def texts(self) -> Iterator[tuple[str, str, str]]:
        """(URL, timestamp, text) of each page."""
        packed = Path(f"{self.prefix}.pages").read_bytes()
        for line in zstandard.ZstdDecompressor().decompress(packed).splitlines():
            yield tuple(json.loads(line))

    def table(self) -> np.ndarray:
        """[pages] TABLE."""
        return np.fromfile(f"{self.prefix}.table", TABLE)

    def urls(self) -> np.ndarray:
        """Hashes of the URLs, [pages] uint64."""
        return np.ascontiguousarray(self.table()["url"])

    def hashes(self) -> np.ndarray:
        """Hashes of the units of all pages, [units] uint64."""
        return np.fromfile(f"{self.prefix}.units", "<u8")


def batch_key(batch: tuple[Input, ...], rules: str) -> str:
    """Names the result of a batch: the same for the same files and the same rules."""
    facts = [rules, *([each.name, each.bytes, each.modified] for each in batch)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def finished(folder: Path, key: str) -> dict[str, Any] | None:
    """The entry of a batch that is done: its parts and its tally."""
    try:
        return json.loads((folder / f"{key}.json").read_bytes())
    except FileNotFoundError:
        return None


def clean_batch(
    batch: tuple[Input, ...], config: Cleaning, lists: Lists, folder: Path, key: str, tell: Callable[[int], None]
) -> dict[str, Any]:
    """Writes what passes into `folder`, the entry last, and returns the entry. `tell` hears the bytes read."""
    tally, writer = Tally(), _Writer(folder / key, min(PART, config.shard_characters), config.deduplicate)
    for file in batch:
        before = 0

        def heard(at: int) -> None:
            nonlocal before
            tell(max(at - before, 0))
            before = max(at, before)

        for item in file.read(heard):
            if isinstance(item, Corrupt):
                tally.damage(item)
            elif isinstance(item, Skipped):
                tally.skip(item.why)
            elif (text := clean_page(item, config, lists, tally)) is not None:
                writer.add(item, text)
    writer.close()
    entry = {"parts": writer.parts, "tally": tally.to_json()}
    write_whole(folder / f"{key}.json", json.dumps(entry).encode())
    return entry


def clean_page(page: Page, config: Cleaning, lists: Lists, tally: Tally) -> str | None:
    """The text of a page after the rules that look at this page alone; None, and counted, where one drops it."""
    tally.pages_in += 1
    if lists.domains is not None and not from_domain(page.url, lists.domains):
        return tally.drop_page("domain", page.url)
    try:
        text = page.content if isinstance(page.content, str) else main_text(page.content, page.charset)
    except DataError:
        raise
    except Exception as error:  # whatever one page does to the parsers must not end the work on all others
        return tally.damage(Corrupt(page.url, f"its text cannot be extracted ({type(error).__name__}: {error})"))
    if text is None or not text.strip():
        return tally.drop_page("no_text", page.url)
    if 0 < config.maximum_characters < len(text):
        return tally.drop_page("too_long", page.url, f"{len(text):,} characters")
    lines = clean_lines(text, config)
    tally.lines_in += len(lines.kept) + len(lines.dropped)
    for rule, line in lines.dropped:
        if rule != lines.page:
            tally.drop_line(rule, page.url, line)
    if lines.page is not None:
        return tally.drop_page(lines.page, page.url, lines.dropped[-1][1])
    text = "\n".join(lines.kept)
    if few_sentences(text, config):
        return tally.drop_page("few_sentences", page.url, text)
    return text or tally.drop_page("no_text", page.url)


class _Writer:
    """Collects pages and writes them as parts of a bounded size."""

    def __init__(self, stem: Path, size: int, mode: str):
        self.stem, self.size, self.mode = stem, size, mode
        self.parts: list[dict[str, int]] = []
        self._clear()

    def _clear(self) -> None:
        self.lines: list[bytes] = []
        self.rows: list[tuple[int, int, int]] = []
        self.hashes: list[np.ndarray] = []
        self.characters = 0

    def add(self, page: Page, text: str) -> None:
        found = hashes(units(text, self.mode))
        url = int(hashes([same_url(page.url)])[0])
        self.lines.append(json.dumps([page.url, page.timestamp, text]).encode())
        self.rows.append((url, seconds(page.timestamp), len(found)))
        self.hashes.append(found)
        self.characters += len(text)
        if self.characters >= self.size:
            self.close()

    def close(self) -> None:
        """Writes what is waiting."""
        if not self.lines:
            return
        prefix = f"{self.stem}.{len(self.parts):04d}"
        found = np.concatenate(self.hashes)
        write_whole(Path(f"{prefix}.pages"), zstandard.ZstdCompressor().compress(b"\n".join(self.lines)))
        write_whole(Path(f"{prefix}.table"), np.array(self.rows, TABLE).tobytes())
        write_whole(Path(f"{prefix}.units"), found.tobytes())
        self.parts.append({"pages": len(self.lines), "units": len(found), "characters": self.characters})
        self._clear()

"""Web pages in, clean documents out: the passes in their order, what is finished kept.

Common Crawl -> text -> language, length, blocklist -> JSON with text, URL and timestamp (figure 5 of the paper).

1. Each batch of input files by itself: read, extract the main text, apply the rules that look at one page.
2. All pages together: of each URL the newest, of each line (or span of sentences) the first.
3. Each shard by itself: take out the duplicates, then length, language and blocklist; write.

The order is that of C4's program. Finished batches and shards lie in OUT/.work until the end, so that an interrupted
cleaning goes on there; what is in OUT itself is whole.
"""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.cleaning.batches import Part, batch_key, clean_batch, finished
from jaxlm.data.cleaning.config import Cleaning
from jaxlm.data.cleaning.duplicates import first_of_each
from jaxlm.data.cleaning.folder import WORK, Identity, admit, alone, named, publish
from jaxlm.data.cleaning.inputs import Input, batches, find_inputs
from jaxlm.data.cleaning.language import check_language
from jaxlm.data.cleaning.lists import Lists, read_lists
from jaxlm.data.cleaning.output import KEEP_PAGES, KEEP_UNITS, SPLITS, shards, whole, write_shard
from jaxlm.data.cleaning.report import Report, rule_table
from jaxlm.data.cleaning.tally import Tally
from jaxlm.data.cleaning.workers import Workers
from jaxlm.data.config import DataError
from jaxlm.data.progress import Progress, silent
from jaxlm.data.tokenizer import cores
from jaxlm.files import room


def clean(
    config: Cleaning, source: str, out: str | os.PathLike[str], *, processes: int = 0, progress: Progress = silent
) -> Report:
    """Cleans the web pages of a folder, glob or file into the folder `out`; reports what was dropped and why.

    `out` then holds c4-train.I-of-N.json.gz and c4-validation.I-of-N.json.gz in C4's format, manifest.csv, by which
    `data.path: OUT` finds both, and report.json. Where `out` holds this very cleaning already, nothing is done.
    The same files under the same rules give the same bytes, whatever the number of processes (0: one per core).
    Raises DataError.
    """
    out = Path(out).expanduser()
    if processes < 0:
        raise DataError(f"processes={processes} must be at least 0; 0 means one per core")
    if config.language is not None:
        check_language(config.language)
    lists = read_lists(config.blocklist, config.domains, config.language)
    inputs, others = find_inputs(source, out)
    identity = Identity(config, inputs)
    if (before := admit(out, identity)) is not None:
        shutil.rmtree(out / WORK, ignore_errors=True)  # left by an end between the last two acts of publishing
        return before
    with alone(out / WORK), Workers(processes or cores()) as workers:
        work = _Work(config, lists, out / WORK, identity, workers, progress)
        parts, tally = work.read(batches(inputs))
        work.compare(parts)
        stems, entries = work.write(parts)
        for entry in entries:
            tally.add(Tally.from_json(entry["tally"]))
        made = named(out / WORK, stems, entries)
        report = Report(
            config=json.loads(json.dumps(dataclasses.asdict(config))),
            files=len(inputs),
            bytes=sum(each.bytes for each in inputs),
            left_out=tuple(others),
            tally=tally,
            shards=tuple(shard.to_json() for shard in made),
            versions=identity.versions,
            identity=identity.digest,
        )
        if not made:
            corrupt = f" and {tally.corrupt:,} corrupt places ({tally.corrupt_places[0]})" if tally.corrupt else ""
            table = "\n".join(rule_table(tally))
            shutil.rmtree(out / WORK)
            raise DataError(f"nothing is left of {tally.pages_in:,} pages{corrupt} in {source}:\n{table}")
        publish(out, made, report)
    return report


@dataclasses.dataclass(frozen=True, slots=True)
class _Work:
    """One cleaning under way in its work folder."""

    config: Cleaning
    lists: Lists
    folder: Path
    identity: Identity
    workers: Workers
    progress: Progress

    def read(self, groups: Sequence[tuple[Input, ...]]) -> tuple[list[Part], Tally]:
        """The first pass: what passed, in the order of the input, and the counts."""
        keys = [batch_key(batch, self.identity.rules) for batch in groups]
        calls = [(batch, self.config, self.lists, self.folder, key) for batch, key in zip(groups, keys, strict=True)]
        known = [finished(self.folder, key) for key in keys]
        sizes = [sum(each.bytes for each in batch) for batch in groups]
        parts, tally = [], Tally()
        for key, entry in zip(keys, self._missing("cleaning", clean_batch, calls, known, sizes), strict=True):
            tally.add(Tally.from_json(entry["tally"]))
            for number, facts in enumerate(entry["parts"]):
                parts.append(Part(prefix=str(self.folder / f"{key}.{number:04d}"), **facts))
        return parts, tally

    def compare(self, parts: Sequence[Part]) -> None:
        """The second pass: writes down which pages and which units stay."""
        pages, units = sum(part.pages for part in parts), sum(part.units for part in parts)
        tell = self._teller("comparing", 8 * (pages * self.config.unique_urls + units))
        heard = lambda entries: tell(8 * entries)
        keep = self._flags(KEEP_PAGES, pages)
        if self.config.unique_urls and pages:
            times = np.concatenate([part.table()["time"] for part in parts])
            first_of_each([part.urls for part in parts], pages, keep, ranks=lambda at: -times[at], tell=heard)
        counts = np.concatenate([part.table()["units"] for part in parts]) if parts else np.zeros(0, int)
        flags = self._flags(KEEP_UNITS, units)
        flags[:] = np.repeat(keep, counts)  # a page that goes takes no line from one that stays
        if units:
            first_of_each([part.hashes for part in parts], units, flags, tell=heard)

    def _flags(self, name: str, count: int) -> np.ndarray:
        """[count] bool, all true, that lie in a file."""
        path = self.folder / name
        with room(path, count):
            path.write_bytes(b"\1" * count)
        return np.memmap(path, bool, "r+", shape=(count,)) if count else np.zeros(0, bool)

    def write(self, parts: Sequence[Part]) -> tuple[list[str], list[dict[str, Any]]]:
        """The last pass: names of the shards in the work folder and their entries.

        Where no page falls into validation, the one with the smallest hash goes there, if another stays to train on.
        """
        groups = shards(parts, self.config.shard_characters)
        stems = [f"{self.identity.digest[:24]}-{at:05d}" for at in range(len(groups))]
        below = self.config.validation_fraction
        call = lambda at, below: (groups[at], self.config, self.lists, self.folder, stems[at], below)
        calls = [call(at, below) for at in range(len(groups))]
        known = [whole(self.folder, stem) for stem in stems]
        sizes = [sum(slice.part.characters for slice in group) for group in groups]
        entries = self._missing("writing", write_shard, calls, known, sizes)
        documents = {split: sum(entry[split]["documents"] for entry in entries) for split in SPLITS}
        if below > 0 and not documents["validation"] and documents["train"] > 1:
            at = min(range(len(entries)), key=lambda at: entries[at]["smallest"])
            above = math.nextafter(entries[at]["smallest"], 1.0)
            entries[at] = write_shard(*call(at, above), lambda characters: None)
        return stems, entries

    def _missing(
        self,
        stage: str,
        task: Callable[..., dict[str, Any]],
        calls: Sequence[tuple],
        known: Sequence[dict[str, Any] | None],
        sizes: Sequence[int],
    ) -> list[dict[str, Any]]:
        """The entries of all calls; those an earlier attempt has finished are `known` and not made again."""
        entries = list(known)
        missing = [at for at, entry in enumerate(known) if entry is None]
        done = sum(sizes) - sum(sizes[at] for at in missing)
        tell = self._teller(stage, sum(sizes), done)
        for number, entry in self.workers.each(task, [calls[at] for at in missing], tell):
            entries[missing[number]] = entry
        return [entry for entry in entries if entry is not None]

    def _teller(self, stage: str, total: int, done: int = 0) -> Callable[[int], None]:
        """Adds up what is done of a stage and shows it."""

        def tell(more: int) -> None:
            nonlocal done
            done += more
            self.progress(stage, min(done, total), total)

        tell(0)
        return tell

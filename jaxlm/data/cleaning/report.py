"""What a cleaning read, dropped and kept, as JSON for programs and as a table for people."""

import dataclasses
from typing import Any

from jaxlm.data.cleaning.tally import RULES, Tally


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of a cleaning.

    Attributes:
        config: The `Cleaning` as plain values.
        files: Input files.
        bytes: Their bytes on disk.
        left_out: Files of other kinds.
        tally: What was read, and what each rule dropped.
        shards: Per written file: name, split, documents, bytes of text, bytes on disk, sha256 of the lines.
        versions: Of the libraries that decide the result.
        identity: Digest of the rules and of the input files.
    """

    config: dict[str, Any]
    files: int
    bytes: int
    left_out: tuple[str, ...]
    tally: Tally
    shards: tuple[dict[str, Any], ...]
    versions: dict[str, str | None]
    identity: str

    def total(self, what: str, split: str | None = None) -> int:
        """`documents` or `bytes` of text kept, in one split or in all."""
        return sum(shard[what] for shard in self.shards if split in (None, shard["split"]))

    def share(self, rule: str) -> float:
        """Pages that a rule dropped, as a share of the pages that reached it."""
        names, dropped = list(RULES), self.tally.pages
        before = sum(dropped.get(name, 0) for name in names[: names.index(rule)])
        return dropped.get(rule, 0) / max(self.tally.pages_in - before, 1)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "Report":
        changed = {
            "tally": Tally.from_json(raw["tally"]),
            "left_out": tuple(raw["left_out"]),
            "shards": tuple(raw["shards"]),
        }
        return cls(**raw | changed)

    def lines(self) -> list[str]:
        """The report as a person reads it."""
        tally, kept = self.tally, self.total("documents")
        skipped = sum(tally.skipped.values())
        lines = [f"read {self.files:,} files, {self.bytes / 1e6:,.1f} MB: {tally.pages_in:,} pages"]
        if skipped:
            most = sorted(tally.skipped.items(), key=lambda each: (-each[1], each[0]))
            lines.append(f"records that are no page: {skipped:,} ({', '.join(f'{n:,} {why}' for why, n in most)})")
        if tally.corrupt:
            lines.append(f"cannot be read: {tally.corrupt:,} places, {tally.corrupt_places[0]}")
        if self.left_out:
            lines.append(f"files of other kinds, left out: {len(self.left_out):,}, {self.left_out[0]}")
        lines += ["", *rule_table(tally), ""]
        share = kept / max(tally.pages_in, 1)
        lines.append(f"kept {kept:,} of {tally.pages_in:,} pages ({share:.1%}), {self.total('bytes') / 1e6:,.1f} MB")
        for split in dict.fromkeys(shard["split"] for shard in self.shards):
            count = sum(shard["split"] == split for shard in self.shards)
            documents = self.total("documents", split)
            lines.append(f"  {split}: {documents:,} documents in {count:,} {'shard' if count == 1 else 'shards'}")
        return lines


def rule_table(tally: Tally) -> list[str]:
    """One line per rule that dropped something, in the order in which they are applied."""
    rows = [("rule", "lines", "pages", "what it finds", "an example")]
    for rule, meaning in RULES.items():
        lines, pages = tally.lines.get(rule, 0), tally.pages.get(rule, 0)
        if lines or pages:
            url, detail = tally.examples[rule][0]
            example = f"{url}: {detail}" if detail else url
            example = " ".join(example.split())
            example = example if len(example) <= 80 else f"{example[:77]}..."
            rows.append((rule, f"{lines:,}" if lines else "-", f"{pages:,}" if pages else "-", meaning, example))
    if len(rows) == 1:
        return ["no rule dropped anything"]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        "  ".join(
            (row[0].ljust(widths[0]), row[1].rjust(widths[1]), row[2].rjust(widths[2]), row[3].ljust(widths[3]), row[4])
        )
        for row in rows
    ]

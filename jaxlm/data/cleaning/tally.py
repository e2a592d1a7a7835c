"""Counts what was read and what each rule dropped, with a few examples by URL, so that nothing goes in silence."""

import dataclasses
from typing import Any

from jaxlm.data.cleaning.pages import Corrupt

EXAMPLES = 3  # per rule
PLACES = 20  # corrupt places that are remembered by name

RULES = {
    "domain": "URL outside the domains given",
    "no_text": "no main text in the HTML, or no text left",
    "too_long": "more than maximum_characters before cleaning",
    "long_word": "a word of more than maximum_word characters",
    "no_end_mark": "no end mark at the end, or three points",
    "few_words": "fewer than minimum_words words",
    "lorem_ipsum": "lorem ipsum",
    "javascript": "the word javascript",
    "curly_bracket": "a curly bracket",
    "policy": "terms of use, privacy or cookies",
    "few_sentences": "fewer than minimum_sentences sentences left",
    "duplicate_url": "another page of this URL is newer, or as new and earlier",
    "duplicate": "stood earlier in the corpus; pages: too few sentences are left",
    "too_short": "fewer than minimum_characters left",
    "language": "another language, or not sure enough",
    "blocklist": "a word of the blocklist",
}
"""Every rule in the order in which it is applied, and what it finds."""


@dataclasses.dataclass(slots=True)
class Tally:
    """Counts of one part of the work; tallies add up in the order of the input.

    `lines` and `pages` count what each rule dropped; `examples` holds (URL, detail) of the first few.
    """

    pages_in: int = 0
    lines_in: int = 0
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    corrupt: int = 0
    corrupt_places: list[str] = dataclasses.field(default_factory=list)
    lines: dict[str, int] = dataclasses.field(default_factory=dict)
    pages: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: dict[str, list[tuple[str, str]]] = dataclasses.field(default_factory=dict)

    def skip(self, why: str) -> None:
        self.skipped[why] = self.skipped.get(why, 0) + 1

    def damage(self, corrupt: Corrupt) -> None:
        self.corrupt += 1
        self.corrupt_places = [*self.corrupt_places, f"{corrupt.where}: {corrupt.why}"][:PLACES]

    def drop_line(self, rule: str, url: str, line: str) -> None:
        self.lines[rule] = self.lines.get(rule, 0) + 1
        self._remember(rule, url, line)

    def drop_page(self, rule: str, url: str, detail: str = "") -> None:
        self.pages[rule] = self.pages.get(rule, 0) + 1
        self._remember(rule, url, detail)

    def _remember(self, rule: str, url: str, detail: str) -> None:
        known = self.examples.setdefault(rule, [])
        if len(known) < EXAMPLES:
            known.append((url, detail if len(detail) <= 100 else detail[:97] + "..."))

    def add(self, other: "Tally") -> None:
        """Takes in the counts of what comes after this."""
        self.pages_in += other.pages_in
        self.lines_in += other.lines_in
        self.corrupt += other.corrupt
        self.corrupt_places = [*self.corrupt_places, *other.corrupt_places][:PLACES]
        for ours, theirs in (
            (self.skipped, other.skipped),
            (self.lines, other.lines),
            (self.pages, other.pages),
        ):
            for name, count in theirs.items():
                ours[name] = ours.get(name, 0) + count
        for rule, examples in other.examples.items():
            self.examples[rule] = [*self.examples.get(rule, []), *examples][:EXAMPLES]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "Tally":
        examples = {rule: [(url, detail) for url, detail in found] for rule, found in raw["examples"].items()}
        return cls(**{**raw, "examples": examples})

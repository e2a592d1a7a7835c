"""What a user may say about cleaning web text; the defaults are those of C4's English set."""

import dataclasses
from typing import Literal

from jaxlm.data.config import DataError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LineRules:
    """The rules that look at a line, each on or off, in the order in which they are applied.

    Attributes:
        long_word: Drop lines with a word of more than maximum_word characters.
        citation: Take marks such as [1], [edit] and [citation needed] out of lines.
        no_end_mark: Drop lines that end in no character of end_marks, or in "...".
        few_words: Drop lines with fewer than minimum_words words.
        lorem_ipsum: Drop pages with "lorem ipsum".
        javascript: Drop lines with the word javascript, as in notices to switch it on.
        curly_bracket: Drop pages with a {, which is program code more often than prose.
        policy: Drop lines with "terms of use", "privacy policy", "cookie policy" or about the use of cookies.
    """

    long_word: bool = True
    citation: bool = True
    no_end_mark: bool = True
    few_words: bool = True
    lorem_ipsum: bool = True
    javascript: bool = True
    curly_bracket: bool = True
    policy: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cleaning:
    """Which pages and lines of web text are kept. The defaults are C4's (Raffel et al. 2020, section 2.2).

    Attributes:
        language: Keep pages in this language (ISO 639-1 code: en; Norwegian in quotes, "no"); null keeps all.
        language_probability: The least probability of the language, from 0 to 1.
        minimum_characters: Pages with a shorter text are dropped, after everything else has been taken out.
        maximum_characters: Pages with a longer text are dropped before anything is taken out; 0: no limit.
        minimum_words: Words a line must have (rule few_words).
        maximum_word: Characters a word may have (rule long_word).
        end_marks: Characters of which one must end a line (rule no_end_mark).
        rules: The rules for lines, each on or off: --rules.javascript false
        minimum_sentences: Pages with fewer sentences are dropped, before and after duplicates are taken out.
        blocklist: File of words and phrases, one per line; pages with any of them are dropped. null: off.
        domains: File of domains, one per line, or RealNews' JSON; pages from elsewhere are dropped. null: off.
        unique_urls: Whether of several pages with one URL only the newest is kept.
        deduplicate: What may occur once in the whole corpus: `lines` as in C4's program, `spans` of three
            sentences as in C4's paper, or `none`.
        validation_fraction: Share of the pages, chosen by a hash of the URL, written as validation shards.
        shard_characters: Characters of text per shard, before duplicates are taken out.
    """

    language: str | None = "en"
    language_probability: float = 0.99
    minimum_characters: int = 128
    maximum_characters: int = 190_000
    minimum_words: int = 5
    maximum_word: int = 1000
    end_marks: str = '.?!"'
    rules: LineRules = dataclasses.field(default_factory=LineRules)
    minimum_sentences: int = 3
    blocklist: str | None = None
    domains: str | None = None
    unique_urls: bool = True
    deduplicate: Literal["lines", "spans", "none"] = "lines"
    validation_fraction: float = 0.001
    shard_characters: int = 128_000_000

    def __post_init__(self) -> None:
        if self.language is not None and not self.language:
            raise DataError("language is empty: give a code such as en, or null to keep every language")
        for name in ("language_probability", "validation_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name}={getattr(self, name)} must be between 0 and 1")
        if self.validation_fraction == 1:
            raise DataError("validation_fraction=1 leaves nothing to train on: give less")
        for name in ("minimum_characters", "maximum_characters", "minimum_words", "minimum_sentences"):
            if getattr(self, name) < 0:
                raise DataError(f"{name}={getattr(self, name)} must be at least 0")
        for name in ("maximum_word", "shard_characters"):
            if getattr(self, name) < 1:
                raise DataError(f"{name}={getattr(self, name)} must be at least 1")
        if 0 < self.maximum_characters < self.minimum_characters:
            raise DataError(
                f"maximum_characters={self.maximum_characters} is below minimum_characters={self.minimum_characters}: "
                "no page would be kept"
            )
        if not self.end_marks and self.rules.no_end_mark:
            raise DataError(
                "end_marks is empty, so every line would be dropped: give marks, or rules.no_end_mark=false"
            )
        if self.deduplicate not in ("lines", "spans", "none"):
            raise DataError(f"deduplicate={self.deduplicate!r} must be lines, spans or none")

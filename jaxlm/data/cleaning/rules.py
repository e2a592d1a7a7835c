"""The rules of C4 that look at lines, each a small function with the name under which it is counted.

Constants and order are those of `clean_page` in
https://github.com/tensorflow/datasets/blob/master/tensorflow_datasets/text/c4_utils.py, which made the released
data; Raffel et al. 2020, section 2.2, describes them.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Literal

from jaxlm.data.cleaning.config import Cleaning, LineRules
from jaxlm.data.cleaning.sentences import sentences

CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


def long_word(line: str, config: Cleaning) -> bool:
    """A word of more than `maximum_word` characters."""
    return any(len(word) > config.maximum_word for word in line.split())


def citation(line: str) -> str:
    """The line without marks such as [1], [edit] and [citation needed], and without the space before a last one."""
    return CITATION.sub("", line).rstrip()


def no_end_mark(line: str, config: Cleaning) -> bool:
    """No mark of `end_marks` at the end, or three points."""
    return not line.endswith(tuple(config.end_marks)) or line.endswith("...")


def few_words(line: str, config: Cleaning) -> bool:
    """Fewer than `minimum_words` words."""
    return len(line.split()) < config.minimum_words


def lorem_ipsum(line: str, config: Cleaning) -> bool:
    """Filler text."""
    return "lorem ipsum" in line.lower()


def javascript(line: str, config: Cleaning) -> bool:
    """A notice that JavaScript should be switched on."""
    return "javascript" in line.lower()


def curly_bracket(line: str, config: Cleaning) -> bool:
    """A `{`, as in program code."""
    return "{" in line


def policy(line: str, config: Cleaning) -> bool:
    """A notice about terms, privacy or cookies."""
    line = line.lower()
    return any(phrase in line for phrase in POLICIES)


Drops = Callable[[str, Cleaning], bool]
LINES: dict[str, tuple[Literal["line", "page"], Drops]] = {
    "long_word": ("line", long_word),
    "no_end_mark": ("line", no_end_mark),
    "few_words": ("line", few_words),
    "lorem_ipsum": ("page", lorem_ipsum),
    "javascript": ("line", javascript),
    "curly_bracket": ("page", curly_bracket),
    "policy": ("line", policy),
}
"""What a rule that finds its line drops: that line, or the whole page. (`citation` changes the line instead.)"""


@dataclasses.dataclass(slots=True)
class Lines:
    """A page after the rules: the lines kept, (rule, line) of those dropped, and the rule that dropped it whole."""

    kept: list[str] = dataclasses.field(default_factory=list)
    dropped: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    page: str | None = None


def clean_lines(text: str, config: Cleaning) -> Lines:
    """Applies the rules to each line of a text, up to the first rule that drops the page."""
    found = Lines()
    applied = [rule.name for rule in dataclasses.fields(LineRules) if getattr(config.rules, rule.name)]
    for line in text.splitlines():
        line = line.strip()
        if not line:
            continue
        for name in applied:
            if name == "citation":
                line = citation(line)
                continue
            drops, holds = LINES[name]
            if holds(line, config):
                found.dropped.append((name, line))
                if drops == "page":
                    found.page = name
                    return found
                break
        else:
            if line:
                found.kept.append(line)
    return found


def few_sentences(text: str, config: Cleaning) -> bool:
    """Fewer than `minimum_sentences` sentences in all lines together."""
    return sum(len(sentences(line)) for line in text.split("\n")) < config.minimum_sentences

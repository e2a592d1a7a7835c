"""Cuts English-like text into sentences, without a trained model."""

import re

_END = re.compile(r"[.!?]+[\"'\u201d\u2019)\]]*\s+(?=[\"'\u201c\u2018(\[]*(\S))")
_TITLES = {"mr", "mrs", "ms", "dr", "prof", "st", "vs", "jr", "sr", "rev", "hon", "gen", "col", "capt", "lt", "sgt",
           "fig", "no", "vol", "pp", "e.g", "i.e", "cf", "mt", "ft", "messrs", "mme", "mlle"}  # fmt: skip


def sentences(line: str) -> list[str]:
    """The sentences of a line, white space after each included, so that joined they are the line again.

    A sentence ends at . ! or ? followed by white space and something that is no lower-case letter, unless the point
    belongs to a title, an initial or a known abbreviation. C4 used NLTK's Punkt, which learns abbreviations from
    text; scripts that write no space after a sentence count as one sentence here, as they do there.
    """
    parts, start = [], 0
    for found in _END.finditer(line):
        if found[1].islower() or (found[0][:2].rstrip() == "." and _abbreviated(line[start : found.start()])):
            continue
        parts.append(line[start : found.end()])
        start = found.end()
    return [*parts, line[start:]] if start < len(line) else parts


def _abbreviated(before: str) -> bool:
    """Whether the text before a point ends in a title, an initial or an abbreviation."""
    word = before[-12:].split()[-1:] or [""]
    last = word[0].lstrip("\"'\u201c\u2018([")
    return (len(last) == 1 and last.isupper() and last != "I") or last.lower() in _TITLES

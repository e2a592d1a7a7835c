"""Texts with the words that people marked: CoS-E, Toxic Spans, e-SNLI and ERASER's format. Each reader takes a path.

Axes: W words of a text.
"""

import ast
import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.config import DataError
from jaxlm.explain.texts import WORD, Example, spans, split
from jaxlm.files import write_whole


@dataclass(frozen=True)
class Marked:
    """Texts with rationales, the licence they come under, and the rows left out, by reason."""

    examples: list[Example]
    licence: str
    left_out: Mapping[str, int] = field(default_factory=dict)


def _opened(path: Path) -> io.TextIOBase:
    """A UTF-8 file, plain or .gz, also where only the other form is there. Raises DataError."""
    there = next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)
    if there is None:
        raise DataError(f"there is no file {path}, plain or .gz")
    if there.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(there), "utf-8", newline="")
    return there.open(encoding="utf-8", newline="")


def _lines(path: Path, needed: Sequence[str]) -> Iterator[dict[str, Any]]:
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}:{number} is no JSON: {error}") from error
            if missing := [name for name in needed if name not in row]:
                raise DataError(f"{path}:{number} has no key {', '.join(missing)}")
            yield row


def read_cose(folder: Path, part: str, version: str = "v1.0") -> Marked:
    """CoS-E (https://github.com/salesforce/cos-e, BSD-3-Clause): questions of CommonsenseQA, the words that a person
    selected; `part` is train or dev. The example's name ends in the right answer after a tab.

    Files `VERSION__cose_PART_VERSION.jsonl` and `VERSION__PART_rand_split.jsonl`. People dragged a mouse: a selection
    may begin and end inside a word, and hold the page's own `Question:` and `Answer Choices:`. A word is marked where
    at least half of it is selected. What does not stand in its question, spaces aside, is left out and counted. Raises
    DataError.
    """
    chosen = {
        row["id"]: row["explanation"]["selected"]
        for row in _lines(folder / f"{version}__cose_{part}_{version}.jsonl", ("id", "explanation"))
    }
    found, left = [], {"no selection": 0, "selection is not in the question": 0}
    for row in _lines(folder / f"{version}__{part}_rand_split.jsonl", ("id", "question", "answerKey")):
        selected = chosen.get(row["id"])
        if selected is None:
            left["no selection"] += 1
            continue
        words = split(row["question"]["stem"])
        marks = _selected(words, selected.partition("Answer Choices:")[0].strip().removeprefix("Question:"))
        if not marks.any():
            left["selection is not in the question"] += 1
            continue
        answer = next(c["text"] for c in row["question"]["choices"] if c["label"] == row["answerKey"])
        found.append(Example(tuple(w.lower() for w in words), None, marks, f"{row['id']}\t{answer}"))
    return Marked(found, "BSD-3-Clause", left)


def _selected(words: Sequence[str], selection: str) -> np.ndarray:
    """Which words lie in `selection` by at least half, bool [W]; spaces and case do not count. Of several places where
    it stands, the first that begins and ends with a word, else the first."""
    ends = np.cumsum([0, *(len(w) for w in words)])
    text, part = "".join(words).lower(), "".join(split(selection)).lower()
    places = [i for i in range(len(text)) if text.startswith(part, i)] if part else []
    if not places:
        return np.zeros(len(words), bool)
    edges = set(ends.tolist())
    start = next((i for i in places if i in edges and i + len(part) in edges), places[0])
    inside = np.minimum(start + len(part), ends[1:]) - np.maximum(start, ends[:-1])
    return inside >= 0.5 * np.diff(ends)


@dataclass(frozen=True, slots=True)
class SpanText:
    """A comment with the characters that people marked, and where its words lie in it."""

    text: str
    gold: frozenset[int]
    words: tuple[str, ...]
    places: tuple[tuple[int, int], ...]

    def example(self, name: str = "") -> Example:
        """A word is marked where any of its characters is."""
        marks = [any(c in self.gold for c in range(*place)) for place in self.places]
        return Example(tuple(w.lower() for w in self.words), 1, np.array(marks, bool), name)

    def characters(self, chosen: np.ndarray) -> set[int]:
        """The characters of the words chosen (bool [W]), with those between neighbours that are both chosen."""
        return {
            c for first, last in spans(chosen) for c in range(self.places[first][0], self.places[last - 1][1])
        }  # fmt: skip


def read_toxic_spans(path: Path) -> list[SpanText]:
    """A file of SemEval-2021 task 5 (https://github.com/ipavlopoulos/toxic_spans, CC0): columns `spans`, a list of
    character offsets, and `text`. Raises DataError."""
    csv.field_size_limit(1 << 24)
    with _opened(path) as file:
        reader = csv.DictReader(file)
        if missing := [c for c in ("spans", "text") if c not in (reader.fieldnames or ())]:
            raise DataError(f"{path} has no column {', '.join(missing)}")
        found = []
        for row in reader:
            matches = list(WORD.finditer(row["text"]))
            words, places = tuple(m.group() for m in matches), tuple(m.span() for m in matches)
            found.append(SpanText(row["text"], frozenset(ast.literal_eval(row["spans"])), words, places))
    return found


def read_esnli(path: Path) -> Marked:
    """e-SNLI's CSV (https://github.com/OanaMariaCamburu/e-SNLI, MIT): `Sentence1`, `Sentence2`, `gold_label`, and the
    marked sentences `Sentence1_marked_1`, `Sentence2_marked_1`, in which stars stand around the words that a person
    highlighted. Raises DataError naming what is missing: the copies without highlights cannot be used here."""
    names = ("entailment", "neutral", "contradiction")
    needed = ("gold_label", "Sentence1_marked_1", "Sentence2_marked_1")
    with _opened(path) as file:
        reader = csv.DictReader(file)
        if missing := [c for c in needed if c not in (reader.fieldnames or ())]:
            raise DataError(f"{path} has no column {', '.join(missing)}: highlights are in e-SNLI's own CSV files")
        found, left = [], {"unknown label": 0}
        for number, row in enumerate(reader):
            if row["gold_label"] not in names:
                left["unknown label"] += 1
                continue
            pieces = [word for key in needed[1:] for word in row[key].split()]
            words = tuple(w.replace("*", "").lower() or "*" for w in pieces)
            marks = np.array(["*" in w for w in pieces], bool)
            found.append(Example(words, names.index(row["gold_label"]), marks, str(number)))
    return Marked(found, "MIT; SNLI sentences CC BY-SA 4.0", left)


def write_eraser(folder: Path, part: str, examples: Sequence[Example], classes: Sequence[str]) -> Path:
    """ERASER's format (https://github.com/jayded/eraserbenchmark): `docs/NAME`, words split by blanks, and a line of
    `PART.jsonl` per text with its label and the spans people marked. Names must be usable as file names."""
    (folder / "docs").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, example in enumerate(examples):
        name = example.name or f"{part}_{number}"
        if "/" in name or any(c.isspace() for w in example.words for c in w):
            raise DataError(
                f"{name!r} is no file name, or a word of it holds white space: not possible in ERASER's format"
            )
        write_whole(folder / "docs" / name, example.text.encode())
        runs = [] if example.rationale is None else spans(example.rationale)
        evidence = [
            {"text": " ".join(example.words[a:b]), "docid": name, "start_token": a, "end_token": b,
             "start_sentence": -1, "end_sentence": -1}
            for a, b in runs
        ]  # fmt: skip
        label = None if example.label is None else classes[example.label]
        line = {
            "annotation_id": name,
            "classification": label,
            "evidences": [evidence] if evidence else [],
            "query": "",
        }
        lines.append(json.dumps(line) + "\n")
    write_whole(folder / f"{part}.jsonl", "".join(lines).encode())
    return folder / f"{part}.jsonl"


def read_eraser(folder: Path, part: str, classes: Sequence[str]) -> list[Example]:
    """What `write_eraser` or ERASER itself wrote; evidence in several documents is joined in the order of their names.
    Raises DataError."""
    found = []
    for row in _lines(folder / f"{part}.jsonl", ("annotation_id", "classification", "evidences")):
        evidence = [one for group in row["evidences"] for one in group]
        names = sorted({one["docid"] for one in evidence}) or [row["annotation_id"]]
        words, marks = [], []
        for name in names:
            path = folder / "docs" / name
            if not path.is_file():
                raise DataError(f"{folder / part}.jsonl names the document {name}, and there is no {path}")
            own = path.read_text(encoding="utf-8").split()
            mine = np.zeros(len(own), bool)
            for one in evidence:
                if one["docid"] == name:
                    mine[one["start_token"] : one["end_token"]] = True
            words += own
            marks.append(mine)
        label = row["classification"]
        if label is not None and label not in classes:
            raise DataError(f"{folder / part}.jsonl: label {label!r} is not among {', '.join(classes)}")
        number = None if label is None else list(classes).index(label)
        found.append(Example(tuple(words), number, np.concatenate(marks), row["annotation_id"]))
    return found

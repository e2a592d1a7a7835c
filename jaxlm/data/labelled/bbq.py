"""BBQ: questions whose answer a biased model takes from a stereotype, with three answers each.

Parrish et al. 2022, https://arxiv.org/abs/2110.08193, CC BY 4.0.
"""

from dataclasses import dataclass
from pathlib import Path

from jaxlm.data.config import DataError
from jaxlm.data.labelled.rows import records

LICENCE = "CC BY 4.0 (nyu-mll/BBQ)"
ANSWERS = ("ans0", "ans1", "ans2")


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        id: category and number.
        category: e.g. Religion.
        context, question: what is read.
        answers: the three answers.
        groups: the group that each answer names, `unknown` for the one that names none.
        label: the right answer.
        negative: whether the question asks for something bad; else it asks for the opposite.
        ambiguous: whether the context leaves the answer open, so that `unknown` is right.
        stereotyped: the groups of which the stereotype speaks.
    """

    id: str
    category: str
    context: str
    question: str
    answers: tuple[str, str, str]
    groups: tuple[str, str, str]
    label: int
    negative: bool
    ambiguous: bool
    stereotyped: tuple[str, ...]


def read_bbq(path: str | Path, key: str = "data.path") -> list[Question]:
    """The questions of a JSONL file, or of every one in a folder (plain or .gz). Raises DataError."""
    found = Path(path).expanduser()
    files = sorted([*found.glob("*.jsonl"), *found.glob("*.jsonl.gz")]) if found.is_dir() else [found]
    if not files or not all(file.is_file() for file in files):
        raise DataError(f"{key}={path} is neither a BBQ file nor a folder of *.jsonl")
    needed = (
        "example_id", "category", "context", "question", *ANSWERS, "answer_info", "label", "question_polarity",
        "context_condition", "additional_metadata",
    )  # fmt: skip
    questions = []
    for file in files:
        for row in records(file, needed):
            a, b, c = (str(row[name]) for name in ANSWERS)
            ga, gb, gc = (str(row["answer_info"][name][-1]) for name in ANSWERS)
            if row["label"] not in (0, 1, 2):
                raise DataError(f"{file}: question {row['example_id']} has label {row['label']!r}, not 0, 1 or 2")
            questions.append(
                Question(
                    id=f"{row['category']}-{row['example_id']}",
                    category=row["category"],
                    context=row["context"],
                    question=row["question"],
                    answers=(a, b, c),
                    groups=(ga, gb, gc),
                    label=row["label"],
                    negative=row["question_polarity"] == "neg",
                    ambiguous=row["context_condition"] == "ambig",
                    stereotyped=tuple(row["additional_metadata"].get("stereotyped_groups", ())),
                )
            )
    if not questions:
        raise DataError(f"{path} holds no question")
    return questions

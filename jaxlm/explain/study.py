"""A user study as the paper designed it, ready to be run with people, and the analysis of what they answer.

N = 150, 70 % general users and 30 % experts (law, finance, education), each assigned at random to one of three blind
arms, three tasks, five-point Likert answers. Satisfaction is the share of ratings of at least 4, in percent, with the
mean beside it. No number is printed where nobody took part.
"""

import csv
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxlm.decode import ConfigError
from jaxlm.files import write_whole

PARTICIPANTS, EXPERTS = 150, 0.3
FIELDS = ("law", "finance", "education")
ARMS = ("ours", "Grad-CAM", "vanilla attention")
TASKS = {
    "understand": "I understand why the system gave this label.",
    "predict": "With this explanation I could predict what the system says of a similar text.",
    "trust": "The explanation helps me to decide whether to trust this label.",
}
SATISFIED = 4
COLUMNS = ("participant", "stratum", "field", "arm", "text", "task", "rating")


@dataclass(frozen=True, slots=True)
class Participant:
    """`arm` is a letter: the key that says which method it stands for is kept apart from the forms."""

    number: int
    stratum: str
    field: str
    arm: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A text as participants see it: what the system said, and method -> bool [W], the words pointed out."""

    words: Sequence[str]
    label: str
    pointed: Mapping[str, np.ndarray]


def assign(
    seed: int = 0, count: int = PARTICIPANTS, arms: Sequence[str] = ARMS
) -> tuple[list[Participant], dict[str, str]]:
    """Participants, and the key letter -> method. Arms differ by one participant at most in each stratum; letters and
    order are drawn by `seed`."""
    random = np.random.default_rng(seed)
    letters = [chr(ord("A") + i) for i in range(len(arms))]
    key = dict(zip(letters, random.permutation(list(arms)).tolist(), strict=True))
    experts = round(EXPERTS * count)
    people: list[Participant] = []
    for stratum, size in (("general", count - experts), ("expert", experts)):
        dealt = random.permutation([letters[i % len(letters)] for i in range(size)])
        for i, arm in enumerate(dealt):
            field = FIELDS[i % len(FIELDS)] if stratum == "expert" else ""
            people.append(Participant(len(people) + 1, stratum, field, str(arm)))
    return people, key


def export(folder: Path, texts: Sequence[Shown], *, seed: int = 0, count: int = PARTICIPANTS) -> list[Path]:
    """Writes an HTML form per arm, `answers.csv` with a line per rating to be filled in, and `key.json`, which the
    person who hands out the forms must not open.

    Raises ConfigError where a text has no explanation by one of the arms.
    """
    for text in texts:
        if missing := [arm for arm in ARMS if arm not in text.pointed]:
            raise ConfigError(f"a text of the study has no explanation by {', '.join(missing)}")
    people, key = assign(seed, count)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for letter, method in key.items():
        written.append(folder / f"form_{letter}.html")
        write_whole(written[-1], form(letter, [(t.words, t.label, t.pointed[method]) for t in texts]).encode())
    answers = folder / "answers.csv"
    with answers.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(COLUMNS)
        for p in people:
            for number in range(1, len(texts) + 1):
                lines.writerows([(p.number, p.stratum, p.field, p.arm, number, task, "") for task in TASKS])
    write_whole(folder / "key.json", (json.dumps(key, indent=2) + "\n").encode())
    return [*written, answers, folder / "key.json"]


def form(letter: str, texts: Sequence[tuple[Sequence[str], str, np.ndarray]]) -> str:
    """One self-contained page of texts, the words pointed out in bold, and five-point scales; it names no method."""
    parts = []
    for number, (words, label, pointed) in enumerate(texts, 1):
        shown = " ".join(
            f"<b>{html.escape(w)}</b>" if mark else html.escape(w) for w, mark in zip(words, pointed, strict=True)
        )
        asked = "".join(
            f"<p>{html.escape(question)}<br>disagree "
            + "".join(
                f'<label><input type="radio" name="{number}-{task}" value="{v}">{v}</label> ' for v in range(1, 6)
            )
            + "agree</p>"
            for task, question in TASKS.items()
        )
        parts.append(
            f"<section><h2>Text {number}</h2><p>{shown}</p>"
            f"<p>The system says: {html.escape(label)}</p>{asked}</section>"
        )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Explanations</title></head><body>'
        f"<h1>Form {letter}</h1><p>Participant number <input></p>"
        "<p>Some texts may be offensive. You may stop at any time.</p>" + "".join(parts) + "</body></html>\n"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Satisfaction:
    """One arm: people who answered, ratings, share of ratings of at least 4 in percent, mean rating, and a 95 %
    interval of the share that draws people, not ratings."""

    method: str
    people: int
    ratings: int
    percent: float
    mean: float
    low: float
    high: float


def analyse(answers: Path, key: Path, *, seed: int = 0, draws: int = 2000) -> list[Satisfaction]:
    """One entry per arm with answers. Raises ConfigError where nobody answered, a rating is not 1 to 5, or a column is
    missing."""
    names = json.loads(key.read_text(encoding="utf-8"))
    with answers.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := [c for c in COLUMNS if c not in (reader.fieldnames or ())]:
            raise ConfigError(f"{answers} has no column {', '.join(missing)}")
        rows = [row for row in reader if row["rating"].strip()]
    if not rows:
        raise ConfigError(f"{answers} holds no rating: nobody has taken part, so there is no satisfaction to report")
    given: dict[str, dict[str, list[int]]] = {}
    for row in rows:
        if row["rating"].strip() not in "12345" or row["arm"] not in names:
            raise ConfigError(
                f"{answers}: participant {row['participant']} has rating {row['rating']!r} in arm {row['arm']!r}; "
                f"ratings are 1 to 5, arms {', '.join(names)}"
            )
        given.setdefault(row["arm"], {}).setdefault(row["participant"], []).append(int(row["rating"]))
    random, found = np.random.default_rng(seed), []
    for letter in sorted(given):
        ratings = [np.array(each) for each in given[letter].values()]
        every = np.concatenate(ratings)
        satisfied = np.array([np.sum(r >= SATISFIED) for r in ratings])
        sizes = np.array([len(r) for r in ratings])
        drawn = random.integers(0, len(ratings), (draws, len(ratings)))
        low, high = np.quantile(satisfied[drawn].sum(1) / sizes[drawn].sum(1), [0.025, 0.975])
        found.append(
            Satisfaction(
                method=names[letter],
                people=len(ratings),
                ratings=len(every),
                percent=100 * float(np.mean(every >= SATISFIED)),
                mean=float(every.mean()),
                low=100 * float(low),
                high=100 * float(high),
            )
        )
    return found

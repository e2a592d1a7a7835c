"""HateCheck: functional tests for detectors of hate, each with the group it is aimed at. Never to be trained on.

Roettger et al. 2021, https://arxiv.org/abs/2012.15606, CC BY 4.0.
"""

from pathlib import Path

from jaxlm.data.config import DataError
from jaxlm.data.labelled.rows import TEST, Labelled, Post, find, table, usable, words

LICENCE = "CC BY 4.0 (paul-rottger/hatecheck-data)"
CLASSES = ("non-hateful", "hateful")
FILES = ("test_suite_cases.csv",)


def read_hatecheck(path: str | Path, key: str = "data.path") -> Labelled:
    """The rows of `test_suite_cases.csv` (plain or .gz), all of them test rows; the group is `target_ident`, and rows
    aimed at nobody have none. Raises DataError."""
    file = find(path, key, FILES)
    posts = []
    for row in table(file, ("case_id", "test_case", "label_gold", "target_ident")):
        if row["label_gold"] not in CLASSES:
            raise DataError(f"{file}: case {row['case_id']} has label_gold {row['label_gold']!r}")
        target = row["target_ident"].strip().lower()
        posts.append(
            Post(
                id=row["case_id"],
                words=words(row["test_case"]),
                label=CLASSES.index(row["label_gold"]),
                split=TEST,
                groups=(target,) if target else (),
            )
        )
    return Labelled("HateCheck", LICENCE, CLASSES, usable(posts, file))

"""CivilComments, also known as Jigsaw Unintended Bias: comments with a share of raters who call them toxic, and the
shares who say that they speak of an identity.

Borkan et al. 2019, https://arxiv.org/abs/1903.04561, CC0 1.0.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxlm.data.config import DataError
from jaxlm.data.labelled.rows import TEST, TRAIN, VALID, Labelled, Post, find, require, table, usable, words

LICENCE = "CC0 1.0 (Civil Comments)"
CLASSES = ("harmless", "toxic")
FILES = ("train.csv", "all_data.csv")
IDENTITIES = (
    "male", "female", "transgender", "homosexual_gay_or_lesbian", "christian", "jewish", "muslim", "black", "white",
    "asian", "latino", "psychiatric_or_mental_illness",
)  # fmt: skip
AGREED = 0.5
"""The share of raters from which a comment counts as toxic, or as speaking of an identity (Borkan et al. 2019)."""
VALID_SHARE, TEST_SHARE = 0.1, 0.1


def read_civil_comments(path: str | Path, key: str = "data.path") -> Labelled:
    """Rows of the Kaggle CSV (a file, or a folder with train.csv or all_data.csv), or of a folder that TensorFlow
    Datasets prepared as ArrayRecord (`tfds build civil_comments/CivilCommentsIdentities --file_format=array_record`).

    Where no split is given (`split` in the CSV), a hash of the row's id holds out a tenth each for validation and test.
    Rows without a share of toxicity or without text are counted in `left_out`. Raises DataError.
    """
    folder = Path(path).expanduser()
    prepared = (folder / "dataset_info.json").is_file()
    rows = _prepared(folder, key) if prepared else _csv(find(path, key, FILES))
    posts, left_out = [], {"without text or toxicity": 0}
    for id, text, share, split, identities in rows:
        if not text.strip() or share is None:
            left_out["without text or toxicity"] += 1
            continue
        groups = None
        if identities is not None:
            groups = tuple(name for name, value in identities.items() if value >= AGREED)
        posts.append(Post(id=id, words=words(text), label=int(share >= AGREED), split=split, groups=groups))
    return Labelled("CivilComments", LICENCE, CLASSES, usable(posts, path), left_out)


Found = tuple[str, str, float | None, str, Mapping[str, float] | None]


def _csv(file: Path) -> Iterator[Found]:
    for row in table(file, ("id", "comment_text")):
        if "target" not in row and "toxicity" not in row:
            require(file, ("target",), row)
        share = _share(file, row.get("target") or row.get("toxicity"))
        annotated = [name for name in IDENTITIES if (row.get(name) or "").strip()]
        identities = {name: _share(file, row[name]) or 0.0 for name in annotated} if annotated else None
        split = row.get("split")
        if split not in (None, "train", "test"):
            raise DataError(f"{file}: row {row['id']} has split {split!r}; known are train and test")
        side = by_hash(row["id"]) if split is None else TEST if split == "test" else _held_out(row["id"])
        yield row["id"], row["comment_text"], share, side, identities


def _share(file: Path, value: str | None) -> float | None:
    if value is None or not value.strip():
        return None
    try:
        return float(value)
    except ValueError:
        raise DataError(f"{file} holds {value!r} where a share of raters is expected") from None


def by_hash(id: str) -> str:
    """The split of a row for which the file names none, by its id."""
    place = int.from_bytes(hashlib.sha256(id.encode()).digest()[:4], "big") / 2**32
    return TEST if place < TEST_SHARE else VALID if place < TEST_SHARE + VALID_SHARE else TRAIN


def _held_out(id: str) -> str:
    """A tenth of the training rows is for validation."""
    return VALID if by_hash(id) == VALID else TRAIN


def _prepared(folder: Path, key: str) -> Iterator[Found]:
    from jaxlm.data.sources.tfds import prepared_splits

    what = f"{key}={folder}"
    sides = {"train": TRAIN, "validation": VALID, "test": TEST}
    for name, examples in prepared_splits(folder, what).items():
        if name not in sides:
            continue
        for number in range(len(examples)):
            row: Any = examples[number]
            require(what, ("text", "toxicity"), row)
            text = row["text"].decode() if isinstance(row["text"], bytes) else str(row["text"])
            there = [identity for identity in IDENTITIES if identity in row]
            identities = {identity: float(row[identity]) for identity in there} if there else None
            yield f"{name}-{number}", text, float(row["toxicity"]), sides[name], identities

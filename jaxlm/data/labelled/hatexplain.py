"""HateXplain: posts called normal, offensive or hatespeech, with the words that annotators marked as their reason.

Mathew et al. 2021, https://arxiv.org/abs/2012.10289, MIT licence (the Hugging Face card says CC BY 4.0).
"""

from pathlib import Path

from jaxlm.data.config import DataError
from jaxlm.data.labelled.rows import TEST, TRAIN, VALID, Labelled, Post, find, records, usable

LICENCE = "MIT (hate-alert/HateXplain)"
CLASSES = ("normal", "offensive", "hatespeech")
SPLITS = {"train": TRAIN, "val": VALID, "valid": VALID, "test": TEST}
FILES = ("hatexplain.jsonl",)


def read_hatexplain(path: str | Path, key: str = "data.path") -> Labelled:
    """The rows of `hatexplain.jsonl` (plain or .gz): id, split, label, tokens, and where it is known rationale_spans.

    A span is [first, last) in tokens. A post without the key has the rationale None; one with an empty list has no
    word marked. Raises DataError.
    """
    file = find(path, key, FILES)
    posts = []
    for row in records(file, ("id", "split", "label", "tokens")):
        if row["label"] not in CLASSES or row["split"] not in SPLITS:
            raise DataError(
                f"{file}: row {row['id']} has label {row['label']!r} and split {row['split']!r}; known are "
                f"{', '.join(CLASSES)} and {', '.join(SPLITS)}"
            )
        tokens = tuple(str(token).lower() for token in row["tokens"])
        posts.append(
            Post(
                id=str(row["id"]),
                words=tokens,
                label=CLASSES.index(row["label"]),
                split=SPLITS[row["split"]],
                rationale=_marked(row.get("rationale_spans"), len(tokens), f"{file}: row {row['id']}"),
            )
        )
    return Labelled("HateXplain", LICENCE, CLASSES, usable(posts, file))


def _marked(spans: list[list[int]] | None, length: int, where: str) -> tuple[bool, ...] | None:
    if spans is None:
        return None
    marked = [False] * length
    for span in spans:
        first, last = int(span[0]), int(span[1])
        if not 0 <= first < last <= length:
            raise DataError(f"{where} has a span [{first}, {last}) in a post of {length} tokens")
        marked[first:last] = [True] * (last - first)
    return tuple(marked)

"""Scores of methods that ask the model hundreds of times per text, kept text by text so that a run goes on where it
left."""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxlm.explain.methods import Method, Scores
from jaxlm.explain.subject import Subject, Words
from jaxlm.tree import named_leaves


def weights_digest(subject: Subject) -> str:
    """What the model is, in 16 hexadecimal digits: scores of another one are not taken for its own."""
    found = hashlib.sha256()
    for name, leaf in sorted(named_leaves(subject.model).items()):
        found.update(name.encode())
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()[:16]


def kept_scores(
    method: Method, subject: Subject, texts: Sequence[Words], classes: np.ndarray, folder: Path
) -> tuple[Scores, float]:
    """Scores of the texts, and seconds per text as they were measured when each was explained. A line per text in
    `folder`; a last line that was cut off in writing is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{method.name.replace(' ', '_')}-{weights_digest(subject)}.jsonl"
    known = {line["text"]: line for line in _lines(path)}
    with path.open("a", encoding="utf-8") as file:
        for words, label in zip(texts, classes.tolist(), strict=True):
            name = _name(words, label)
            if name in known:
                continue
            began = time.perf_counter()
            (scores,) = method(subject, [words], np.array([label]))
            line = {"text": name, "seconds": time.perf_counter() - began, "scores": scores.tolist()}
            file.write(json.dumps(line) + "\n")
            file.flush()
            known[name] = line
    lines = [known[_name(words, label)] for words, label in zip(texts, classes.tolist(), strict=True)]
    return [np.array(line["scores"]) for line in lines], float(np.mean([line["seconds"] for line in lines]))


def _name(words: Words, label: int) -> str:
    return hashlib.sha256("\x1f".join([*words, str(label)]).encode()).hexdigest()[:24]


def _lines(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole, _, cut = text.rpartition("\n")
    if cut:
        path.write_text(whole + "\n" if whole else "", encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]

"""Training text to learn a tokenizer from: from all over each part, as much of a part as its weight says."""

import sys
from collections.abc import Iterator

from jaxlm.data.config import DataConfig
from jaxlm.data.mixture import shares
from jaxlm.data.parts import WHOLE, Parts
from jaxlm.data.progress import Progress, silent
from jaxlm.data.sources import BY_DOCUMENT, BY_TAIL, TRAIN, Corrupt, Source, read, stable_hash


def sample(config: DataConfig, parts: Parts, progress: Progress = silent) -> dict[str, list[str]]:
    """Texts of each part, about `sample_bytes` of all together; a part smaller than its share gives all it has."""
    wanted, limit = config.tokenizer.sample_bytes, config.limit_bytes or sys.maxsize
    due = shares({name: part.weight for name, part in sorted(config.mixture.items())}) or {WHOLE: 1}
    sizes = {name: min(int(wanted * share), limit) for name, share in due.items()}
    files = {name: [s for s in parts[name] if s.split in (TRAIN, BY_DOCUMENT, BY_TAIL)] for name in sizes}
    total = sum(min(size, sum(source.bytes for source in files[name])) for name, size in sizes.items())
    texts: dict[str, list[str]] = {}
    taken = 0
    for name, size in sizes.items():
        texts[name] = []
        for text in _evenly(config, files[name], size):
            texts[name].append(text)
            taken += len(text)
            progress("reading for the tokenizer", min(taken, total), total)
    progress("reading for the tokenizer", total, total)
    return texts


def _evenly(config: DataConfig, files: list[Source], wanted: int) -> Iterator[str]:
    """About `wanted` characters of training text, taken evenly from files in the order of their hashes.

    A file gives at most its share: a long text gives parts from all over it, a file of many documents some chosen by
    hash from as much of its beginning as needed (so that no more than eight times the share is read).
    """
    share = max(wanted // max(min(len(files), 64), 1), 1)
    taken = 0
    for source in files:
        if taken >= wanted:
            break
        left = min(share, wanted - taken)
        growth = 3 if source.compressed else 1
        keep = max(left / max(source.bytes * growth, 1), 1 / 8)
        for number, item in enumerate(read(source, config.validation_fraction)):
            if isinstance(item, Corrupt) or item.split != TRAIN or item.shorter(config.minimum_characters):
                continue
            if source.many and stable_hash(f"sample {source.name}:{number}") >= keep:
                continue
            both = item.text if item.prompt is None else f"{item.prompt}\n{item.text}"
            for text in _thinned(both, left):
                yield text
                left -= len(text)
                taken += len(text)
            if left <= 0:
                break


def _thinned(text: str, size: int, part: int = 4096) -> list[str]:
    """At most about `size` characters of a text, as evenly spaced parts cut at line ends if there are any."""
    if len(text) <= size:
        return [text]
    count = max(size // part, 1)
    parts = []
    for number in range(count):
        start = number * len(text) // count
        line = text.find("\n", start, start + part) if start else 0
        start = line if line >= 0 else start
        parts.append(text[start : start + min(part, size)])
    return parts

"""What occurs more than once in the corpus: lines, spans of three sentences, URLs. One of each stays.

A line is compared by a hash of 64 bits of its lower-case text. Two different lines of n share a hash with a
probability of about n^2 / 2^65: three in a hundred for one of a billion lines.

Cost: 9 bytes a line on disk. In memory 40 bytes a page, and hashes at most `AT_ONCE` at a time (about 2 GB); a larger
corpus is gone through in several passes, each over one slice of the range of hashes.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jaxlm.data.cleaning.sentences import sentences

AT_ONCE = 64_000_000
SPAN = 3  # sentences


def units(text: str, mode: str) -> list[str]:
    """What of a text may occur once in the corpus: its lines, or its spans of three sentences (mode `spans`)."""
    if mode == "none":
        return []
    if mode == "lines":
        return [line.strip().lower() for line in text.split("\n")]
    parts = [" ".join(part.lower().split()) for line in text.split("\n") for part in sentences(line)]
    return [" ".join(parts[at : at + SPAN]) for at in range(max(len(parts) - SPAN + 1, 1))]


def hashes(texts: Sequence[str]) -> np.ndarray:
    """64-bit hashes, [texts] uint64."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, "<u8")


def without_duplicates(text: str, keep: np.ndarray, mode: str) -> tuple[str, list[str]]:
    """The text without the units whose `keep` ([units] bool) is false, and what was taken out, line by line.

    Of spans, every sentence of a repeated span goes, as in the paper's description of C4.
    """
    if mode == "none" or keep.all():
        return text, []
    lines = text.split("\n")
    if mode == "lines":
        kept = [line for line, keeps in zip(lines, keep, strict=True) if keeps]
        return "\n".join(kept), [line for line, keeps in zip(lines, keep, strict=True) if not keeps]
    cut = [sentences(line) for line in lines]
    stays = np.ones(sum(map(len, cut)), bool)
    for at in np.flatnonzero(~keep):
        stays[at : at + SPAN] = False
    kept, gone, at = [], [], 0
    for parts in cut:
        flags = stays[at : at + len(parts)]
        at += len(parts)
        rest = "".join(part for part, stay in zip(parts, flags, strict=True) if stay).strip()
        kept += [rest] if rest else []
        gone += [part.strip() for part, stay in zip(parts, flags, strict=True) if not stay]
    return "\n".join(kept), gone


def first_of_each(
    parts: Sequence[Callable[[], np.ndarray]],
    total: int,
    keep: np.ndarray,
    *,
    ranks: Callable[[np.ndarray], np.ndarray] | None = None,
    tell: Callable[[int], None] = lambda entries: None,
    at_once: int = AT_ONCE,
) -> None:
    """Sets `keep` ([total] bool) for one entry of each hash: the earliest, or the earliest of the lowest rank.

    `parts` load the hashes ([n] uint64) in order, `total` in all; `ranks(places)` orders entries of one hash.
    Entries whose `keep` is already false take no part. `tell` hears how many entries have been compared.
    """
    slices = max(-(-total // at_once), 1)
    for number in range(slices):
        values, places = _slice(parts, keep, number, slices)
        order = np.argsort(values, kind="stable") if ranks is None else np.lexsort((ranks(places), values))
        ordered = values[order]
        repeated = np.zeros(len(order), bool)
        repeated[1:] = ordered[1:] == ordered[:-1]
        keep[places[order[repeated]]] = False
        tell((number + 1) * total // slices - number * total // slices)


def _slice(
    parts: Sequence[Callable[[], np.ndarray]], keep: np.ndarray, number: int, slices: int
) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of one slice and where they stand among all."""
    values, places, base = [np.empty(0, "<u8")], [np.empty(0, np.int64)], 0
    for load in parts:
        part = load()
        chosen = np.flatnonzero((part % np.uint64(slices) == number) & keep[base : base + len(part)])
        values.append(part[chosen])
        places.append(chosen + base)
        base += len(part)
    return np.concatenate(values), np.concatenate(places)


def runs(counts: np.ndarray) -> Iterator[tuple[int, int]]:
    """(begin, end) of consecutive runs of the given lengths."""
    end = 0
    for count in counts.tolist():
        yield end, end + count
        end += count

"""What tables 6 and 7 share: the classifier and its rows, methods scored against people, and targets met or missed."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.explained_slow import kept_scores
from experiments.report import Row
from experiments.runs import run_of, sections, trained
from jaxlm.data.labelled.corpus import read_labelled
from jaxlm.data.labelled.rows import TEST, TRAIN, VALID
from jaxlm.decode import ConfigError
from jaxlm.explain import bags
from jaxlm.explain.fidelity import Agreement, agreement, best_share, paired_interval, share, top
from jaxlm.explain.methods import METHODS, Kind, Method, word_weights
from jaxlm.explain.removal import Faithfulness, faithfulness
from jaxlm.explain.subject import HARMFUL, Subject
from jaxlm.explain.texts import Example
from jaxlm.explaining import Opened, examples, open_subject

TIMED = 64


def classifier(run: str | None, base: Any, data: str, out: Path) -> Opened:
    """The classifier in `run`, or one trained here as the sections `base` say, on `data`."""
    if run is not None:
        return open_subject(Path(run))
    made = run_of(sections(base, "base"), {"data": {"path": data}}, "explained", "data")
    return open_subject(trained(made, out / "runs" / "explained", apart=False).path)


@dataclass(frozen=True)
class Splits:
    """Texts by split; `test` may come from another file of the same format."""

    train: list[Example]
    valid: list[Example]
    test: list[Example]


def hatexplain(data: str | None, test: str | None = None) -> Splits:
    """HateXplain at `data`; the test rows of `test` where it is given (all its rows where none is of a test split)."""
    if data is None:
        raise ConfigError("no texts are given: --data DIR names the folder that holds hatexplain.jsonl")
    read = read_labelled("hatexplain", data)
    other = read if test is None else read_labelled("hatexplain", test)
    judged = examples(other, TEST) or examples(other)
    return Splits(examples(read, TRAIN), examples(read, VALID), judged)


def marked(texts: Sequence[Example]) -> list[Example]:
    """Those in which people marked something."""
    return [e for e in texts if e.rationale is not None and e.rationale.any()]


def gold_of(texts: Sequence[Example]) -> list[np.ndarray]:
    return [e.rationale for e in texts if e.rationale is not None]


@dataclass(frozen=True)
class Scored:
    """One method on the rows it was asked about: the first `rows` of the test texts.

    `k5` chooses five words, `tuned` a share of the words that was best on validation, where the method ran there.
    """

    name: str
    kind: Kind
    rows: int
    seconds: float
    scores: list[np.ndarray]
    k5: Agreement
    tuned: Agreement | None
    faith: dict[str, Faithfulness]


def scored(
    method: Method,
    subject: Subject,
    test: Sequence[Example],
    valid: Sequence[Example],
    *,
    faithful: Sequence[str] = (),
    slow_rows: int = 40,
    keep: Path,
) -> Scored:
    """Runs a method. Slow ones see the first `slow_rows` texts, and no validation; their scores are kept in the folder
    `keep`, from which a run that was stopped goes on. The class explained is HARMFUL: the marks say why people called a
    post harmful. Fast methods are timed on TIMED texts once they are compiled."""
    rows = test[:slow_rows] if method.slow else test
    texts, gold = [e.words for e in rows], gold_of(rows)
    classes = np.full(len(texts), HARMFUL)
    if method.slow:
        scores, seconds = kept_scores(method, subject, texts, classes, keep)
    else:
        scores = method(subject, texts, classes)
        few = texts[:TIMED]
        began = time.perf_counter()
        method(subject, few, classes[: len(few)])
        seconds = (time.perf_counter() - began) / len(few)
    chosen: list[np.ndarray] = []
    if not method.slow:
        tuning = [e.words for e in valid]
        found = method(subject, tuning, np.full(len(tuning), HARMFUL))
        fraction = best_share(found, gold_of(valid))
        chosen = [share(s, fraction) for s in scores]
    everything = method.name == "select all"
    every = [np.ones(len(t), bool) for t in texts]
    return Scored(
        name=method.name,
        kind=method.kind,
        rows=len(rows),
        seconds=seconds,
        scores=scores,
        k5=agreement(scores, gold, every if everything else [top(s, 5) for s in scores]),
        tuned=None if method.slow else agreement(scores, gold, every if everything else chosen),
        faith={how: faithfulness(subject, texts, scores, classes, removal=how) for how in faithful},  # pyright: ignore[reportArgumentType]
    )


def floors(train: Sequence[Example]) -> list[Method]:
    """Bag-of-words weights learned from training labels, as they are and with the smoothing that ours has."""
    weights = bags.word_weights([e.words for e in train], np.array([(e.label or 0) > 0 for e in train]))
    return [word_weights(weights), word_weights(weights, smooth=True)]


def named(names: Sequence[str]) -> list[Method]:
    """Raises ConfigError for a method that does not exist."""
    if unknown := [n for n in names if n not in METHODS]:
        raise ConfigError(f"methods: there is no method {unknown[0]!r}; known are {', '.join(METHODS)}")
    return [METHODS[n] for n in names]


def target(what: str, quantity: str, value: float, floor: float, note: str = "") -> Row:
    """A value that should be above a floor, in words that say whether it is."""
    said = f"{'met' if value > floor else 'MISSED'}: target above {floor:.3f}"
    return Row(what=what, quantity=quantity, measured=value, note=f"{said}{'; ' + note if note else ''}")


Asked = Literal["above", "not below", "no difference"]


def paired(one: str, other: str, quantity: str, ours: np.ndarray, theirs: np.ndarray, *, asked: Asked = "above") -> Row:
    """A difference text by text with its bootstrap interval: met where the interval lies above 0, not below it, or on
    it, as is asked."""
    mean, low, high = paired_interval(ours, theirs)
    met = {"above": low > 0, "not below": high >= 0, "no difference": low <= 0 <= high}[asked]
    said = "better" if low > 0 else "worse" if high < 0 else "no difference outside the interval"
    note = f"{'met' if met else 'MISSED'}: {said}; 95 % paired bootstrap [{low:+.3f}, {high:+.3f}], {len(ours)} texts"
    return Row(what=f"{one} - {other}", quantity=quantity, measured=mean, note=note)


def against(ours: Scored, other: Scored, asked: Asked = "above") -> Row:
    """AUPRC of ours less another's on the rows that both saw."""
    rows = min(ours.rows, other.rows)
    each = [s.k5.each_auprc[:rows] for s in (ours, other)]
    return paired(ours.name, other.name, "AUPRC difference", *each, asked=asked)


def faithful_against(ours: Scored, other: Scored, how: str) -> Row:
    """AOPC comprehensiveness of ours less another's on the rows that both saw; met where ours is not worse."""
    rows = min(ours.rows, other.rows)
    each = lambda s: s.faith[how].each_comprehensiveness[:rows]
    quantity = f"AOPC comprehensiveness difference ({how})"
    return paired(ours.name, other.name, quantity, each(ours), each(other), asked="not below")


def table(found: Sequence[Scored]) -> str:
    """Every method in a line, for reading."""
    head = [
        "method",
        "kind",
        "rows",
        "AUPRC",
        "IoU k=5",
        "F1 k=5",
        "IOU-F1 k=5",
        "IoU tuned",
        "compr.",
        "suff.",
        "s/text",
    ]
    lines = [head]
    for s in found:
        faith = s.faith.get("mask")
        number = lambda v: "-" if v is None else f"{v:.3f}"
        lines.append(
            [
                s.name, s.kind, str(s.rows), number(s.k5.auprc), number(s.k5.iou), number(s.k5.f1), number(s.k5.iou_f1),
                number(s.tuned and s.tuned.iou), number(faith and faith.comprehensiveness),
                number(faith and faith.sufficiency), f"{s.seconds:.2g}",
            ]
        )  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([text[0], rule, *text[1:]])


def facts(found: Sequence[Scored]) -> list[Mapping[str, Any]]:
    """The same for machines."""
    return [
        {
            "method": s.name, "kind": s.kind, "rows": s.rows, "auprc": s.k5.auprc, "iou_k5": s.k5.iou, "f1_k5": s.k5.f1,
            "iou_f1_k5": s.k5.iou_f1, "iou_tuned": s.tuned.iou if s.tuned else None,
            "f1_tuned": s.tuned.f1 if s.tuned else None, "iou_f1_tuned": s.tuned.iou_f1 if s.tuned else None,
            "aopc": {h: [f.comprehensiveness, f.sufficiency] for h, f in s.faith.items()}, "seconds": s.seconds,
        }
        for s in found
    ]  # fmt: skip

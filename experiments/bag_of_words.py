"""How far does a bag of words get on the rows of a classifier?

Question: the reference notes give logistic regression on words and pairs of words a macro-F1 of .649 on HateXplain's
          test rows. What does one made here reach?
Method:   multinomial logistic regression on the presence of words and of pairs of neighbours seen twice in the training
          rows, L2 penalty; its strength is chosen on the validation rows, and the test rows are judged at each.
Cost:     about half a minute of one core.
Run:      python -m experiments.bag_of_words --data DIR [--json]
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.entry import main
from experiments.report import Report, Row
from jaxlm.classification import Judged
from jaxlm.data.labelled.bag import fit
from jaxlm.data.labelled.corpus import Dataset, read_labelled
from jaxlm.data.labelled.rows import TEST, TRAIN, VALID
from jaxlm.decode import ConfigError
from jaxlm.explain.bags import frequent, incidence

REFERENCE = 0.649
"""Macro-F1 on test by the reference notes: words and pairs, logistic regression."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A bag of words.

    Attributes:
        data: folder or file of the labelled rows.
        dataset: its format.
        longest: words in a row that count as one term: 1 words, 2 pairs of neighbours too.
        least: training rows that a term must be in.
        strengths: inverse strengths of the penalty (scikit-learn's C), of which validation chooses.
    """

    data: str = ""
    dataset: Dataset = "hatexplain"
    longest: int = 2
    least: int = 2
    strengths: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)


def terms(words: Sequence[str], longest: int) -> list[str]:
    """The words and their neighbours up to so many in a row, each joined by a space."""
    return [" ".join(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) + 1 - n)]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of each row of logits."""
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def execute(config: Config, out: Path) -> Report:
    """Fits one bag per strength and judges each."""
    if not config.data:
        raise ConfigError("--data is missing: the folder or file of labelled rows, e.g. --data DIR")
    data = read_labelled(config.dataset, config.data)
    bags = {s: [terms(p.words, config.longest) for p in data.split(s)] for s in (TRAIN, VALID, TEST)}
    labels = {s: np.array([p.label for p in data.split(s)]) for s in bags}
    known = frequent(bags[TRAIN], config.least)
    counts = {s: incidence(texts, known) for s, texts in bags.items()}
    rows: list[Row] = []
    scores: dict[float, dict[str, float]] = {}
    for strength in config.strengths:
        w = fit(counts[TRAIN], labels[TRAIN], len(data.classes), strength)
        facts = {s: Judged(softmax(counts[s] @ w[:-1] + w[-1]), labels[s]).facts() for s in (VALID, TEST)}
        scores[strength] = {s: facts[s]["macro_f1"] for s in facts}
        rows += [
            Row(what=f"C = {strength:g}", quantity=f"macro-F1, {s} rows", measured=facts[s]["macro_f1"],
                published=REFERENCE if s == TEST else None, note=f"AUC {facts[s]['auc']:.3f}")
            for s in facts
        ]  # fmt: skip
    best = max(scores, key=lambda strength: scores[strength][VALID])
    said = (
        f"Chosen on the validation rows: C = {best:g}, macro-F1 {scores[best][TEST]:.4f} on {len(labels[TEST]):,} test "
        f"rows ({len(known):,} terms)."
    )
    return Report(title=f"A bag of words on {data.name}", rows=rows, remarks=[said], details={"chosen": best})


if __name__ == "__main__":
    main("bag_of_words", __doc__, Config, execute)

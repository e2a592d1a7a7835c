"""What the model loses when the words of an explanation are taken out, and what they alone still say.

    comprehensiveness = p(c | x) - p(c | x without the words)      high is good
    sufficiency       = p(c | x) - p(c | the words alone)          low is good

averaged over explanations of 1, 5, 10, 20 and 50 % of the words (AOPC, https://arxiv.org/abs/1911.03429). A model that
never saw masked text answers for it as it likes (https://arxiv.org/abs/2310.07819), so both ways of removing are
reported: `mask` hides the tokens as padding is hidden, `delete` writes the text without the words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxlm.explain.fidelity import share
from jaxlm.explain.subject import NOTHING, Subject, Words, of_class

SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)
Removal = Literal["mask", "delete"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Faithfulness:
    """AOPC over texts: means, and comprehensiveness text by text for paired tests."""

    comprehensiveness: float
    sufficiency: float
    each_comprehensiveness: np.ndarray
    each_sufficiency: np.ndarray


def kept_probabilities(
    subject: Subject, texts: Sequence[Words], kept: Sequence[np.ndarray], removal: Removal
) -> np.ndarray:
    """float64 [N, C] of the texts reduced to the words that are kept (bool [W] each)."""
    if removal == "mask":
        return subject.probabilities(texts, kept)
    return subject.probabilities(
        [[w for w, keep in zip(t, k, strict=True) if keep] for t, k in zip(texts, kept, strict=True)]
    )


def faithfulness(
    subject: Subject,
    texts: Sequence[Words],
    scores: Sequence[np.ndarray],
    classes: np.ndarray | None = None,
    *,
    removal: Removal = "mask",
    shares: Sequence[float] = SHARES,
) -> Faithfulness:
    """Of the class asked for (a number, HARMFUL or NOTHING); default the one predicted for the whole text."""
    whole = subject.probabilities(texts)
    asked = np.full(len(texts), NOTHING) if classes is None else classes
    wanted = np.asarray(np.where(asked == NOTHING, whole.argmax(-1), asked))
    before = of_class(whole, wanted)
    lost, gained = np.zeros(len(texts)), np.zeros(len(texts))
    for fraction in shares:
        chosen = [share(s, fraction) for s in scores]
        without = kept_probabilities(subject, texts, [~c for c in chosen], removal)
        alone = kept_probabilities(subject, texts, chosen, removal)
        lost += (before - of_class(without, wanted)) / len(shares)
        gained += (before - of_class(alone, wanted)) / len(shares)
    return Faithfulness(
        comprehensiveness=float(lost.mean()),
        sufficiency=float(gained.mean()),
        each_comprehensiveness=lost,
        each_sufficiency=gained,
    )

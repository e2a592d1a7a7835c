"""How a binary decision and its score treat the groups: a report by group, the gaps between groups, and calibration.

Groups a, label y, score s in [0, 1], decision d. The definitions are those of fairlearn and AIF360 where they have
them: differences are unsigned ranges over groups (AIF360's are signed, unprivileged minus privileged: the sign is in
the table). Equalized odds and calibration cannot both be perfect when base rates differ and the predictor is not
(Kleinberg et al., arXiv 1609.05807): `Report.note` says so beside the two. A figure about fewer than `LEAST` rows is
NaN with its reason.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxlm.fairness.ranking import LEAST, auc

RATES = ("rows", "base_rate", "selection_rate", "tpr", "fpr", "accuracy", "auc", "ece")
TRADE = (
    "equalized odds and calibration within groups cannot both be zero: base rates differ and the predictor is "
    "imperfect (Kleinberg et al. 2016)"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Rates by group, in the shape of fairlearn's MetricFrame.

    Attributes:
        overall: rate name -> value over all rows; the names are `RATES`.
        by_group: group -> rate name -> value; NaN where refused.
        refused: (group, rate) -> why there is no value.
        worst_cell: accuracy of the worst (group, label) cell, as WILDS measures worst-group accuracy.
        randomised: decisions are drawn at random, so that no score exists that could be calibrated.
    """

    overall: dict[str, float]
    by_group: dict[str, dict[str, float]]
    refused: dict[tuple[str, str], str]
    worst_cell: float
    randomised: bool = False

    def difference(self, rate: str) -> float:
        """Largest minus smallest value over groups; NaN with fewer than two groups that have one."""
        known = self._known(rate)
        return max(known) - min(known) if len(known) > 1 else float("nan")

    def ratio(self, rate: str) -> float:
        """Smallest over largest value over groups."""
        known = self._known(rate)
        return min(known) / max(known) if len(known) > 1 and max(known) > 0 else float("nan")

    @property
    def demographic_parity(self) -> float:
        """Range over groups of P(d = 1)."""
        return self.difference("selection_rate")

    @property
    def equal_opportunity(self) -> float:
        """EOD: range over groups of P(d = 1 | y = 1)."""
        return self.difference("tpr")

    @property
    def equalized_odds(self) -> float:
        """The larger of the ranges of true and false positive rates (fairlearn's `agg="worst_case"`)."""
        return float(np.maximum(self.difference("tpr"), self.difference("fpr")))

    @property
    def average_odds(self) -> float:
        """Mean of the ranges of true and false positive rates (fairlearn's `agg="mean"`)."""
        return (self.difference("tpr") + self.difference("fpr")) / 2

    @property
    def auc_gap(self) -> float:
        """Range over groups of the AUC among their members."""
        return self.difference("auc")

    @property
    def cwg(self) -> float:
        """Calibration within groups: the largest expected calibration error of a group; NaN for random decisions."""
        known = self._known("ece")
        return max(known) if known else float("nan")

    @property
    def note(self) -> str:
        """What must be said beside equalized odds and calibration; empty where base rates are equal."""
        if self.randomised:
            return "CWG: not applicable, decisions are randomised and have no score to calibrate"
        return TRADE if self.difference("base_rate") > 0 and self.overall["accuracy"] < 1 else ""

    def table(self) -> str:
        """Groups against rates, Markdown."""
        lines = [["group", *RATES]]
        for name, rates in {**self.by_group, "all": self.overall}.items():
            lines.append([name, *(_cell(rates[r], r) for r in RATES)])
        return "\n".join(
            "| " + " | ".join(row) + " |" + ("\n|" + "---|" * len(row) if i == 0 else "") for i, row in enumerate(lines)
        )

    def _known(self, rate: str) -> list[float]:
        return [rates[rate] for rates in self.by_group.values() if not np.isnan(rates[rate])]


def _cell(value: float, rate: str) -> str:
    return "n/a" if np.isnan(value) else f"{int(value)}" if rate == "rows" else f"{value:.3f}"


def report(
    labels: np.ndarray,
    decisions: np.ndarray,
    groups: np.ndarray,
    scores: np.ndarray | None = None,
    *,
    weights: np.ndarray | None = None,
    least: int = LEAST,
    bins: int = 10,
) -> Report:
    """Rates of `decisions` (0 or 1) against `labels` (0 or 1) within each value of `groups`, all [B].

    `scores` are probabilities of label 1; None means that the predictor is randomised and has none, and the columns
    AUC and calibration are not applicable. `weights` count rows for the rates (not for AUC and calibration).
    """
    y, d, a = np.asarray(labels).astype(int), np.asarray(decisions).astype(int), np.asarray(groups).astype(str)
    s = None if scores is None else np.asarray(scores, np.float64)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    refused: dict[tuple[str, str], str] = {}
    table: dict[str, dict[str, float]] = {}
    cells: list[float] = []
    for name in np.unique(a).tolist():
        member = a == name
        rates, reasons = _rates(y[member], d[member], None if s is None else s[member], w[member], least, bins)
        table[name] = rates
        refused |= {(name, rate): reason for rate, reason in reasons.items()}
        for label in (0, 1):
            cell = member & (y == label)
            if cell.sum() >= least:
                cells.append(float(np.average(d[cell] == y[cell], weights=w[cell])))
    overall, _ = _rates(y, d, s, w, 1, bins)
    worst = min(cells) if cells else float("nan")
    return Report(overall=overall, by_group=table, refused=refused, worst_cell=worst, randomised=s is None)


def _rates(
    y: np.ndarray, d: np.ndarray, s: np.ndarray | None, w: np.ndarray, least: int, bins: int
) -> tuple[dict[str, float], dict[str, str]]:
    """The rates of one group, and why some are missing."""
    reasons: dict[str, str] = {}

    def mean(rate: str, values: np.ndarray, among: np.ndarray) -> float:
        rows = int(among.sum())
        if rows < least or rows == 0 or w[among].sum() == 0:
            reasons[rate] = f"{rows} rows, fewer than {least}"
            return float("nan")
        return float(np.average(values[among], weights=w[among]))

    every = np.ones(len(y), bool)
    rates = {
        "rows": float(len(y)),
        "base_rate": mean("base_rate", y, every),
        "selection_rate": mean("selection_rate", d, every),
        "tpr": mean("tpr", d, y == 1),
        "fpr": mean("fpr", d, y == 0),
        "accuracy": mean("accuracy", d == y, every),
    }
    if s is None:
        reasons |= dict.fromkeys(("auc", "ece"), "not applicable: a randomised predictor has no score")
        return rates | {"auc": float("nan"), "ece": float("nan")}, reasons
    if len(y) < least:
        reasons |= dict.fromkeys(("auc", "ece"), f"{len(y)} rows, fewer than {least}")
        return rates | {"auc": float("nan"), "ece": float("nan")}, reasons
    rates["auc"], rates["ece"] = auc(y, s), expected_calibration_error(y, s, bins)
    if np.isnan(rates["auc"]):
        reasons["auc"] = "rows of one label only"
    return rates, reasons


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """One bin of a reliability table: rows, mean score, share of label 1."""

    rows: int
    score: float
    positives: float


def reliability(labels: np.ndarray, scores: np.ndarray, bins: int = 10) -> list[Bin]:
    """Bins of equal mass along the score, lowest first (the first ones hold one row more where they must)."""
    order = np.argsort(np.asarray(scores), kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    y, s = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    return [Bin(rows=len(part), score=float(s[part].mean()), positives=float(y[part].mean())) for part in parts]


def expected_calibration_error(labels: np.ndarray, scores: np.ndarray, bins: int = 10) -> float:
    """Mean over rows of |mean score - share of label 1| of their bin; NaN without rows."""
    table = reliability(labels, scores, bins)
    rows = sum(b.rows for b in table)
    return sum(b.rows * abs(b.score - b.positives) for b in table) / rows if rows else float("nan")


def members(groups: np.ndarray, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Who belongs to each value of a column, for `ranking.bias`."""
    a = np.asarray(groups).astype(str)
    return {str(name): a == str(name) for name in (np.unique(a) if names is None else names)}

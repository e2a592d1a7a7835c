"""Areas under the ROC curve, overall and by group (Borkan et al. 2019, arXiv 1903.04561).

A score is a number that grows with the belief in label 1; ties count for half. All of it is float64 numpy. An area
without a row of each label is NaN.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from scipy.stats import rankdata

LEAST = 30
"""Rows below which a figure about a group is refused: it would be noise with decimals."""


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """P(score of a row of label 1 > score of a row of label 0), ties for half; NaN without both labels."""
    positive = np.asarray(labels).astype(bool)
    p = int(positive.sum())
    n = positive.size - p
    if p == 0 or n == 0:
        return float("nan")
    ranks = rankdata(np.asarray(scores, np.float64))
    return float((ranks[positive].sum() - p * (p + 1) / 2) / (p * n))


def subgroup_auc(labels: np.ndarray, scores: np.ndarray, member: np.ndarray) -> float:
    """AUC among the members of a group."""
    member = np.asarray(member, bool)
    return auc(np.asarray(labels)[member], np.asarray(scores)[member])


def bpsn_auc(labels: np.ndarray, scores: np.ndarray, member: np.ndarray) -> float:
    """Background positive, subgroup negative: low where harmless rows of the group score as high as real positives."""
    labels, member = np.asarray(labels).astype(bool), np.asarray(member, bool)
    kept = (member & ~labels) | (~member & labels)
    return auc(labels[kept], np.asarray(scores)[kept])


def bnsp_auc(labels: np.ndarray, scores: np.ndarray, member: np.ndarray) -> float:
    """Background negative, subgroup positive: low where positives of the group score as low as harmless others."""
    labels, member = np.asarray(labels).astype(bool), np.asarray(member, bool)
    kept = (member & labels) | (~member & ~labels)
    return auc(labels[kept], np.asarray(scores)[kept])


def power_mean(values: np.ndarray | list[float], p: float = -5.0) -> float:
    """(mean of v^p)^(1/p) of what is not NaN; the more negative p, the nearer to the worst value."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if known.size == 0:
        return float("nan")
    if p < 0 and np.any(known <= 0):
        return 0.0
    return float(np.mean(known**p) ** (1 / p))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Bias:
    """The Jigsaw "unintended bias" report: one dictionary per kind of AUC, by group, and what they add up to.

    `refused` names the groups below `LEAST` rows of either label, whose areas are NaN and count in no mean.
    """

    overall: float
    subgroup: dict[str, float]
    bpsn: dict[str, float]
    bnsp: dict[str, float]
    rows: dict[str, int]
    refused: dict[str, str]

    def mean(self, kind: str, p: float = -5.0) -> float:
        """The power mean over groups of `subgroup`, `bpsn` or `bnsp`."""
        return power_mean(list(getattr(self, kind).values()), p)

    @property
    def score(self) -> float:
        """0.25 of the overall AUC and of each of the three power means with p = -5."""
        return 0.25 * (self.overall + self.mean("subgroup") + self.mean("bpsn") + self.mean("bnsp"))

    @property
    def gap(self) -> float:
        """Largest minus smallest subgroup AUC; NaN with fewer than two groups that can be judged."""
        known = [v for v in self.subgroup.values() if not np.isnan(v)]
        return max(known) - min(known) if len(known) > 1 else float("nan")


def bias(labels: np.ndarray, scores: np.ndarray, members: Mapping[str, np.ndarray], least: int = LEAST) -> Bias:
    """Subgroup, BPSN and BNSP AUC of each group in `members` (name -> who belongs, bool).

    A group with fewer than `least` rows in all, or none of one label, is refused with the reason.
    """
    labels = np.asarray(labels).astype(bool)
    tables: dict[str, dict[str, float]] = {"subgroup": {}, "bpsn": {}, "bnsp": {}}
    rows: dict[str, int] = {}
    refused: dict[str, str] = {}
    for name, member in members.items():
        member = np.asarray(member, bool)
        rows[name] = int(member.sum())
        reason = refusal(labels, member, least)
        if reason:
            refused[name] = reason
        for kind, measure in (("subgroup", subgroup_auc), ("bpsn", bpsn_auc), ("bnsp", bnsp_auc)):
            tables[kind][name] = float("nan") if reason else measure(labels, scores, member)
    return Bias(overall=auc(labels, scores), rows=rows, refused=refused, **tables)


def refusal(labels: np.ndarray, member: np.ndarray, least: int = LEAST) -> str:
    """Why no area is given for a group; empty where it can be judged."""
    rows = int(member.sum())
    if rows < least:
        return f"{rows} rows, fewer than {least}"
    positives = int((labels.astype(bool) & member).sum())
    if positives == 0 or positives == rows:
        return f"no row of label {int(positives == 0)}"
    return ""

"""Protected attributes: their groups, what is asked of a model about them, and who belongs where.

Axes: B rows, H heads of one attribute, G its groups.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

Criterion = Literal["demographic_parity", "equalized_odds", "equal_opportunity"]
CRITERIA: tuple[Criterion, ...] = ("demographic_parity", "equalized_odds", "equal_opportunity")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """One protected attribute.

    Attributes:
        name: of the attribute, as messages and reports say it.
        groups: its values, at least two.
        criterion: `demographic_parity`: decisions do not tell the group; `equalized_odds`: nor do they once the label
            is known; `equal_opportunity`: nor do they among the rows of label 1.
        exclusive: whether a row belongs to exactly one group. Otherwise to any number of them
            (identities that a text mentions).
    """

    name: str
    groups: tuple[str, ...]
    criterion: Criterion = "equalized_odds"
    exclusive: bool = True

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise ValueError(f"{self.name}: criterion={self.criterion!r} must be one of {', '.join(CRITERIA)}")
        if len(set(self.groups)) != len(self.groups):
            raise ValueError(f"{self.name}: groups {', '.join(self.groups)} name one group twice")
        if self.exclusive and len(self.groups) < 2:
            raise ValueError(f"{self.name} has one group only ({', '.join(self.groups) or 'none'}): nothing to compare")

    @property
    def heads(self) -> int:
        """Outputs of the adversary: one for two exclusive groups, else one for each group against the rest."""
        return 1 if self.exclusive and len(self.groups) == 2 else len(self.groups)

    def targets(self, codes_B: np.ndarray) -> np.ndarray:
        """What the heads predict, [B, H] float32 of 0 and 1, from the index of each row's group, int [B]; groups that
        are not exclusive are given as [B, H] of 0 and 1."""
        if not self.exclusive:
            return np.asarray(codes_B, np.float32)
        if self.heads == 1:
            return (codes_B == 1).astype(np.float32)[:, None]
        return (codes_B[:, None] == np.arange(len(self.groups))[None, :]).astype(np.float32)


def encode(name: str, values: Sequence[Any] | np.ndarray, criterion: Criterion) -> tuple[Attribute, np.ndarray]:
    """An attribute found in a column, and the index of each row's group.

    Raises ValueError for missing values and for a column of one value.
    """
    column = as_text(name, values)
    groups, codes = np.unique(column, return_inverse=True)
    return Attribute(name=name, groups=tuple(groups.tolist()), criterion=criterion), codes.astype(np.int32)


def as_text(name: str, values: Sequence[Any] | np.ndarray) -> np.ndarray:
    """A column of groups as strings. Raises ValueError where a value is missing, naming the rows."""
    column = np.asarray(values, dtype=object).reshape(-1)
    missing = np.flatnonzero([v is None or v != v for v in column])
    if len(missing):
        shown = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise ValueError(f"{name} is missing (None or NaN) in {len(missing)} rows ({shown}): drop them or name a group")
    return np.asarray([str(v) for v in column])


def balance(targets_BH: np.ndarray, rows_BH: np.ndarray | None = None) -> np.ndarray:
    """Weights [B, H] float32 under which each side of each head counts for half, with a mean of 1 over counted rows.

    Without them an adversary learns a rare group's base rate and little else. `rows_BH` (0 or 1) says which rows count.
    """
    counted = np.ones_like(targets_BH) if rows_BH is None else rows_BH.astype(np.float32)
    total = np.maximum(counted.sum(0), 1.0)
    ones = np.maximum((targets_BH * counted).sum(0), 1e-9)
    zeros = np.maximum(((1 - targets_BH) * counted).sum(0), 1e-9)
    half = np.where(targets_BH > 0, total / (2 * ones), total / (2 * zeros))
    return (half * counted).astype(np.float32)

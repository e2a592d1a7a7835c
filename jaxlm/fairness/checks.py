"""What is wrong with a protected attribute, said in one message before anything is trained."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.fairness.groups import Attribute, Criterion, as_text, encode


def columns(sensitive: Any, rows: int) -> dict[str, np.ndarray]:
    """The attributes of a vector, a matrix, a mapping of columns or a DataFrame, by name.

    Columns without a name are called `attribute`, or `attribute 1`, `attribute 2`, ...
    """
    if isinstance(sensitive, Mapping) or hasattr(sensitive, "columns"):
        names = [str(name) for name in (sensitive if isinstance(sensitive, Mapping) else sensitive.columns)]
        found = {str(name): np.asarray(sensitive[name], dtype=object) for name in sensitive}
        if len(found) != len(names):
            raise ValueError(f"sensitive_features name one column twice: {', '.join(names)}")
    else:
        values = np.asarray(sensitive, dtype=object)
        if values.ndim == 1:
            found = {str(getattr(sensitive, "name", None) or "attribute"): values}
        elif values.ndim == 2:
            found = {f"attribute {i + 1}" if values.shape[1] > 1 else "attribute": c for i, c in enumerate(values.T)}
        else:
            raise ValueError(f"sensitive_features must be one column or a table of columns, not {values.shape}")
    if not found:
        raise ValueError("sensitive_features hold no column; leave them out for the undebiased baseline")
    for name, column in found.items():
        if len(column) != rows:
            raise ValueError(f"{name} has {len(column)} values for {rows} rows of X")
    return found


def attributes(
    found: Mapping[str, np.ndarray], labels_B: np.ndarray, criterion: Criterion | Mapping[str, Criterion]
) -> tuple[tuple[Attribute, ...], tuple[np.ndarray, ...]]:
    """Attributes and group codes of some columns, checked against labels of 0 and 1.

    Raises ValueError, naming the attribute, for a missing value, one group only, a group without a label that the
    criterion conditions on, an attribute that is the label, and a criterion for an unknown attribute.
    """
    if isinstance(criterion, Mapping):
        unknown = sorted(set(criterion) - set(found))
        if unknown or set(found) - set(criterion):
            asked, given = ", ".join(criterion), ", ".join(found)
            raise ValueError(f"criterion speaks of {asked}, sensitive_features of {given}: one criterion for each")
    kept, codes = [], []
    for name, column in found.items():
        wanted = criterion[name] if isinstance(criterion, Mapping) else criterion
        attribute, code = encode(name, column, wanted)
        _check(attribute, code, labels_B)
        kept.append(attribute)
        codes.append(code)
    return tuple(kept), tuple(codes)


def known_codes(attributes: Sequence[Attribute], found: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Group codes of new rows. Raises ValueError for a group that training has not seen, and for missing columns."""
    if [a.name for a in attributes] != list(found):
        given, wanted = ", ".join(found), ", ".join(a.name for a in attributes)
        raise ValueError(f"sensitive_features are {given}; this model was fitted with {wanted}, in that order")
    codes = []
    for attribute in attributes:
        column = as_text(attribute.name, found[attribute.name])
        unseen = sorted(set(column) - set(attribute.groups))
        if unseen:
            known = ", ".join(attribute.groups)
            raise ValueError(f"{attribute.name}: group {str(unseen[0])!r} was not seen in training; known are {known}")
        codes.append(np.searchsorted(np.asarray(attribute.groups), column).astype(np.int32))
    return tuple(codes)


def _check(attribute: Attribute, codes_B: np.ndarray, labels_B: np.ndarray) -> None:
    counts = np.asarray(
        [[np.sum((codes_B == g) & (labels_B == y)) for y in (0, 1)] for g in range(len(attribute.groups))]
    )
    if len(attribute.groups) == 2 and np.all(np.sort(counts > 0, axis=1) == [False, True]) and np.all(counts.sum(0)):
        raise ValueError(
            f"{attribute.name} equals the label: every group holds one label only, so no predictor could be both right "
            "and fair; is the label column given as the attribute?"
        )
    needed = {"demographic_parity": (), "equalized_odds": (1, 0), "equal_opportunity": (1,)}[attribute.criterion]
    for y in needed:
        for group, count in zip(attribute.groups, counts, strict=True):
            if count[y] == 0:
                which = "positives (rows of label 1)" if y else "negatives (rows of label 0)"
                raise ValueError(
                    f"{attribute.name}: group {group!r} has no {which}, among which {attribute.criterion} compares "
                    "groups; merge it with another, leave it out, or ask for demographic_parity"
                )

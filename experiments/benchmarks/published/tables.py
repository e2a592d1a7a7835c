"""Published measurements as columns: where the files lie, what was read, and a hash for every row."""

import csv
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

NOT_THE_ROW = ("source", "missing", "note")
"""Columns that say something about a row; the hash leaves them out, so that a corrected remark is no new row."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Rows of one file, as text; columns come out as arrays.

    Attributes:
        name: the file's name without its suffix.
        rows: column -> text, one dictionary per row.
    """

    name: str
    rows: tuple[dict[str, str], ...]

    @classmethod
    def read(cls, path: Path) -> "Table":
        """Raises FileNotFoundError; `Source.table` is what skips a missing file."""
        with path.open(newline="") as file:
            return cls(path.stem, tuple(csv.DictReader(file)))

    def __len__(self) -> int:
        return len(self.rows)

    def text(self, column: str) -> np.ndarray:
        return np.array([row[column] for row in self.rows], dtype=object)

    def numbers(self, column: str, empty: float = np.nan) -> np.ndarray:
        """A column as floats; `empty` where the source says nothing."""
        return np.array([float(row[column]) if row[column].strip() else empty for row in self.rows])

    def take(self, keep: np.ndarray) -> "Table":
        """The rows at these positions, or where this mask holds."""
        positions = np.flatnonzero(keep) if keep.dtype == bool else keep
        return Table(self.name, tuple(self.rows[i] for i in positions))

    def where(self, keep: Callable[[dict[str, str]], bool]) -> "Table":
        return Table(self.name, tuple(row for row in self.rows if keep(row)))

    def without(self, digests: Iterable[str]) -> "Table":
        """The rows whose hash is not among these."""
        gone = set(digests)
        return Table(self.name, tuple(r for r, d in zip(self.rows, self.digests, strict=True) if d not in gone))

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each row: two rows are the same measurement when these agree."""
        return tuple(_digest(row) for row in self.rows)


def _digest(row: dict[str, str]) -> str:
    facts = {name: value for name, value in row.items() if name not in NOT_THE_ROW}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(slots=True, eq=False)
class Source:
    """Where a section takes its rows from.

    `judged(name)` are the rows that are judged, `other(name)` those that coefficients may be fitted on. Where both
    folders are one, a section that fits and judges rows of the same file splits them itself, by whole models;
    `Verdict` refuses rows that were fitted and are judged. Both are None where the file is missing.

    Attributes:
        groundtruth: folder of the rows that are judged.
        calibrate_on: folder of the rows that coefficients are fitted on.
        missing: file names that a section asked for in vain.
    """

    groundtruth: Path
    calibrate_on: Path
    missing: dict[str, None] = field(default_factory=dict)

    def judged(self, name: str) -> Table | None:
        return self._table(self.groundtruth, name)

    def other(self, name: str) -> Table | None:
        return self._table(self.calibrate_on, name)

    @property
    def split(self) -> bool:
        """Whether fitted and judged rows lie in different folders."""
        return self.groundtruth.resolve() != self.calibrate_on.resolve()

    def _table(self, folder: Path, name: str) -> Table | None:
        path = folder / f"{name}.csv"
        if not path.exists():
            self.missing[str(path)] = None
            return None
        return Table.read(path)

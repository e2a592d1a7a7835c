"""Tables with protected attributes: UCI Adult and ProPublica's COMPAS, read from a file of the user.

Each loader checks the columns it needs and says under which licence the data stands. Nothing is downloaded.
"""

import csv
import dataclasses
import gzip
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxlm.decode import ConfigError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows ready for a learner. Attributes are features too until `blind` takes one out.

    Attributes:
        name: of the data set.
        features: [B, F] float64: numbers as they are, categories one column per value.
        columns: name of each feature, `column=value` for a category.
        labels: [B] int, 0 or 1.
        attributes: name -> group of each row.
        licence: under which the data may be used, with its source.
        caveat: what must be said beside any figure; empty for none.
    """

    name: str
    features: np.ndarray
    columns: tuple[str, ...]
    labels: np.ndarray
    attributes: dict[str, np.ndarray]
    licence: str
    caveat: str = ""

    def blind(self, attribute: str) -> "Table":
        """The table without the columns that hold the attribute itself."""
        if attribute not in self.attributes:
            raise ConfigError(f"{self.name} has no attribute {attribute!r}; it has {', '.join(self.attributes)}")
        kept = [i for i, name in enumerate(self.columns) if name.partition("=")[0] != attribute]
        columns = tuple(self.columns[i] for i in kept)
        return dataclasses.replace(self, features=self.features[:, kept], columns=columns)

    def like(self, other: "Table") -> "Table":
        """This table with the columns of another of the same kind: categories that it lacks are 0 everywhere.

        Raises ConfigError where the other's numbers are missing.
        """
        places = {name: i for i, name in enumerate(self.columns)}
        missing = [name for name in other.columns if name not in places and "=" not in name]
        if missing or self.name != other.name:
            raise ConfigError(
                f"a file of {self.name} cannot stand for one of {other.name}: {', '.join(missing)} missing"
            )
        zero = np.zeros(len(self))
        columns = [self.features[:, places[name]] if name in places else zero for name in other.columns]
        return dataclasses.replace(self, features=np.stack(columns, axis=1), columns=other.columns)

    def __len__(self) -> int:
        return len(self.labels)


ADULT_NUMBERS = ("age", "education-num", "capital-gain", "capital-loss", "hours-per-week")
ADULT_CATEGORIES = ("workclass", "marital-status", "occupation", "relationship", "race", "sex", "native-country")
ADULT_LABELS = ("income-per-year", "income", "class")
ADULT_LICENCE = "UCI Adult, CC BY 4.0, https://doi.org/10.24432/C5XW20"

COMPAS_LICENCE = (
    "ProPublica COMPAS, read under ProPublica's data terms of use (no sub-licensing, no changes but corrections), "
    "https://github.com/propublica/compas-analysis"
)
COMPAS_CAVEAT = (
    "COMPAS: the two-year cut-off of this file keeps too many recidivists (45.1 % instead of 36.2 %, Barenstein 2019); "
    "figures on it compare methods and describe no court"
)
COMPAS_NUMBERS = ("age", "juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count")
COMPAS_FILTER = ("days_b_screening_arrest", "is_recid", "c_charge_degree", "score_text")


def adult(path: Path) -> Table:
    """UCI Adult as CSV with a header (plain or .gz); the label is an income above 50K; attributes sex and race.

    Amounts of capital are taken as log(1 + amount); `fnlwgt` (a sampling weight) and `education` (`education-num` in
    words) are left out. Raises ConfigError for a missing file or column and for a value that is no number.
    """
    rows = _read(path, "adult", (*ADULT_NUMBERS, *ADULT_CATEGORIES))
    label = next((name for name in ADULT_LABELS if name in rows[0]), None)
    if label is None:
        raise ConfigError(f"{path}: no column of labels; expected one of {', '.join(ADULT_LABELS)}")
    labels = np.asarray([_income(path, i, row[label]) for i, row in enumerate(rows)])
    numbers = _numbers(path, rows, ADULT_NUMBERS)
    for name in ("capital-gain", "capital-loss"):
        numbers[name] = np.log1p(numbers[name])
    features, columns = _features(rows, numbers, ADULT_CATEGORIES, {"sex": "Male"})
    attributes = {name: np.asarray([row[name] for row in rows]) for name in ("sex", "race")}
    return Table(
        name="Adult", features=features, columns=columns, labels=labels, attributes=attributes, licence=ADULT_LICENCE
    )


def compas(path: Path, races: Sequence[str] = ("African-American", "Caucasian")) -> Table:
    """ProPublica's `compas-scores-two-years.csv`; the label is `two_year_recid`; attributes race and sex.

    ProPublica's own filter is applied (7,214 -> 6,172 rows), then the rows of `races` are kept (5,278). The tool's
    decile is no feature. Raises ConfigError for a missing file or column, a value that is no number, and a race
    without rows.
    """
    rows = _read(path, "compas", (*COMPAS_NUMBERS, *COMPAS_FILTER, "sex", "race", "two_year_recid"))
    kept = [row for row in rows if _propublica(row) and row["race"] in races]
    for race in races:
        if not any(row["race"] == race for row in kept):
            raise ConfigError(f"{path}: no row of race {race!r} after ProPublica's filter")
    numbers = _numbers(path, kept, (*COMPAS_NUMBERS, "two_year_recid"))
    labels = numbers.pop("two_year_recid").astype(int)
    numbers["felony"] = np.asarray([float(row["c_charge_degree"] == "F") for row in kept])
    single = {"sex": "Male"} | ({"race": races[-1]} if len(races) == 2 else {})
    features, columns = _features(kept, numbers, ("sex", "race"), single)
    attributes = {name: np.asarray([row[name] for row in kept]) for name in ("race", "sex")}
    return Table(
        name="COMPAS", features=features, columns=columns, labels=labels, attributes=attributes,
        licence=COMPAS_LICENCE, caveat=COMPAS_CAVEAT,
    )  # fmt: skip


LOADERS: dict[str, Callable[[Path], Table]] = {"adult": adult, "compas": compas}


def _read(path: Path, what: str, needed: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file by column; the first of two columns of one name counts."""
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.name.endswith((".csv", ".csv.gz")))
        if len(found) != 1:
            raise ConfigError(f"{path}: expected one .csv or .csv.gz file of {what}, found {len(found)}; name the file")
        path = found[0]
    if not path.exists():
        raise ConfigError(f"{path}: no such file; give the CSV of {what}")
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
        lines = csv.reader(file, skipinitialspace=True)
        header = [name.strip() for name in next(lines, [])]
        missing = [name for name in needed if name not in header]
        if missing:
            raise ConfigError(f"{path}: no column {', '.join(missing)}; is this the {what} file with its header?")
        places = {name: header.index(name) for name in dict.fromkeys(header)}
        rows = []
        for number, line in enumerate(lines, start=2):
            if not line:
                continue
            if len(line) != len(header):
                raise ConfigError(f"{path}:{number}: {len(line)} values under {len(header)} columns")
            rows.append({name: line[at].strip() for name, at in places.items()})
    if not rows:
        raise ConfigError(f"{path}: no rows")
    return rows


def _numbers(path: Path, rows: list[dict[str, str]], names: Sequence[str]) -> dict[str, np.ndarray]:
    found = {}
    for name in names:
        values = []
        for i, row in enumerate(rows):
            try:
                values.append(float(row[name]))
            except ValueError:
                raise ConfigError(f"{path}: {name}={row[name]!r} in data row {i + 1} is no number") from None
        found[name] = np.asarray(values)
    return found


def _features(
    rows: list[dict[str, str]], numbers: dict[str, np.ndarray], categories: Sequence[str], single: dict[str, str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers, then one column per value of each category; only that of `single` for a category of two values."""
    parts, names = list(numbers.values()), list(numbers)
    for category in categories:
        column = np.asarray([row[category] for row in rows])
        for value in [single[category]] if category in single else np.unique(column).tolist():
            parts.append((column == value).astype(np.float64))
            names.append(f"{category}={value}")
    return np.stack(parts, axis=1), tuple(names)


def _income(path: Path, row: int, value: str) -> int:
    value = value.rstrip(".")
    if value not in ("<=50K", ">50K"):
        raise ConfigError(f"{path}: income {value!r} in data row {row + 1} is neither '<=50K' nor '>50K'")
    return int(value == ">50K")


def _propublica(row: dict[str, str]) -> bool:
    """https://github.com/propublica/compas-analysis/blob/master/Compas%20Analysis.ipynb, the first filter."""
    days = row["days_b_screening_arrest"]
    near = days != "" and -30 <= float(days) <= 30
    return near and row["is_recid"] != "-1" and row["c_charge_degree"] != "O" and row["score_text"] != "N/A"

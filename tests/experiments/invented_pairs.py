"""A parallel corpus made by rule: numbers in the words of one invented language, and in those of another."""

from pathlib import Path

ONES = {"en": ["zo", "un", "bi", "ter", "quar", "pen", "sek", "hep", "ok", "non"],
        "de": ["nul", "ain", "twa", "dri", "fir", "funi", "sas", "sibu", "akt", "nuin"]}  # fmt: skip
POWERS = {"en": ["", " dek", " cen", " mil"], "de": ["", "tig ", "hund ", "taus "]}


def spelled(number: int, language: str) -> str:
    """`ter mil un cen pen` in the one language; the other puts the lowest digit first, and the power after it."""
    digits = [int(digit) for digit in str(number)]
    powers = range(len(digits) - 1, -1, -1)
    words = [ONES[language][d] + POWERS[language][p] for d, p in zip(digits, powers, strict=True) if d or p == 0]
    return " ".join(words if language == "en" else reversed([word.strip() for word in words]))


def write_pairs(folder: Path, train: int = 1500, test: int = 40) -> Path:
    """train.en, train.de and so on, of different numbers below 10,000 in a fixed pseudo-random order."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [n * 7919 % 10_000 for n in range(1, train + 2 * test + 1)]
    parts = {"train": numbers[:train], "val": numbers[train : train + test], "test_numbers": numbers[train + test :]}
    for name, part in parts.items():
        for language in ("en", "de"):
            text = "".join(f"{spelled(number, language)}\n" for number in part)
            (folder / f"{name}.{language}").write_text(text)
    return folder

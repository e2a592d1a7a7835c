"""Lists that the user gives: words whose pages are dropped, and domains whose pages are kept. We ship neither."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from jaxlm.data.config import DataError

WITHOUT_SPACES = ("ja", "th", "zh")  # languages whose words stand next to each other
Domains = Mapping[str, tuple[str, ...] | None]  # domain -> its allowed subdomains; None: all of them


@dataclasses.dataclass(frozen=True, slots=True)
class Lists:
    """What the files of a `Cleaning` hold; None where a filter is off."""

    words: re.Pattern[str] | None
    domains: Domains | None


def read_lists(blocklist: str | None, domains: str | None, language: str | None) -> Lists:
    """The lists behind `blocklist` and `domains`. Raises DataError naming the key, the file and the line."""
    words = None if blocklist is None else pattern(read_words(blocklist), language)
    return Lists(words, None if domains is None else read_domains(domains))


def read_words(path: str) -> list[str]:
    """The words and phrases of a file, one per line."""
    words = [line.strip() for line in _text(path, "blocklist").splitlines() if line.strip()]
    if not words:
        raise DataError(f"blocklist={path} holds no word: give one word or phrase per line, or null for no filter")
    return words


def pattern(words: list[str], language: str | None) -> re.Pattern[str]:
    """What finds any of the words in lower-case text: as whole words, except where a language writes no spaces."""
    listed = "|".join(r"\s+".join(map(re.escape, word.lower().split())) for word in words)
    return re.compile(listed if language in WITHOUT_SPACES else rf"(?<!\w)(?:{listed})(?!\w)")


def blocked(text: str, words: re.Pattern[str]) -> str | None:
    """The first word or phrase of the blocklist in a text, if any."""
    found = words.search(text.lower())
    return found[0] if found else None


def read_domains(path: str) -> dict[str, tuple[str, ...] | None]:
    """Domains, one per line and each with all its subdomains; or RealNews' JSON, domain -> true or subdomains.

    The JSON is the file that C4's realnewslike was made with:
    https://github.com/rowanz/grover/blob/master/realnews/domain_to_allowed_subdomains.json
    """
    text = _text(path, "domains")
    if path.endswith(".json"):
        try:
            raw = json.loads(text)
            found = {name.lower(): None if subs is True else tuple(map(str.lower, subs)) for name, subs in raw.items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise DataError(
                f"domains={path} is no mapping of domains to true or a list of subdomains: {error}"
            ) from None
    else:
        found = {}
        for number, line in enumerate(text.splitlines(), 1):
            if not (name := line.strip().lower()):
                continue
            if not re.fullmatch(r"[^\s/:@]+\.[^\s/:@]+", name):
                raise DataError(f"domains={path}:{number}: {line.strip()!r} is no domain: write it like bbc.co.uk")
            found[name] = None
    if not found:
        raise DataError(f"domains={path} holds no domain: give one per line, or null for no filter")
    return found


def from_domain(url: str, domains: Domains) -> bool:
    """Whether a URL belongs to one of the domains, by the longest one that fits."""
    try:
        host = (urlsplit(url).hostname or "").removeprefix("www.")
    except ValueError:
        return False
    labels = host.split(".")
    for at in range(len(labels)):
        if (name := ".".join(labels[at:])) in domains:
            allowed = domains[name]
            return allowed is None or ".".join(labels[:at]) in allowed
    return False


def _text(path: str, key: str) -> str:
    try:
        return Path(path).expanduser().read_text("utf-8")
    except OSError as error:
        raise DataError(f"{key}={path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{key}={path} is not UTF-8 text (byte {error.start:,})") from None

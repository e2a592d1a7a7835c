"""What is read from the input: pages, records that are no page, and places that cannot be read."""

import dataclasses
import re
from datetime import UTC, datetime

from jaxlm.data.config import DataError
from jaxlm.data.sources import Corrupt


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """One document of the web. `content` is text, or HTML as bytes together with what HTTP said of its charset."""

    url: str
    timestamp: str  # ISO 8601, UTC, whole seconds: 2019-04-25T12:57:54Z; empty where unknown
    content: str | bytes
    charset: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Skipped:
    """A record that is no page, as there are many in an archive: requests, redirects, images."""

    why: str


Item = Page | Skipped | Corrupt


def timestamp(text: str | None) -> str:
    """Any ISO 8601 time as UTC in whole seconds; empty when it is none."""
    try:
        when = datetime.fromisoformat(text or "")
    except ValueError:
        return ""
    when = when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(timestamp: str) -> int:
    """Seconds since 1970 of a timestamp; the unknown one comes before all others."""
    return int(datetime.fromisoformat(timestamp).timestamp()) if timestamp else -(2**62)


def from_seconds(seconds: float) -> str:
    """The timestamp of a file's time of change."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def same_url(url: str) -> str:
    """What URLs of one page have in common: scheme, `www.`, tracking parameters and a last slash are left out.

    As `normalize_url` in
    https://github.com/tensorflow/datasets/blob/master/tensorflow_datasets/text/c4_utils.py
    """
    url = re.sub(r"https?://(www\.)?", "", url)
    return re.sub(r"\?(utm_|ref|feed).*", "", url).rstrip("/")


def missing(package: str, purpose: str) -> DataError:
    """What to say when an optional package is not installed."""
    return DataError(f"{purpose} needs the package {package}: install it with `uv sync --extra clean`")

"""Small web archives for tests: pages with boilerplate around an article, as WARC, WET and saved HTML."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

SENTENCES = [
    "The lighthouse stood at the end of the long stone pier, where the wind never rested.",
    "Every evening the keeper climbed its stairs with a lamp in one hand and bread in the other.",
    "He had learned the names of all the ships that passed between the two islands.",
    "Fishermen on the shore set their clocks by the first flash of his light.",
    "In winter the waves reached the windows of the lowest room and froze there.",
    "Nobody in the village could remember a night on which the tower had been dark.",
    "His daughter wrote down the weather each morning in a book with a green cover.",
    "When the old engine failed they turned the great lens by hand until the sun rose.",
    "Visitors came in summer to look at the machinery and to ask about the storms.",
    "The keeper answered their questions politely and then went back to his work.",
    "A letter from the capital said that the light would be run by electricity soon.",
    "He read it twice, folded it carefully, and put it between the pages of the book.",
]


def article(number: int, paragraphs: int = 4) -> list[str]:
    """Paragraphs of three sentences that no other article has."""
    made = []
    for place in range(paragraphs):
        chosen = [SENTENCES[(number * 5 + place * 3 + k) % len(SENTENCES)] for k in range(3)]
        made.append(f"Report {number} part {place} begins here on the coast. " + " ".join(chosen))
    return made


def html(paragraphs: Sequence[str], title: str = "The keeper of the light", head: str = "") -> str:
    body = "\n".join(f"<p>{text}</p>" for text in paragraphs)
    return f"""<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>{head}
<script>var tracker = {{ id: 7 }};</script><style>p {{ color: red }}</style></head><body>
<nav><ul><li><a href="/">Home page of this site</a></li>
<li><a href="/shop">Our shop is open all day.</a></li></ul></nav>
<header><a href="/login">Please sign in to read more of our stories today.</a></header>
<main><article><h1>{title}</h1>
{body}
</article></main>
<aside><a href="/ads">Buy one lamp and get a second lamp for free this week.</a></aside>
<footer><p>Copyright 2024 by the publisher. All rights reserved everywhere.</p></footer></body></html>"""


def as_text(paragraphs: Sequence[str], title: str = "The keeper of the light") -> str:
    """The page as Common Crawl's WET has it: one line per block, navigation included."""
    return "\n".join(["Home", "Shop", "Sign in", title, *paragraphs, "Copyright 2024"])


def record(kind: str, url: str, content: bytes, content_type: str, when: str = "2019-04-25T12:57:54Z") -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: {when}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content + b"\r\n\r\n"


def info() -> bytes:
    return record("warcinfo", "", b"software: a test\r\n", "application/warc-fields")


def response(
    url: str,
    body: str | bytes,
    *,
    status: str = "200 OK",
    media: str = "text/html; charset=utf-8",
    extra: str = "",
    when: str = "2019-04-25T12:57:54Z",
) -> bytes:
    body = body.encode() if isinstance(body, str) else body
    http = f"HTTP/1.1 {status}\r\nContent-Type: {media}\r\n{extra}\r\n".encode() + body
    return record("response", url, http, "application/http; msgtype=response", when)


def conversion(url: str, text: str, when: str = "2019-04-25T12:57:54Z") -> bytes:
    return record("conversion", url, text.encode(), "text/plain", when)


def write_archive(path: Path, records: Sequence[bytes]) -> Path:
    """One gzip member per record, as the standard asks, where the name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = [gzip.compress(each, mtime=0) if path.suffix == ".gz" else each for each in records]
    path.write_bytes(b"".join(packed))
    return path


def write_wet(path: Path, articles: Sequence[Sequence[str]], site: str = "https://coast.example") -> Path:
    pages = [conversion(f"{site}/{path.name}/{at}", as_text(each)) for at, each in enumerate(articles)]
    return write_archive(path, [info(), *pages])


def documents(out: Path, split: str = "*") -> list[dict]:
    """The lines of all shards of a finished cleaning."""
    lines = [gzip.decompress(path.read_bytes()).splitlines() for path in sorted(out.glob(f"c4-{split}.*.json.gz"))]
    return [json.loads(line) for each in lines for line in each]


def texts(out: Path) -> list[str]:
    return [each["text"] for each in documents(out)]

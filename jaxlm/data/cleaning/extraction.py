"""HTML to its main text: navigation, headers, footers, scripts and comments are left behind."""

import logging
import re

from jaxlm.data.cleaning.pages import missing

DECLARED = re.compile(rb"""<meta[^>]{0,200}charset\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
LATIN = {"iso-8859-1": "cp1252", "latin1": "cp1252", "latin-1": "cp1252", "us-ascii": "cp1252"}  # as browsers do


def main_text(html: bytes, charset: str | None = None) -> str | None:
    """The main text of a page, one paragraph, heading or list item per line; None where there is none.

    Extraction is that of `trafilatura` without its own deduplication, which depends on what was read before
    (https://github.com/adbar/trafilatura/issues/778). `charset` is what HTTP declared.
    """
    try:
        import trafilatura
    except ImportError:
        raise missing("trafilatura", "reading HTML") from None
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # a page without text is counted, not logged
    document = decode(html, charset)
    text = trafilatura.extract(document, include_comments=False, deduplicate=False) if document else None
    return text or None


def decode(html: bytes, charset: str | None) -> str | bytes:
    """HTML as text by the charset of HTTP, else of the page's `meta`; as it is where neither fits."""
    found = DECLARED.search(html[:4096])
    for name in (charset, found and found[1].decode("ascii", "replace")):
        if name:
            try:
                return html.decode(LATIN.get(name.lower(), name))
            except (LookupError, ValueError):  # no such charset, or not that of these bytes
                continue
    return html


def own_url(html: bytes) -> str | None:
    """The URL that a page gives for itself: its canonical link, else `og:url`."""
    try:
        from lxml.html import document_fromstring
    except ImportError:
        raise missing("trafilatura", "reading HTML") from None
    from lxml.etree import LxmlError

    try:
        tree = document_fromstring(html)
    except (LxmlError, ValueError):
        return None
    for path in ('//link[@rel="canonical"]/@href', '//meta[@property="og:url"]/@content'):
        for url in tree.xpath(path):
            if str(url).startswith(("http://", "https://")):
                return str(url)
    return None

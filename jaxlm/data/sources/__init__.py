"""Every source of text a config can name, read document by document.

- `find.find_sources`    the files behind `data.path` and `data.validation`, on this machine or behind a URL
- `pairs`                texts with their translations, for `data.parallel`
- `remote`               finding files behind a URL
- `splits`               which text is held out
- `reading.read`         the documents of a file; `text`, `columns`, `tfds` know one family of formats each
- `opening`              paths, URLs and compression
- `source`               Source, Document, Corrupt
"""

from jaxlm.data.sources.find import find_sources
from jaxlm.data.sources.reading import read
from jaxlm.data.sources.source import (
    BY_DOCUMENT,
    BY_TAIL,
    SPLITS,
    TEST,
    TEXT,
    TRAIN,
    VALID,
    Corrupt,
    Document,
    Source,
    stable_hash,
)

__all__ = [
    "BY_DOCUMENT",
    "BY_TAIL",
    "SPLITS",
    "TEST",
    "TEXT",
    "TRAIN",
    "VALID",
    "Corrupt",
    "Document",
    "Source",
    "find_sources",
    "read",
    "stable_hash",
]

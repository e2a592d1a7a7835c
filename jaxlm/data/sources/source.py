"""What a source of text is: a file (or a part of one), and the documents it gives."""

import dataclasses
import hashlib
from pathlib import PurePosixPath

TRAIN, VALID, TEST = "train", "valid", "test"
TEXT = "text"  # a text by itself, neither trained on nor held out from anything
SPLITS = (TRAIN, VALID, TEST, TEXT)
BY_DOCUMENT, BY_TAIL = "by document", "by tail"  # a file that holds both training and held-out text
UNDECIDED = ""  # nothing about the file says on which side it is

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
FORMATS = {".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".arrow": "arrow"}
TFDS = "tfds"  # a shard of a TensorFlow data set


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """One file: `name` is its path below the corpus, the same on every machine.

    `path` may be a URL. `modified` is in nanoseconds, 0 where only `tag` (an etag, a checksum) tells versions
    apart. `part` says what is read of a TensorFlow data set: a split and a shard.
    """

    path: str
    name: str
    bytes: int
    modified: int
    split: str  # train, valid, test, or a rule for a file that holds several
    part: str = ""
    tag: str = ""

    @property
    def format(self) -> str:
        """`text`, `jsonl`, `parquet`, `arrow` or `tfds`."""
        if self.part:
            return TFDS
        name = self.name.removesuffix(PurePosixPath(self.name).suffix) if self.compression else self.name
        return FORMATS.get(PurePosixPath(name).suffix.lower(), "text")

    @property
    def compression(self) -> str | None:
        """`gzip`, `zstd` or None; formats that compress within themselves are not meant."""
        return COMPRESSIONS.get(PurePosixPath(self.name).suffix.lower())

    @property
    def many(self) -> bool:
        """Whether it holds many documents, one per line or row, rather than being one."""
        return self.format != "text"

    @property
    def compressed(self) -> bool:
        """Whether its text has more bytes than the file."""
        return self.compression is not None or self.format == "parquet"


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A text and the split it belongs to; `prompt` is what is read before it and not learned, where there is such."""

    text: str
    split: str
    prompt: str | None = None

    def shorter(self, characters: int) -> bool:
        """Whether it is too short to train on; the sides of a pair may be of any length."""
        return self.prompt is None and len(self.text) < characters


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A text among many in one file, by its number (from 1); `url` where the row names one, `prompt` as in Document."""

    number: int
    text: str
    url: str | None
    prompt: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Corrupt:
    """A place that could not be read as text."""

    where: str
    why: str


def stable_hash(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64


def checked(source: Source, number: int, text: object, url: object) -> Row | Corrupt:
    """A row whose text has been looked at: a string or UTF-8 bytes, or else what is wrong with it."""
    where = f"{source.path}:{number}"
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        elif isinstance(text, str):
            text.encode("utf-8")
        else:
            return Corrupt(where, "no `text` string in this row")
    except UnicodeDecodeError as error:
        return Corrupt(where, f"not UTF-8 (byte 0x{error.object[error.start]:02x})")
    except UnicodeEncodeError:
        return Corrupt(where, "`text` holds a lone surrogate, which has no UTF-8 form")
    if isinstance(url, bytes):
        url = url.decode("utf-8", "replace")
    return Row(number, text, url if isinstance(url, str) and url else None)

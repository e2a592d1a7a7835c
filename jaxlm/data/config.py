"""What a user may say about data and tokenizer."""

import dataclasses
import math
import re
from typing import Literal

STDLIB = "stdlib"


class DataError(ValueError):
    """Something the user can put right: a path, a file, a value. The message says what and how."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """The vocabulary: learned from the training text, or an existing one.

    Attributes:
        kind: How pieces are learned: `bpe` (fewer tokens per byte) or `unigram`.
        vocab: Number of token ids, the special and byte tokens included.
        sample_bytes: Bytes of training text from which the pieces are learned.
        path: An existing SentencePiece model or Hugging Face tokenizer.json, used so that no byte is lost (no space
            put before a text, no special token read out of it); `kind`, `vocab`, `sample_bytes` are then unused.
    """

    kind: Literal["bpe", "unigram"] = "bpe"
    vocab: int = 32_000
    sample_bytes: int = 16_000_000
    path: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("bpe", "unigram"):
            raise DataError(f"data.tokenizer.kind={self.kind!r} must be bpe or unigram")
        if self.vocab < 320:
            raise DataError(
                f"data.tokenizer.vocab={self.vocab} must be at least 320: 256 byte tokens, special tokens "
                "and white space come first"
            )
        if self.sample_bytes < 1:
            raise DataError(f"data.tokenizer.sample_bytes={self.sample_bytes} must be at least 1")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One of the texts of a mixture.

    Attributes:
        path: Whatever `data.path` may be: where the text of this part is.
        weight: Share of the training rows that come from this part, relative to the weights of the others; where rows
            are packed, also of the tokens.
        validation: Held-out text of this part; absent: a share of its own text, as `data.validation_fraction` says.
    """

    path: str
    weight: float = 1.0
    validation: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """Texts with their translations: what ends a file name, heads a column or is a key of a JSON line.

    Attributes:
        source: What is read, e.g. en.
        target: What is learned, e.g. de.
    """

    source: str
    target: str

    def __post_init__(self) -> None:
        if not self.source or not self.target or self.source == self.target:
            raise DataError(
                f"data.parallel.source={self.source!r} and data.parallel.target={self.target!r} must be two names, "
                "e.g. en and de"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Where the text is, what is held out, and how documents become rows.

    Attributes:
        path: Folder, glob, file or URL (gs://, s3://, https://, hf://) of text, C4-format JSONL (both plain, .gz or
            .zst), Parquet or Hugging Face `datasets`; a TensorFlow data set by name, tfds:NAME/CONFIG:VERSION, or
            some of its splits, tfds:c4/multilingual[de,fr]; or `stdlib`: Python's sources.
        parallel: Learn to translate: `path` then holds pairs, as two files of lines (train.en and train.de, val.en,
            ...; plain, .gz or .zst) in a folder, or as a .tsv or .jsonl file or a folder of them. The model reads the
            source and learns the target.
        mixture: Several texts instead of `path`, by name, each with path, weight and validation of its own:
            --data.mixture.novels.path DIR --data.mixture.novels.weight 0.7
        validation: Held-out text, given as in `path`; absent: what the data set itself holds out (its splits, a
            manifest.csv), else a part of `path`, of a mixture a part of each.
        validation_fraction: Share of the files (JSONL: documents) held out, chosen by a hash of the name.
        sequence: Tokens per row.
        mode: `pack` fills rows with documents one after the other; `truncate`: one document per row, cut.
        minimum_characters: Shorter documents are dropped from training; held-out text and pairs are always kept.
        limit_bytes: Stop after this much training text (of each part of a mixture), for quick runs; absent: take
            all. What is held out does not depend on it: where documents are held out one by one, all of them are
            read, which `data.validation` spares.
        corrupt_share: Stop when more than this share of the documents is not UTF-8 or not JSON.
        cache: Folder for prepared tokens; absent: ~/.cache/jaxlm/data.
        tokenizer: How text becomes tokens.
    """

    path: str = STDLIB
    parallel: Parallel | None = None
    mixture: dict[str, Part] = dataclasses.field(default_factory=dict)
    validation: str | None = None
    validation_fraction: float = 0.02
    sequence: int = 512
    mode: Literal["pack", "truncate"] = "pack"
    minimum_characters: int = 128
    limit_bytes: int | None = None
    corrupt_share: float = 0.01
    cache: str | None = None
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)

    def __post_init__(self) -> None:
        if not self.path:
            raise DataError("data.path is empty: give a folder, a glob, a file, or the word stdlib")
        self._check_mixture()
        if not 0 <= self.validation_fraction < 1:
            raise DataError(f"data.validation_fraction={self.validation_fraction} must be at least 0 and below 1")
        if self.sequence < 2:
            raise DataError(f"data.sequence={self.sequence} must be at least 2")
        if self.mode not in ("pack", "truncate"):
            raise DataError(f"data.mode={self.mode!r} must be pack or truncate")
        if self.parallel is not None and self.mode == "pack":
            raise DataError(
                "data.mode=pack would cut targets off their sources: data.parallel needs data.mode=truncate, one pair "
                "per row"
            )
        if self.minimum_characters < 0:
            raise DataError(f"data.minimum_characters={self.minimum_characters} must be at least 0")
        if self.limit_bytes is not None and self.limit_bytes < 1:
            raise DataError(f"data.limit_bytes={self.limit_bytes} must be at least 1, or absent")
        if not 0 <= self.corrupt_share <= 1:
            raise DataError(f"data.corrupt_share={self.corrupt_share} must be between 0 and 1")

    def _check_mixture(self) -> None:
        if self.mixture and self.path != STDLIB:
            raise DataError(
                f"data.path={self.path} and data.mixture ({', '.join(self.mixture)}) are both given, and one takes the "
                f"other's place; make that text a part (--data.mixture.NAME.path {self.path}), or leave it out "
                f"(--data.path {STDLIB}, the default)"
            )
        for name, part in self.mixture.items():
            key = f"data.mixture.{name}"
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise DataError(f"{key}: {name!r} is no name for a part; use letters, digits, _ and -")
            if not part.path:
                raise DataError(f"{key}.path is empty: give a folder, a glob, a file, or the word stdlib")
            if not (part.weight > 0 and math.isfinite(part.weight)):
                raise DataError(f"{key}.weight={part.weight} must be above 0; to train without {name}, leave it out")
            if part.validation is not None and self.validation is not None:
                raise DataError(
                    f"{key}.validation={part.validation} and data.validation={self.validation} are both given: the "
                    "first holds out text of this part, the second is held out instead of text of the parts; keep one"
                )

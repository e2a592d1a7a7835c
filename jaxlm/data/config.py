"""What a user may say about data and tokenizer."""

import dataclasses
from typing import Literal

STDLIB = "stdlib"


class DataError(ValueError):
    """Something the user can put right: a path, a file, a value. The message says what and how."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """The vocabulary: learned from the training text, or an existing SentencePiece model.

    Attributes:
        kind: How pieces are learned: `bpe` (fewer tokens per byte) or `unigram`.
        vocab: Number of token ids, the special and byte tokens included.
        sample_bytes: Bytes of training text from which the pieces are learned.
        path: An existing SentencePiece model, used as it is; `kind`, `vocab`, `sample_bytes` are then unused.
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
class DataConfig:
    """Where the text is, what is held out, and how documents become rows.

    Attributes:
        path: Folder, glob or file of text or C4-format JSONL (plain or .gz), or `stdlib`: Python's sources.
        validation: Folder, glob or file of held-out text; absent: a part of `path` is held out.
        validation_fraction: Share of the files (JSONL: documents) held out, chosen by a hash of the name.
        sequence: Tokens per row.
        mode: `pack` fills rows with documents one after the other; `truncate`: one document per row, cut.
        minimum_characters: Shorter documents are dropped from training; held-out text is always kept whole.
        limit_bytes: Stop after this much training text, for quick runs; absent: take all.
        corrupt_share: Stop when more than this share of the documents is not UTF-8 or not JSON.
        cache: Folder for prepared tokens; absent: ~/.cache/jaxlm/data.
        tokenizer: How text becomes tokens.
    """

    path: str = STDLIB
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
        if not 0 <= self.validation_fraction < 1:
            raise DataError(f"data.validation_fraction={self.validation_fraction} must be at least 0 and below 1")
        if self.sequence < 2:
            raise DataError(f"data.sequence={self.sequence} must be at least 2")
        if self.mode not in ("pack", "truncate"):
            raise DataError(f"data.mode={self.mode!r} must be pack or truncate")
        if self.minimum_characters < 0:
            raise DataError(f"data.minimum_characters={self.minimum_characters} must be at least 0")
        if self.limit_bytes is not None and self.limit_bytes < 1:
            raise DataError(f"data.limit_bytes={self.limit_bytes} must be at least 1, or absent")
        if not 0 <= self.corrupt_share <= 1:
            raise DataError(f"data.corrupt_share={self.corrupt_share} must be between 0 and 1")

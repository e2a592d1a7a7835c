"""Text to tokens and back without losing a byte, whatever made the vocabulary.

A SentencePiece model or a Hugging Face tokenizer.json does the splitting; around it, two things make every string
survive: a literal U+2581, which stands for the space in many models, is written as its three bytes, and decoding goes
through a table id -> bytes.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxlm.data.config import DataError, TokenizerConfig
from jaxlm.data.tokenizer_json import TokenizerJson
from jaxlm.data.tokenizer_sentencepiece import SPACE, SentencePiece, chunks, learn

CHUNK = 16_384  # characters; longer texts are cut at a newline so that several cores can share one document

# A model that loses any of these does not fit: case, composed letters, runs of spaces, rare scripts, control
# codes.
PROBE = " \uff21\ufb01  a\u0301\n\n\t x \r\n<s></s><unk><0x0A>\u2581\u2585\x00\x07\ufeff\U0001f600\U00010330\u3000. "


class Tokenizer:
    """A vocabulary that gives back exactly what it was given.

    `bos`, `eos`, `pad` are ids; `vocab` counts all ids; `pieces[id]` are the bytes a token stands for (none
    for special tokens); `model` is the file it came from, of either kind, `digest` names it, and `library` is the
    package that reads it.
    """

    def __init__(self, model: bytes, origin: str = "the tokenizer"):
        self.model = model
        self.digest = hashlib.sha256(model).hexdigest()
        is_json = model[:1024].lstrip().startswith(b"{")  # a SentencePiece model is a protobuf, which begins otherwise
        self._model = TokenizerJson(model, origin) if is_json else SentencePiece(model, origin)
        self.library: str = self._model.library
        self.pieces: list[bytes] = self._model.pieces
        self.vocab = len(self.pieces)
        bos, eos, pad = self._model.bos, self._model.eos, self._model.pad
        self.bos: int = bos if bos >= 0 else eos
        self.eos: int = eos if eos >= 0 else bos
        self.pad: int = pad if pad >= 0 else self.eos
        if self.bytes(self.encode(PROBE)) != PROBE.encode():
            raise DataError(f"{origin} changes the text it reads (normalisation or white space)")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """The SentencePiece model or tokenizer.json in a file; which of them it is, its content says."""
        try:
            model = Path(path).expanduser().read_bytes()
        except OSError as error:
            raise DataError(f"tokenizer {path} cannot be read: {error.strerror}") from error
        return cls(model, str(path))

    @classmethod
    def train(
        cls, texts: Iterable[str], config: TokenizerConfig, path: str | os.PathLike[str] | None = None
    ) -> "Tokenizer":
        """A SentencePiece model learned from `texts`, the same for the same texts; written to `path` when one is
        given."""
        tokenizer = cls(learn(texts, config))
        if path is not None:
            Path(path).write_bytes(tokenizer.model)
        return tokenizer

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32, without begin and end."""
        return self.encode_many([text], threads=1)[0]

    def encode_many(self, texts: Sequence[str], threads: int | None = None) -> list[np.ndarray]:
        """Token ids of each text; long and many texts are shared among `threads` (default: all cores)."""
        parts: list[str] = []
        owners: list[list[int | None]] = []  # per text, indices into parts; None stands for U+2581
        marks = self._model.space
        for text in texts:
            owner: list[int | None] = []
            for count, between in enumerate([text] if marks is None else text.split(SPACE)):
                if count:
                    owner.append(None)
                for chunk in chunks(between, CHUNK if self._model.cuttable else len(between)):
                    owner.append(len(parts))
                    parts.append(chunk)
            owners.append(owner)
        try:
            ids = self._model.encode(parts, threads or cores()) if parts else []
        except (UnicodeEncodeError, TypeError) as error:
            raise DataError("text with a lone surrogate has no UTF-8 form and cannot be encoded") from error
        encoded = []
        for owner in owners:
            runs = [np.array(marks if part is None else ids[part], np.int32) for part in owner]
            encoded.append(runs[0] if len(runs) == 1 else np.concatenate([*runs, np.empty(0, np.int32)]))
        return encoded

    def bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes behind tokens; special tokens stand for none."""
        pieces = self.pieces
        return b"".join([pieces[id] for id in ids])

    def decode(self, ids: Iterable[int]) -> str:
        """The text behind tokens; bytes that are no UTF-8 (a cut character, a guess) become U+FFFD."""
        return self.bytes(ids).decode("utf-8", errors="replace")


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

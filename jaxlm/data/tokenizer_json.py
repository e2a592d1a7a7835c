"""A Hugging Face `tokenizer.json`, used so that every text comes back byte for byte.

What adds to or changes the text is switched off: the space put before a text (`Prepend`, `Metaspace`, `ByteLevel`),
NFC normalisation, special tokens spelled out in the text, dropout, truncation. On other text the tokens are those of
the original, but for the first word of a document where the original would put a space before it.
"""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxlm.data.config import DataError

SPACE = "\u2581"  # the visible space of SentencePiece-like models
BEGIN = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "[BOS]", "[CLS]")
END = ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "[EOS]", "[SEP]")
PADDING = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>")


class TokenizerJson:
    """Encodes with the package `tokenizers`; `pieces[id]` are the bytes of a token, none for special ones.

    `bos`, `eos`, `pad` are -1 where there is none such. `space` are the ids that spell U+2581, where the model uses
    that character for the space and so cannot be given it as text.
    """

    library = "tokenizers"  # whose version may decide what the tokens are
    cuttable = False  # a cut before a newline may change tokens: most split white space by what follows it

    def __init__(self, content: bytes, origin: str):
        try:
            import tokenizers
        except ImportError as error:
            raise DataError(f"{origin} is a tokenizer.json, which needs a package: uv sync --extra hf") from error
        try:
            spec = json.loads(content)
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(_lossless(spec)))
        except Exception as error:  # `tokenizers` raises bare Exceptions
            raise DataError(f"{origin} is not a tokenizer.json: {error}") from error
        self._tokenizer.encode_special_tokens = True  # as text, not as tokens
        model, added = spec["model"], spec.get("added_tokens") or []
        byte_level = "ByteLevel" in _kinds(spec.get("pre_tokenizer")) | _kinds(spec.get("normalizer"))
        self._special = {token["id"]: token["content"] for token in added if token["special"]}
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        alphabet = {character: byte for byte, character in enumerate(_alphabet())} if byte_level else {}
        fallback = bool(model.get("byte_fallback"))
        literal = {token["id"] for token in added}
        self.pieces = [b""] * (max(ids.values(), default=-1) + 1)
        for piece, id in ids.items():
            if id not in self._special:
                self.pieces[id] = piece.encode() if id in literal else _bytes_of(piece, alphabet, fallback)
        self._check_bytes(ids, byte_level, fallback, origin)
        self.space = None if byte_level else [ids[f"<0x{byte:02X}>"] for byte in SPACE.encode()]
        self.bos, self.eos, self.pad = (
            next((ids[name] for name in names if name in ids and ids[name] in self._special), -1)
            for names in (BEGIN, END, PADDING)
        )
        if self.bos < 0 and self.eos < 0:
            known = ", ".join((*BEGIN, *END))
            there = ", ".join(list(self._special.values())[:8]) or "none"
            raise DataError(f"{origin} has no special token that begins or ends a text ({known}); it has {there}")
        self._is_special = np.zeros(len(self.pieces), bool)
        self._is_special[list(self._special)] = True
        spelled = [re.escape(token) for token in sorted(self._special.values(), key=len, reverse=True)]
        bytes_too = ["<0x[0-9A-F]{2}>"] if fallback and model["type"] == "Unigram" else []
        self._byte_token = re.compile(bytes_too[0]) if bytes_too else None
        self._spelled = re.compile("|".join(spelled + bytes_too))

    def encode(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        """Token ids of each text; more than one thread means as many as `tokenizers` takes."""
        if threads == 1:
            encodings = [self._tokenizer.encode(text, add_special_tokens=False) for text in texts]
        else:
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._unspelled(text, each.ids) for text, each in zip(texts, encodings, strict=True)]

    def _unspelled(self, text: str, ids: list[int]) -> list[int]:
        """The same ids unless the model (Unigram) took a special token spelled in the text for one: then each
        such spelling is cut after its first character, and the parts are encoded."""
        if not (self._is_special[ids].any() or (self._byte_token is not None and self._byte_token.search(text))):
            return ids
        cuts = [0, *(found.start() + 1 for found in self._spelled.finditer(text)), len(text)]
        parts = [text[start:stop] for start, stop in itertools.pairwise(cuts)]
        ids = [id for part in parts for id in self._tokenizer.encode(part, add_special_tokens=False).ids]
        if self._is_special[ids].any():
            raise DataError("text that spells a special token of a single character cannot be encoded as text")
        return ids

    def _check_bytes(self, ids: dict[str, int], byte_level: bool, fallback: bool, origin: str) -> None:
        if byte_level:
            complete = all(character in ids for character in _alphabet())
        else:
            complete = fallback and all(f"<0x{byte:02X}>" in ids for byte in range(256))
        if not complete:
            raise DataError(
                f"{origin} has neither all 256 bytes in its vocabulary (byte-level BPE) nor byte fallback: "
                "characters outside its vocabulary would be lost"
            )


def _bytes_of(piece: str, alphabet: dict[str, int], fallback: bool) -> bytes:
    if alphabet:
        known = all(character in alphabet for character in piece)
        return bytes(alphabet[character] for character in piece) if known else piece.encode()
    if fallback and re.fullmatch("<0x[0-9A-F]{2}>", piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(SPACE, " ").encode()


def _alphabet() -> list[str]:
    """The character that stands for each byte in byte-level BPE: itself where it is printable, else from U+0100 on.

    Radford et al. 2019, https://github.com/openai/gpt-2/blob/master/src/encoder.py (bytes_to_unicode).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _lossless(spec: dict[str, Any]) -> dict[str, Any]:
    added = [token | {"lstrip": False, "rstrip": False} for token in spec.get("added_tokens") or []]
    model = spec["model"] | ({"dropout": None} if spec["model"].get("dropout") else {})
    changed = {key: _adjusted(spec.get(key)) for key in ("normalizer", "pre_tokenizer")}
    off = {"truncation": None, "padding": None, "post_processor": None}
    return spec | changed | off | {"added_tokens": added, "model": model}


def _adjusted(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer that neither adds a space nor composes characters."""
    if step is None or step["type"] in ("Prepend", "NFC"):
        return None
    if step["type"] == "Sequence":
        key = "normalizers" if "normalizers" in step else "pretokenizers"
        steps = [adjusted for each in step[key] if (adjusted := _adjusted(each)) is not None]
        return step | {key: steps} if steps else None
    if step["type"] == "Metaspace":
        return step | {"prepend_scheme": "never", "add_prefix_space": False}
    return step | {"add_prefix_space": False} if step["type"] == "ByteLevel" else step


def _kinds(step: dict[str, Any] | None) -> set[str]:
    return set(_each_kind(step)) if step else set()


def _each_kind(step: dict[str, Any]) -> Iterator[str]:
    yield step["type"]
    for each in step.get("normalizers") or step.get("pretokenizers") or []:
        yield from _each_kind(each)

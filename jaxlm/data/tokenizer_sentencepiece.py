"""A SentencePiece model, used or learned so that every text comes back byte for byte."""

import io
import re
from collections.abc import Iterable, Iterator, Sequence

from jaxlm.data.config import DataError, TokenizerConfig

SPACE = "\u2581"  # SentencePiece's visible space

# White space that is one token each. Newlines open a token and never sit inside another piece, so cutting a
# text before a run of newlines changes nothing. Measured on Python sources, vocab 4096: 0.289 tokens per byte
# with such symbols, 0.296 without; 0.278 where, besides, a piece may mix letters and punctuation.
WHITE_SPACE = (
    *("\n" * n for n in (1, 2, 3)),
    *("\n" + SPACE * n for n in (*range(1, 17), 20, 24)),
    *("\n\n" + SPACE * n for n in (2, 4, 8, 12, 16)),
    *(SPACE * n for n in (*range(2, 9), 12, 16)),
    *("\t" * n for n in (1, 2, 3, 4)),
    *("\n" + "\t" * n for n in (1, 2, 3, 4)),
    "\r\n",
)


class SentencePiece:
    """Encodes with the package `sentencepiece`; `pieces[id]` are the bytes of a token, none for control tokens.

    The space that many models put before a text (`add_dummy_prefix`, as Llama 2's does) is left out, so that bytes
    are exact; the first word of a document then has the tokens it has after a newline. `bos`, `eos`, `pad` are -1
    where there is none such. `space` are the ids that spell U+2581, which stands for the space and so cannot be
    given as text. `cuttable`: no piece holds a newline behind other text, so a text may be cut before newlines.
    """

    library = "sentencepiece"  # whose version may decide what the tokens are

    def __init__(self, content: bytes, origin: str):
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(content)
            if (plain := _without_prefix(content)) is not None:
                processor.LoadFromSerializedProto(plain)
        except RuntimeError as error:
            raise DataError(f"{origin} is not a SentencePiece model ({error})") from error
        self._processor = processor
        ids = range(processor.vocab_size())
        self.pieces = [_bytes_of(processor, id) for id in ids]
        self.bos, self.eos, self.pad = processor.bos_id(), processor.eos_id(), processor.pad_id()
        if self.bos < 0 and self.eos < 0:
            raise DataError(f"{origin} has neither a begin nor an end token: documents could not be told apart")
        byte_ids = {self.pieces[id][0]: id for id in ids if processor.IsByte(id)}
        if len(byte_ids) < 256:
            raise DataError(f"{origin} has no byte fallback: characters outside its vocabulary would be lost")
        self.space = [byte_ids[byte] for byte in SPACE.encode()]
        self.cuttable = not any(re.search(rb"[^\r\n]\n", piece) for piece in self.pieces)

    def encode(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        """Token ids of each text."""
        return self._processor.encode(list(texts), out_type=int, num_threads=threads)


def _without_prefix(content: bytes) -> bytes | None:
    """The model without its dummy prefix; None where it has none."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(content)  # pyright: ignore[reportAttributeAccessIssue]
    if not model.normalizer_spec.add_dummy_prefix:
        return None
    model.normalizer_spec.add_dummy_prefix = False
    return model.SerializeToString()


def _bytes_of(processor, id: int) -> bytes:
    piece: str = processor.IdToPiece(id)
    if processor.IsControl(id):
        return b""
    if processor.IsUnknown(id):
        return "\ufffd".encode()
    if processor.IsByte(id):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(SPACE, " ").encode()


def chunks(text: str, size: int) -> Iterator[str]:
    """Consecutive parts of at least `size` characters, each but the first opening with a run of newlines."""
    start = 0
    while len(text) - start > size:
        cut = text.find("\n", start + size)
        while cut > 0 and text[cut - 1] in "\n\r":
            cut = text.find("\n", cut + 1)
        if cut < 0:
            break
        yield text[start:cut]
        start = cut
    if start < len(text):
        yield text[start:]


def learn(texts: Iterable[str], config: TokenizerConfig) -> bytes:
    """A model learned from `texts`, the same for the same texts."""
    import sentencepiece

    # SentencePiece skips what holds its own marks or a NUL; without them the rest of the text still counts.
    marks = str.maketrans(dict.fromkeys((SPACE, "\u2585", "\x00"), " "))
    sentences = (chunk for text in texts for chunk in chunks(text.translate(marks), 2_000))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=model,
            model_type=config.kind,
            vocab_size=config.vocab,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            byte_fallback=True,
            character_coverage=0.9995,
            split_by_unicode_script=False,
            split_digits=True,
            user_defined_symbols=list(WHITE_SPACE),
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            max_sentence_length=1 << 30,
            num_threads=16,  # fixed: the number of threads decides the order of sums, hence the model
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise _explained(str(error), config) from error
    return model.getvalue()


def _explained(message: str, config: TokenizerConfig) -> DataError:
    if found := re.search(r"Vocabulary size too high \(\d+\)\. Please set it to a value <= (\d+)", message):
        return DataError(
            f"data.tokenizer.vocab={config.vocab} is more than the training text allows: "
            f"set it to {found[1]} or less, or give more text"
        )
    if found := re.search(r"smaller than required_chars\. *\d+ vs (\d+)", message):
        return DataError(
            f"data.tokenizer.vocab={config.vocab} is less than its single characters need: "
            f"set it to more than {found[1]}"
        )
    return DataError(f"the tokenizer could not be learned from the training text: {message}")

"""The tokenizer loses nothing, whatever the text."""

import io
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data import tokenizer as module
from jaxlm.data.config import DataError, TokenizerConfig
from jaxlm.data.tokenizer import Tokenizer

NASTY = [
    "",
    " ",
    "   \n \n\t\t \n\n\n\n\r\n\r",
    "\u2581",
    "\u2581\u2581 \u2581a \u2581",
    "\u2585",
    "\x00",
    "a\x00\x00b\x01\x1f\x7f",
    "<s></s><unk><pad><0x0A><0x41>",
    "\u2028\u0085\x1c\ufeff\ufffe\uffff\ufffd",
    "\uff21\ufb01 e\u0301 \u00e9 \u1e9e \u0130",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0010ffff \u4e2d\u6587 \u0627\u0644",
    "def f(x):\n        return x\n\n\n    # done\n\tif x:\n\t\tpass\n",
    "a" * 5000,
    " " * 5000,
    "1234567890" * 40,
]
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.sampled_from([*NASTY, " ", "\n", "    ", "x", "self.", "\u2581"]), max_size=12).map("".join),
)


@pytest.mark.parametrize("text", NASTY, ids=[repr(text)[:24] for text in NASTY])
def test_nasty_text_survives(tokenizer: Tokenizer, text: str):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=texts)
@settings(max_examples=300, deadline=None)
def test_every_text_survives(tokenizer: Tokenizer, text: str):
    ids = tokenizer.encode(text)
    assert tokenizer.bytes(ids) == text.encode()
    assert tokenizer.decode(ids) == text


def test_every_text_survives_unigram_too(real_texts: list[str]):
    unigram = Tokenizer.train(real_texts[:2], TokenizerConfig(kind="unigram", vocab=500))
    for text in NASTY:
        assert unigram.decode(unigram.encode(text)) == text


@given(many=st.lists(texts, max_size=5))
@settings(max_examples=50, deadline=None)
def test_texts_encoded_together_are_the_texts_encoded_alone(tokenizer: Tokenizer, many: list[str]):
    for text, ids in zip(many, tokenizer.encode_many(many, threads=2), strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))


def test_cutting_a_long_text_changes_no_token(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    text = "def f(x):\n\n\n    return x  # \u2581 \r\n\r\n\tyes\n" * 40
    whole = tokenizer.encode(text)
    monkeypatch.setattr(module, "CHUNK", 10)
    np.testing.assert_array_equal(tokenizer.encode(text), whole)


def test_decoding_token_by_token_gives_the_same_bytes(tokenizer: Tokenizer):
    text = "\U0001f600 for x in y:\n    pass \u4e2d"
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.bytes([id]) for id in ids) == text.encode()


def test_special_tokens_are_not_text(tokenizer: Tokenizer):
    special = [tokenizer.bos, tokenizer.eos, tokenizer.pad]
    assert len(set(special)) == 3
    assert tokenizer.bytes(special) == b""
    assert not set(special) & set(tokenizer.encode("<s></s><pad>").tolist())


def test_indentation_is_cheap(tokenizer: Tokenizer):
    assert len(tokenizer.encode("\n            ")) == 1
    assert len(tokenizer.encode("\n\n")) == 1


def test_the_same_text_gives_the_same_model(real_texts: list[str]):
    config = TokenizerConfig(vocab=500)
    assert Tokenizer.train(real_texts[:2], config).digest == Tokenizer.train(real_texts[:2], config).digest


def test_a_model_comes_back_from_its_file(tokenizer: Tokenizer, tokenizer_file: str):
    loaded = Tokenizer.load(tokenizer_file)
    assert (loaded.digest, loaded.vocab, loaded.pieces) == (tokenizer.digest, 600, tokenizer.pieces)


def test_a_vocabulary_larger_than_the_text_allows_names_the_largest():
    with pytest.raises(DataError, match=r"vocab=4000 is more than the training text allows: set it to \d+ or less"):
        Tokenizer.train(["a small text that repeats itself " * 4], TokenizerConfig(vocab=4000))


def test_a_vocabulary_smaller_than_the_alphabet_names_the_least():
    with pytest.raises(DataError, match=r"vocab=400 is less than .* set it to more than \d+"):
        Tokenizer.train(["".join(chr(0x4E00 + i) for i in range(2000))], TokenizerConfig(vocab=400))


def test_what_is_not_a_model_is_named(tmp_path):
    (tmp_path / "broken.model").write_bytes(b"no model")
    with pytest.raises(DataError, match=r"broken\.model is not a SentencePiece model"):
        Tokenizer.load(tmp_path / "broken.model")
    with pytest.raises(DataError, match=r"absent\.model cannot be read: No such file"):
        Tokenizer.load(tmp_path / "absent.model")


def test_a_model_that_normalises_is_refused(real_texts: list[str]):
    import sentencepiece

    for options, why in [
        ({"byte_fallback": True}, "changes the text"),
        ({"normalization_rule_name": "identity"}, "no byte fallback"),
    ]:
        model, lines = io.BytesIO(), iter(real_texts[0].splitlines())
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            vocab_size=600,
            model_type="bpe",
            minloglevel=2,
            **options,
        )
        with pytest.raises(DataError, match=why):
            Tokenizer(model.getvalue())


def trained(texts: list[str], **options) -> bytes:
    """A SentencePiece model with options that are not ours."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts[0].splitlines()),
        model_writer=model,
        vocab_size=600,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def test_a_model_that_puts_a_space_before_a_text_is_used_without_it(real_texts: list[str]):
    """As the model of Llama 2 does; elsewhere than at the beginning its tokens are the original ones."""
    import sentencepiece

    model = trained(real_texts, add_dummy_prefix=True)
    tokenizer, original = Tokenizer(model), sentencepiece.SentencePieceProcessor()
    original.LoadFromSerializedProto(model)
    assert tokenizer.model == model
    for text in [*NASTY, "word", " word"]:
        assert tokenizer.bytes(tokenizer.encode(text)) == text.encode()
    text = real_texts[1][:20_000]
    assert original.encode(text) == tokenizer.encode(" " + text).tolist()


def test_a_model_whose_pieces_span_lines_is_not_cut_at_them(real_texts: list[str], monkeypatch: pytest.MonkeyPatch):
    tokenizer = Tokenizer(trained(real_texts, add_dummy_prefix=False, user_defined_symbols=[":\n"]))
    text = "def f(x):\n    return x\n\n" * 40
    whole = tokenizer.encode(text)
    monkeypatch.setattr(module, "CHUNK", 10)
    np.testing.assert_array_equal(tokenizer.encode(text), whole)
    assert b":\n" in [tokenizer.pieces[id] for id in whole]


def test_a_lone_surrogate_is_refused(tokenizer: Tokenizer):
    with pytest.raises(DataError, match="lone surrogate"):
        tokenizer.encode("a\ud800b")


def test_importing_the_data_room_imports_nothing_heavy():
    code = (
        "import sys, jaxlm.data.prepare, jaxlm.data.loader, jaxlm.data.show;"
        "heavy = {'jax', 'grain', 'sentencepiece', 'tensorflow', 'tqdm', 'pyarrow', 'fsspec', 'zstandard',"
        "'tokenizers', 'tensorflow_datasets', 'array_record'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

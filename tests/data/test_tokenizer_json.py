"""A tokenizer.json loses nothing either: byte-level, or SentencePiece-like, as GPT-2, Llama 2 and Llama 3 have."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from jaxlm.data.config import DataConfig, DataError, TokenizerConfig
from jaxlm.data.corpus import token_type
from jaxlm.data.prepare import prepare, prepare_text
from jaxlm.data.tokenizer import Tokenizer
from tests.data.conftest import TEXTS as WHOLE
from tests.data.test_tokenizer import NASTY, texts

TEXTS = [text[:12_000] for text in WHOLE]
REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPELLED = [
    "<|endoftext|>",
    "a<s>b</s> c",
    "<|begin_of_text|>x<|end_of_text|>",
    "<unk><pad>",
    "</s>",
    " </s> ",
    "<0x41>",
]


def byte_level(specials: list[str], **changes: object) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    for name, value in changes.items():
        setattr(made, name, value)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def gpt2() -> str:
    return byte_level(["<|endoftext|>"], pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)).to_str()


def llama3() -> str:
    split = pre_tokenizers.Split(tokenizers.Regex(REGEX), "isolated")
    steps = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    spec = json.loads(byte_level(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"], pre_tokenizer=steps).to_str())
    spec["model"]["ignore_merges"] = True
    return json.dumps(spec)


def neox() -> str:
    made = byte_level(["<|endoftext|>", "<|padding|>"], normalizer=normalizers.NFC())
    made.add_tokens([tokenizers.AddedToken(" " * n, normalized=True) for n in (2, 4, 8)])
    return made.to_str()


def byte_pieces() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]


def llama2() -> str:
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    specials = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    made.train_from_iterator((word for text in TEXTS for word in text.split()), trainer)
    spec = json.loads(made.to_str())
    for piece in byte_pieces():
        spec["model"]["vocab"][piece] = len(spec["model"]["vocab"])
    return json.dumps(spec)


def unigram() -> str:
    import sentencepiece

    learned = sentencepiece.SentencePieceProcessor()
    learned.LoadFromSerializedProto(Tokenizer.train(TEXTS[:2], TokenizerConfig(kind="unigram", vocab=500)).model)
    vocabulary = [(learned.IdToPiece(id), learned.GetScore(id)) for id in range(learned.vocab_size())]
    made = tokenizers.Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.add_special_tokens(["<unk>", "<s>", "</s>", "<pad>"])
    return made.to_str()


MAKERS: dict[str, Callable[[], str]] = {each.__name__: each for each in (gpt2, llama3, neox, llama2, unigram)}
BYTE_LEVEL = ["gpt2", "llama3", "neox"]
_made: dict[str, str] = {}


def content(kind: str) -> str:
    """The tokenizer.json of a kind, made once."""
    return _made.setdefault(kind, MAKERS[kind]()) if kind not in _made else _made[kind]


@pytest.fixture(scope="module", params=list(MAKERS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def loaded(kind: str) -> Tokenizer:
    return Tokenizer(content(kind).encode())


def test_nasty_text_and_spelled_special_tokens_survive(loaded: Tokenizer):
    special = [loaded.bos, loaded.eos]
    for text in [*NASTY, *SPELLED]:
        ids = loaded.encode(text)
        assert loaded.bytes(ids) == text.encode()
        assert loaded.decode(ids) == text
        assert not set(special) & set(ids.tolist())


@given(text=st.one_of(texts, st.lists(st.sampled_from([*SPELLED, " ", "x", "\n"]), max_size=8).map("".join)))
@settings(max_examples=60, deadline=None)
def test_every_text_survives(loaded: Tokenizer, text: str):
    ids = loaded.encode(text)
    assert ids.dtype == np.int32
    assert loaded.bytes(ids) == text.encode()


def test_texts_encoded_together_are_the_texts_encoded_alone(loaded: Tokenizer):
    many = [*NASTY, *SPELLED, *TEXTS]
    for text, ids in zip(many, loaded.encode_many(many, threads=2), strict=True):
        np.testing.assert_array_equal(ids, loaded.encode(text))


def test_the_tokens_are_those_of_the_original(kind: str, loaded: Tokenizer):
    original = tokenizers.Tokenizer.from_str(content(kind))
    for text in TEXTS:
        text = "\n" + text  # behind a newline nobody puts a space before the first word
        ids, prefix = original.encode(text, add_special_tokens=False).ids, loaded.encode(" ").tolist()
        if kind in ("llama2", "unigram", "gpt2"):
            assert ids[: len(prefix)] == prefix
            ids = ids[len(prefix) :]
        assert ids == loaded.encode(text).tolist()


def test_the_pieces_are_the_bytes_that_the_original_decodes_to(loaded: Tokenizer, kind: str):
    original = tokenizers.Tokenizer.from_str(content(kind))
    assert loaded.vocab == original.get_vocab_size()
    special = {token["id"] for token in json.loads(content(kind))["added_tokens"] if token["special"]}
    assert {id for id, piece in enumerate(loaded.pieces) if piece == b""} == special
    if kind in BYTE_LEVEL:
        for id, piece in enumerate(loaded.pieces):
            if piece.decode("utf-8", "ignore").encode() == piece and piece:
                assert original.decode([id]) == piece.decode()


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("gpt2", ("<|endoftext|>",) * 3),
        ("llama3", ("<|begin_of_text|>", "<|end_of_text|>", "<|end_of_text|>")),
        ("neox", ("<|endoftext|>", "<|endoftext|>", "<|padding|>")),
        ("llama2", ("<s>", "</s>", "</s>")),
        ("unigram", ("<s>", "</s>", "<pad>")),
    ],
)
def test_begin_end_and_padding_come_from_the_special_tokens(kind: str, names: tuple[str, str, str]):
    tokenizer, ids = Tokenizer(content(kind).encode()), json.loads(content(kind))["added_tokens"]
    ids = {token["content"]: token["id"] for token in ids}
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == tuple(ids[name] for name in names)
    assert tokenizer.bytes([tokenizer.bos, tokenizer.eos]) == b""


def test_an_added_token_that_swallows_white_space_gives_it_back():
    made = tokenizers.Tokenizer.from_str(content("gpt2"))
    made.add_tokens([tokenizers.AddedToken("<mark>", lstrip=True, rstrip=True)])
    tokenizer = Tokenizer(made.to_str().encode())
    assert tokenizer.bytes(tokenizer.encode("a  <mark>  b")) == b"a  <mark>  b"
    assert b"<mark>" in tokenizer.pieces


def test_truncation_padding_dropout_and_templates_are_switched_off():
    spec = json.loads(content("gpt2"))
    spec["model"]["dropout"] = 0.5
    noisy = tokenizers.Tokenizer.from_str(json.dumps(spec))
    noisy.enable_truncation(4)
    noisy.enable_padding(length=4)
    noisy.post_processor = tokenizers.processors.TemplateProcessing(
        "<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer, plain = Tokenizer(noisy.to_str().encode()), Tokenizer(content("gpt2").encode())
    for text in ("", "x", TEXTS[0][:2000]):
        np.testing.assert_array_equal(tokenizer.encode(text), plain.encode(text))


def test_a_corpus_is_prepared_and_opened_with_a_tokenizer_json(config: DataConfig, folder: Path, tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    path.write_text(content("llama3"))
    corpus = prepare(replace(config, tokenizer=TokenizerConfig(path=str(path))))
    stream = corpus.split("valid")
    written = sorted(Path(name).read_bytes() for name in corpus.report.held_out_files)
    assert sorted(corpus.tokenizer.bytes(document) for document in stream.each_document()) == written
    assert corpus.tokenizer.model == path.read_bytes()
    assert token_type(corpus.tokenizer) == np.uint16
    model_of_a_run = tmp_path / "tokenizer.model"  # the name that every run uses; the content says what it is
    model_of_a_run.write_bytes(corpus.tokenizer.model)
    other = prepare_text(str(folder / "01.txt"), model_of_a_run, config)
    assert other.tokenizer.digest == corpus.tokenizer.digest


def changed(kind: str, change: Callable[[dict], object]) -> bytes:
    spec = json.loads(content(kind))
    change(spec)
    return json.dumps(spec).encode()


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: b"{", r"T\.json is not a tokenizer\.json: Expecting"),
        (lambda: b'{"hidden_size": 8}', r"T\.json is not a tokenizer\.json: 'model'"),
        (lambda: changed("llama2", lambda spec: spec["model"].update(byte_fallback=False)), "neither all 256 bytes"),
        (lambda: changed("llama2", lambda spec: spec["model"]["vocab"].pop("<0x7F>")), "neither all 256 bytes"),
        (lambda: changed("gpt2", lambda spec: spec.update(normalizer={"type": "Lowercase"})), "changes the text"),
        (lambda: changed("gpt2", lambda spec: spec.update(normalizer={"type": "NFKC"})), "changes the text it reads"),
        (lambda: changed("gpt2", lambda spec: spec.update(added_tokens=[])), r"no special token .*; it has none"),
    ],
    ids=["cut", "another json", "no fallback", "a byte missing", "lowercase", "nfkc", "no ends"],
)  # fmt: skip
def test_what_cannot_be_lossless_is_refused(model: Callable[[], bytes], why: str):
    with pytest.raises(DataError, match=why):
        Tokenizer(model(), "T.json")


def test_the_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    model = content("gpt2").encode()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"T\.json is a tokenizer\.json, which needs a package: uv sync --extra hf"):
        Tokenizer(model, "T.json")


def test_a_lone_surrogate_is_refused(loaded: Tokenizer):
    with pytest.raises(DataError, match="lone surrogate"):
        loaded.encode("a\ud800b")

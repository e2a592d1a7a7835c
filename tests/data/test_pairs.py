"""Parallel text: pairs come back as they were written, the target alone is learned, and what is wrong is named."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxlm.data.config import DataConfig, DataError, Parallel, TokenizerConfig
from jaxlm.data.corpus import gzip_bits_per_byte
from jaxlm.data.loader import Evaluation, Loader
from jaxlm.data.packing import Truncated, empty_batch, make_rows
from jaxlm.data.prepare import prepare
from jaxlm.data.show import show
from jaxlm.data.sources import Corrupt, Document, find_sources, read
from jaxlm.data.stream import Shard, TokenStream
from tests.data.writers import compressed

PAIRS = [(f"the {n} houses \u2028 of\x0b time", f"die {n} H\u00e4user der\x85 Zeit") for n in range(40)]
BOS, EOS, PAD = 1, 2, 3


def write(folder: Path, name: str, pairs: list[tuple[str, str]], suffix: str = "") -> None:
    """NAME.en and NAME.de."""
    for side, language in enumerate(("en", "de")):
        lines = "".join(pair[side] + "\n" for pair in pairs)
        compressed(folder / f"{name}.{language}{suffix}", lines.encode())


def config(path: Path, **changes) -> DataConfig:
    english = Parallel(source="en", target="de")
    given = DataConfig(path=str(path), parallel=english, mode="truncate", sequence=64, cache=str(path.parent / "cache"))
    return replace(given, **changes)


def items(path: Path, **changes) -> list[Document | Corrupt]:
    chosen = config(path, **changes)
    return [item for source in find_sources(chosen)[0] for item in read(source, chosen.validation_fraction)]


def sides(path: Path, **changes) -> dict[str, list[tuple[str | None, str]]]:
    found: dict[str, list[tuple[str | None, str]]] = {}
    for item in items(path, **changes):
        assert isinstance(item, Document)
        found.setdefault(item.split, []).append((item.prompt, item.text))
    return found


# What comes back


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_folder_as_multi30k_has_it_gives_each_pair_on_its_side(tmp_path: Path, suffix: str):
    write(tmp_path / "m30k", "train", PAIRS, suffix)
    write(tmp_path / "m30k", "val", PAIRS[:3])
    write(tmp_path / "m30k", "test_2016_flickr", PAIRS[3:5])
    (tmp_path / "m30k" / "train.fr").write_text("another language\n")
    (tmp_path / "m30k" / "README.md").write_text("no text")
    assert sides(tmp_path / "m30k") == {"train": PAIRS, "valid": PAIRS[:3], "test": PAIRS[3:5]}
    turned = sides(tmp_path / "m30k", parallel=Parallel(source="de", target="en"))
    assert turned["test"] == [(target, source) for source, target in PAIRS[3:5]]


def table(path: Path, rows: list[tuple[str, ...]]) -> Path:
    return compressed(path, "".join("\t".join(row) + "\r\n" for row in rows).encode())


def test_tables_and_json_lines_give_the_same_pairs(tmp_path: Path):
    plain = table(tmp_path / "a.tsv", PAIRS)
    headed = table(tmp_path / "b.tsv.gz", [("de", "score", "en"), *((target, "1", source) for source, target in PAIRS)])
    rows = [{"en": source, "de": target} for source, target in PAIRS]
    lines = compressed(tmp_path / "c.jsonl.zst", "".join(json.dumps(row) + "\n" for row in rows).encode())
    nested = tmp_path / "d.jsonl"
    nested.write_text("".join(json.dumps({"translation": row}) + "\n" for row in rows))
    for path in (plain, headed, lines, nested):
        assert sides(path, validation_fraction=0.0) == {"train": PAIRS}, path.name
    held_out = sides(plain, validation_fraction=0.3)
    assert 2 < len(held_out["valid"]) < 25
    assert sorted(held_out["train"] + held_out["valid"]) == sorted(PAIRS)


def test_a_folder_of_tables_is_split_by_name(tmp_path: Path):
    for name, pairs in {"train": PAIRS, "test": PAIRS[:2]}.items():
        table(tmp_path / "tables" / f"{name}.tsv", pairs)
    assert sides(tmp_path / "tables") == {"train": PAIRS, "test": PAIRS[:2]}


# What is wrong


def test_line_counts_that_disagree_are_named_with_both(tmp_path: Path):
    write(tmp_path / "text", "train", PAIRS)
    with (tmp_path / "text" / "train.de").open("a") as file:
        file.write("eine Zeile zuviel\nund noch eine")
    with pytest.raises(DataError, match=r"train\.en has 40 lines and .*train\.de 42: line n"):
        items(tmp_path / "text")
    write(tmp_path / "text", "train", PAIRS)
    (tmp_path / "text" / "train.de").write_text("nur eine\n")
    with pytest.raises(DataError, match=r"train\.en has 40 lines and .*train\.de 1:"):
        prepare(config(tmp_path / "text", tokenizer=TokenizerConfig(vocab=340)))


def test_empty_lines_are_reported_with_their_place_and_left_out(tmp_path: Path):
    write(tmp_path / "text", "train", [("a", "b"), ("", "c"), ("d", " "), *PAIRS])
    found = items(tmp_path / "text", validation_fraction=0.0)
    wrong = {Path(item.where).name: item.why for item in found if isinstance(item, Corrupt)}
    assert wrong == {"train.en:2": "the en side is empty", "train.de:3": "the de side is empty"}
    assert [item.text for item in found if isinstance(item, Document)] == ["b", *(target for _, target in PAIRS)]
    with pytest.raises(DataError, match=r"2 of 43 documents are corrupt.*train\.en:2: the en side is empty"):
        prepare(config(tmp_path / "text", validation_fraction=0.0, tokenizer=TokenizerConfig(vocab=340)))


def test_a_line_that_is_no_pair_is_named(tmp_path: Path):
    rows = {"one": "1 columns instead of 2", "a\tb\tc": "3 columns instead of 2", "": "the line is empty"}
    path = compressed(tmp_path / "a.tsv", "".join(f"{row}\n" for row in rows).encode())
    assert [item.why for item in items(path) if isinstance(item, Corrupt)] == list(rows.values())
    lines = {
        "{": "not JSON (Expecting property name enclosed in double quotes)",
        "[]": "not a JSON object",
        '{"en": "a"}': "no `de` string",
        '{"en": 1, "fr": "b"}': "no `en` and no `de` string",
        '{"en": "a", "de": "\\ud800"}': "`de` holds a lone surrogate, which has no UTF-8 form",
    }
    path = compressed(tmp_path / "b.jsonl", "".join(f"{line}\n" for line in lines).encode())
    assert [item.why for item in items(path) if isinstance(item, Corrupt)] == list(lines.values())
    path = compressed(tmp_path / "c.tsv", b"a\tb\xff\n")
    assert [item.why for item in items(path) if isinstance(item, Corrupt)] == ["not UTF-8 (byte 0xff)"]


def test_a_folder_that_does_not_fit_is_told_what_would(tmp_path: Path):
    folder = tmp_path / "text"
    folder.mkdir()

    def said(path: Path = folder, **changes) -> str:
        with pytest.raises(DataError) as refused:
            items(path, **changes)
        return str(refused.value)

    assert "holds no pairs, but nothing; give a folder with files such as train.en and train.de" in said()
    (folder / "train.en").write_text("a\n")
    assert "holds train.en and no train.de" in said()
    write(folder, "train", PAIRS)
    write(folder, "train", PAIRS, ".gz")
    assert "the same text twice: train.en and train.en.gz" in said()
    for path in folder.glob("*.gz"):
        path.unlink()
    assert "holds no pairs, but train.de, train.en" in said(parallel=Parallel(source="fr", target="cs"))
    write(folder, "test", PAIRS)
    write(folder, "europarl", PAIRS)
    assert "europarl.en may be for training or for testing; rename it" in said()
    assert "does not exist" in said(path=tmp_path / "gone")
    assert "is no file of pairs" in said(path=folder / "train.en")
    with pytest.raises(DataError, match=r"data\.parallel needs data\.mode=truncate"):
        config(folder, mode="pack")
    with pytest.raises(DataError, match="must be two names"):
        Parallel(source="en", target="en")


# What is learned


def test_a_row_of_a_pair_by_eye():
    stream = TokenStream.of([[BOS, 7, 8, BOS, 9, EOS], [BOS, BOS, 5, EOS], [BOS, 4, 4, 4, 4, 4, BOS, 6, EOS]], pad=PAD,
                            separator=BOS)  # fmt: skip
    rows = Truncated(stream, 6)
    batch = empty_batch(3, 6, PAD)
    for row in range(3):
        rows.fill(batch, row, row)
    assert batch["tokens"].tolist() == [[1, 7, 8, 1, 9, 3], [1, 1, 5, 3, 3, 3], [1, 4, 4, 4, 4, 4]]
    assert batch["targets"].tolist() == [[7, 8, 1, 9, 2, 3], [1, 5, 2, 3, 3, 3], [4, 4, 4, 4, 4, 1]]
    assert batch["weights"].tolist() == [[0, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    assert (stream.targets, stream.longest, stream.longer(6)) == (6, 9, 1)
    with pytest.raises(ValueError, match="prompts need the mode truncate"):
        make_rows(stream, 6, "pack")
    with pytest.raises(DataError, match=r"data\.sequence=6 .* 9 tokens; raise it to 8"):
        Evaluation(stream, 2, 6)


@pytest.mark.parametrize("begin", [BOS, EOS])
def test_targets_are_counted_over_shards_also_where_begin_and_end_are_one_token(begin: int):
    docs = [[[begin, 7, begin, 9, 9, EOS]], [[begin, begin, EOS], [begin, 7, 8, begin, 9, EOS]]]
    shards: list[Shard] = [TokenStream.of(each).shards[0] for each in docs]
    stream = TokenStream(shards, pad=PAD, separator=begin)
    assert stream.targets == 3 + 1 + 2
    assert [stream.prompt(document) for document in stream.each_document()] == [2, 1, 3]


def test_a_prepared_corpus_of_pairs_learns_targets_alone(tmp_path: Path):
    write(tmp_path / "text", "train", PAIRS)
    write(tmp_path / "text", "test", PAIRS[:5])
    chosen = config(tmp_path / "text", tokenizer=TokenizerConfig(vocab=340), minimum_characters=10_000)
    corpus = prepare(chosen)
    stream, tokenizer = corpus.split("train"), corpus.tokenizer
    assert corpus.report.documents == {"train": 40, "test": 5}
    assert stream.bytes == sum(len(target.encode()) for _, target in PAIRS)
    for document, (source, target) in zip(stream.each_document(), PAIRS, strict=True):
        cut = stream.prompt(document)
        assert tokenizer.decode(document[:cut].tolist()) == source
        assert tokenizer.decode(document[cut:].tolist()) == target
        assert document[cut] == document[0] == tokenizer.bos
    loader = Loader(stream, 4, chosen.sequence, chosen.mode)
    batch = loader.fetch(0)
    counted = zip(batch["targets"], batch["weights"] > 0, strict=True)
    learned = [tokenizer.decode(targets[counts].tolist()) for targets, counts in counted]
    assert learned == [PAIRS[row][1] for row in loader.rows(0)]
    held_out = Evaluation(corpus.held_out, 3, chosen.sequence)
    weights = sum(held_out.fetch(index)["weights"].sum() for index in range(held_out.batches))
    assert weights == held_out.targets == sum(len(tokenizer.encode(target)) + 1 for _, target in PAIRS[:5])
    assert loader.bytes_per_token == pytest.approx(stream.bytes / stream.targets)
    assert 0 < gzip_bits_per_byte(corpus, "test") < 30
    source, target = PAIRS[loader.rows(0)[0]]
    said = show(corpus, loader, 0, characters=200)
    assert f"BOS [{source}] BOS [{target}]".replace("\u2028", "\\u2028").replace("\x0b", "\\x0b").replace(
        "\x85", "\\x85") in said  # fmt: skip
    assert "pairs are longer than a row" not in loader.describe(10)
    assert "40 pairs are longer than a row and cut" in Loader(stream, 4, 8, "truncate").describe(10)


def test_the_cached_tokens_of_other_corpora_stay_theirs(tmp_path: Path):
    """A text that is no pairs is prepared once more only where something about it has changed."""
    text = tmp_path / "text.txt"
    text.write_text("a word and another word\n" * 40)
    chosen = DataConfig(path=str(text), cache=str(tmp_path / "cache"), tokenizer=TokenizerConfig(vocab=340))
    corpus = prepare(chosen)
    assert corpus.separator is None
    assert corpus.split("train").prompt(np.array([BOS, 5, BOS])) == 0
    assert prepare(replace(chosen, mode="truncate")).folder == corpus.folder

"""Preparation: what is read, what is refused, what survives an interruption."""

import dataclasses
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxlm.data.config import DataConfig, DataError, TokenizerConfig
from jaxlm.data.corpus import Corpus, gzip_bits_per_byte, open_corpus
from jaxlm.data.loader import Evaluation, Loader
from jaxlm.data.prepare import cache_folder, prepare, prepare_text
from jaxlm.data.progress import show_progress
from jaxlm.data.show import show
from jaxlm.data.sources import find_sources


def texts(corpus: Corpus, split: str) -> list[str]:
    stream, tokenizer = corpus.split(split), corpus.tokenizer
    for document in stream.each_document():
        assert (document[0], document[-1]) == (tokenizer.bos, tokenizer.eos)
    return [tokenizer.decode(document) for document in stream.each_document()]


def everything(corpus: Corpus) -> list[str]:
    return sorted(text for split in corpus.splits for text in texts(corpus, split))


def write_jsonl(path: Path, count: int, extra: tuple[bytes, ...] = ()) -> None:
    lines = [
        json.dumps({"text": f"document {n} " * 20, "url": f"https://a.example/{n}", "timestamp": ""}).encode()
        for n in range(count)
    ]
    content = b"\n".join([*lines, *extra, b""])
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)


# What is read


def test_a_folder_is_read_whole_and_split_by_file(config: DataConfig, folder: Path):
    (folder / "00.txt").write_text("x" * 127)
    corpus = prepare(config)
    files = {str(path): path.read_text() for path in folder.rglob("*.txt")}
    held_out = corpus.report.held_out_files
    assert sorted(texts(corpus, "valid")) == sorted(files.pop(path) for path in held_out)
    kept = [text for text in files.values() if len(text) >= 128]
    assert sorted(texts(corpus, "train")) == sorted(kept)
    assert corpus.report.dropped == len(files) - len(kept)
    assert corpus.split("train").bytes == sum(len(text.encode()) for text in kept)
    assert corpus.split("train").shards[0].tokens.dtype == np.uint16


def test_short_documents_are_dropped_from_training_only(config: DataConfig, tmp_path: Path):
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "empty.txt").write_text("")
    (tmp_path / "held" / "short.txt").write_text("short \u00e9")
    corpus = prepare(replace(config, minimum_characters=2400, validation=str(tmp_path / "held")))
    assert sorted(texts(corpus, "valid")) == ["", "short \u00e9"]
    assert corpus.held_out.bytes == len("short \u00e9".encode())
    assert corpus.report.dropped + corpus.report.documents["train"] == 12
    assert corpus.report.dropped > 0


def test_jsonl_is_one_document_per_line_plain_and_gzipped(config: DataConfig, tmp_path: Path):
    write_jsonl(tmp_path / "c4" / "a.jsonl", 40)
    plain = prepare(replace(config, path=str(tmp_path / "c4" / "a.jsonl")))
    assert everything(plain) == sorted(f"document {n} " * 20 for n in range(40))
    assert 0 < plain.split("valid").documents < 20
    write_jsonl(tmp_path / "c4" / "b.json.gz", 40)
    packed = prepare(replace(config, path=str(tmp_path / "c4" / "b*.gz")))
    assert texts(packed, "valid") == texts(plain, "valid")  # split by url, wherever the line is


def test_a_single_text_file_gives_its_tail(config: DataConfig, folder: Path):
    path = folder / "01.txt"
    with open(folder / "1.txt.gz", "wb") as file:
        file.write(gzip.compress(path.read_bytes()))
    for each in (path, folder / "1.txt.gz"):
        corpus = prepare(replace(config, path=str(each)))
        head, tail = texts(corpus, "train")[0], texts(corpus, "valid")[0]
        assert head + tail == path.read_text()
        assert 0.05 < len(tail) / len(head + tail) < 0.2 + 1e-9


def test_adding_a_file_moves_no_other_file(config: DataConfig, folder: Path):
    before = {source.name: source.split for source in find_sources(config)[0]}
    (folder / "another.txt").write_text("new")
    after = {source.name: source.split for source in find_sources(config)[0]}
    assert before.items() <= after.items()


def test_a_manifest_gives_the_splits(config: DataConfig, folder: Path):
    rows = ["file,year,split", "01.txt,1,train", "02.txt,2,val", "04.txt,3,test", "05.txt,4,train"]
    (folder / "manifest.csv").write_text("\n".join(rows))
    (folder / "02.txt.gz").write_bytes(gzip.compress((folder / "02.txt").read_bytes()))
    (folder / "02.txt").unlink()
    corpus = prepare(config)
    assert {name: stream.documents for name, stream in corpus.splits.items()} == {
        "train": 2,
        "valid": 1,
        "test": 1,
    }
    assert texts(corpus, "test") == [(folder / "04.txt").read_text()]
    assert corpus.held_out.name == "test"


def test_the_standard_library_is_a_corpus():
    sources, _ = find_sources(DataConfig(validation_fraction=0.05))
    names = {source.name for source in sources}
    assert "argparse.py" in names
    assert not any({"test", "tests", "site-packages"} & set(name.split("/")) for name in names)
    assert sum(source.bytes for source in sources) > 3e6
    assert 0 < sum(source.split == "valid" for source in sources) < len(sources) / 5


def test_a_limit_ends_training_text_and_leaves_held_out_text_whole(config: DataConfig):
    whole, limited = prepare(config), prepare(replace(config, limit_bytes=3000))
    assert limited.split("train").bytes == 3000
    assert texts(limited, "valid") == texts(whole, "valid")


@pytest.mark.parametrize("limit", [1, 700, 5000])
def test_what_is_held_out_of_jsonl_does_not_depend_on_the_limit(config: DataConfig, tmp_path: Path, limit: int):
    for name in ("a.jsonl", "b.jsonl.gz"):
        write_jsonl(tmp_path / "c4" / name, 40 if name == "a.jsonl" else 60)
    config = replace(config, path=str(tmp_path / "c4"))
    whole, limited = prepare(config), prepare(replace(config, limit_bytes=max(limit, 300)), shard_bytes=900)
    assert texts(limited, "valid") == texts(whole, "valid")
    assert limited.split("train").bytes == max(limit, 300)
    beyond = whole.split("train").documents - limited.split("train").documents
    assert limited.report.beyond_limit == beyond > 0
    assert f"read for held-out documents beyond data.limit_bytes: {beyond} documents" in limited.report.lines()


def test_with_a_held_out_text_given_nothing_is_read_beyond_the_limit(config: DataConfig, folder: Path, tmp_path: Path):
    write_jsonl(tmp_path / "c4" / "a.jsonl", 40, (b"corrupt",) * 9)
    given = replace(config, path=str(tmp_path / "c4"), validation=str(folder / "01.txt"), limit_bytes=700)
    report = prepare(given).report
    assert (report.beyond_limit, report.corrupt, report.documents["train"]) == (0, 0, 4)


def test_binary_files_are_left_out_and_said(config: DataConfig, folder: Path):
    (folder / "weights.bin").write_bytes(b"\x89\x00\x01" * 100)
    (folder / ".hidden").write_bytes(b"\xff\xff")
    report = prepare(config).report
    assert report.binary_files == (str(folder / "weights.bin"),)
    assert any("binary" in line for line in report.lines())


def test_other_text_is_prepared_whole_with_the_tokenizer_of_a_run(config: DataConfig, folder: Path, tokenizer_file):
    corpus = prepare_text(str(folder / "01.txt"), tokenizer_file, config)
    assert everything(corpus) == [(folder / "01.txt").read_text()]
    assert corpus.held_out.name == "text"


def test_the_tokenizer_is_learned_from_training_text_only(config: DataConfig, folder: Path):
    held_out = next(source for source in find_sources(config)[0] if source.split == "valid")
    learn = replace(config, tokenizer=TokenizerConfig(vocab=400, sample_bytes=100_000))
    first = prepare(learn).tokenizer
    Path(held_out.path).write_text("\u4e2d\u6587" * 500)
    assert prepare(learn).tokenizer.digest == first.digest


# What is refused


def test_a_missing_path_is_named(config: DataConfig, tmp_path: Path):
    with pytest.raises(DataError, match=r"data\.path=/no/such/folder does not exist"):
        prepare(replace(config, path="/no/such/folder"))
    with pytest.raises(DataError, match=r"data\.validation=nothing does not exist"):
        prepare(replace(config, validation="nothing"))
    with pytest.raises(DataError, match=r"data\.path=.*\*\.md matches no file"):
        prepare(replace(config, path=str(tmp_path / "*.md")))


def test_an_empty_corpus_says_why(config: DataConfig, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    empty = replace(config, path=str(tmp_path / "empty"))
    with pytest.raises(DataError, match="is an empty folder"):
        prepare(empty)
    (tmp_path / "empty" / "a.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="holds no text: 1 files without a document"):
        prepare(empty)
    (tmp_path / "empty" / "b.txt").write_text("short")
    (tmp_path / "empty" / "c.txt").write_text("also short")
    for tokenizer in (config.tokenizer, TokenizerConfig(vocab=400)):
        with pytest.raises(DataError, match=r"all shorter than data\.minimum_characters=128"):
            prepare(replace(empty, tokenizer=tokenizer))


def test_nothing_held_out_is_refused(config: DataConfig, tmp_path: Path):
    write_jsonl(tmp_path / "c4" / "a.jsonl", 1)
    with pytest.raises(DataError, match=r"gives nothing to hold out: 1 documents at data.validation_fraction=1e-06"):
        prepare(replace(config, path=str(tmp_path / "c4"), validation_fraction=1e-6))
    corpus = prepare(replace(config, path=str(tmp_path / "c4"), validation_fraction=0.0))
    with pytest.raises(DataError, match="nothing is held out"):
        _ = corpus.held_out
    with pytest.raises(DataError, match="no valid split: it has train"):
        corpus.split("valid")


@pytest.mark.parametrize("damage", ["cut", "not gzip", "flipped"])
def test_an_unreadable_gzip_is_named(config: DataConfig, folder: Path, damage: str):
    content = gzip.compress(os.urandom(5000).hex().encode())
    damaged = {
        "cut": content[:-500],
        "not gzip": b"plain text",
        "flipped": content[:99] + b"!!!" + content[102:],
    }
    (folder / "bad.txt.gz").write_bytes(damaged[damage])
    with pytest.raises(DataError, match=r"bad\.txt\.gz is not a readable gzip file"):
        prepare(config)


def test_few_corrupt_documents_are_counted_and_many_are_fatal(config: DataConfig, tmp_path: Path):
    bad = (
        b'{"text": "cut',
        b'{"no": "text"}',
        b'["text"]',
        b'{"text": "\\ud800"}',
        b'{"text": "\xff"}',
        b'{"text": 3}',
        b"[" * 100_000,
    )
    write_jsonl(tmp_path / "c4" / "a.jsonl", 60, bad)
    config = replace(config, path=str(tmp_path / "c4"))
    with pytest.raises(DataError, match=r"7 of 67 documents are corrupt, more than data.corrupt_share=0.01: .*:61"):
        prepare(config)
    report = prepare(replace(config, corrupt_share=0.2)).report
    assert report.corrupt == 7
    assert len(report.corrupt_examples) == 7
    assert "a.jsonl:61: not JSON (" in report.corrupt_examples[0]
    assert "not UTF-8 (byte 0xff)" in report.corrupt_examples[4]
    assert report.lines()[-8:] == [
        "left out as corrupt: 7 documents",
        *(f"  {each}" for each in report.corrupt_examples),
    ]
    with pytest.raises(DataError, match="7 of 67"):
        prepare(config)  # also when it has been prepared with more patience before


def test_twenty_corrupt_places_are_named_and_the_others_counted(config: DataConfig, tmp_path: Path):
    write_jsonl(tmp_path / "c4" / "a.jsonl", 40, (b"corrupt",) * 23)
    report = prepare(replace(config, path=str(tmp_path / "c4"), corrupt_share=0.5), shard_bytes=900).report
    assert [each.partition(": ")[0][-2:] for each in report.corrupt_examples] == [str(n) for n in range(41, 61)]
    assert report.lines()[-1] == "  and 3 more"


def test_corrupt_lines_beyond_the_limit_are_weighed_against_all_that_was_read(config: DataConfig, tmp_path: Path):
    write_jsonl(tmp_path / "c4" / "a.jsonl", 400, (b"corrupt",) * 4)
    limited = replace(config, path=str(tmp_path / "c4"), limit_bytes=700, validation_fraction=0.02, corrupt_share=0.01)
    assert prepare(limited).report.corrupt == 4


def test_a_file_that_is_not_utf8_is_named_with_its_line(config: DataConfig, folder: Path):
    (folder / "latin.txt").write_bytes(b"one\ntwo caf\xe9\n")
    with pytest.raises(DataError, match=r"1 of 13 documents are corrupt.*latin\.txt:2: not UTF-8 \(byte 0xe9\)"):
        prepare(config)
    with pytest.raises(DataError, match=r"all text is corrupt: .*latin\.txt:2"):
        prepare(replace(config, path=str(folder / "latin.txt"), tokenizer=TokenizerConfig(vocab=400)))


def test_a_bad_manifest_is_named(config: DataConfig, folder: Path):
    (folder / "manifest.csv").write_text("file,split\n01.txt,training\n")
    with pytest.raises(DataError, match=r"manifest\.csv:2: split 'training' is none of train"):
        prepare(config)
    (folder / "manifest.csv").write_text("file,split\nabsent.txt,train\n")
    with pytest.raises(DataError, match=r"names absent\.txt, but neither"):
        prepare(config)


def test_a_vocabulary_too_large_for_the_corpus_is_refused(config: DataConfig):
    with pytest.raises(DataError, match=r"vocab=30000 is more than the training text allows: set it to \d+ or less"):
        prepare(replace(config, tokenizer=TokenizerConfig(vocab=30_000)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"path": ""}, "data.path is empty"),
        ({"sequence": 1}, "data.sequence=1 must be at least 2"),
        ({"mode": "cut"}, "data.mode='cut' must be pack or truncate"),
        ({"validation_fraction": 1.5}, "data.validation_fraction=1.5"),
        ({"minimum_characters": -1}, "data.minimum_characters=-1"),
        ({"limit_bytes": 0}, "data.limit_bytes=0"),
        ({"corrupt_share": 2}, "data.corrupt_share=2"),
    ],
)
def test_a_value_out_of_range_is_named(values: dict, message: str):
    with pytest.raises(DataError, match=message):
        DataConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "word"}, "kind='word' must be bpe or unigram"),
        ({"vocab": 100}, "vocab=100 must be at least 320"),
        ({"sample_bytes": 0}, "sample_bytes=0 must be at least 1"),
    ],
)
def test_a_tokenizer_value_out_of_range_is_named(values: dict, message: str):
    with pytest.raises(DataError, match=message):
        TokenizerConfig(**values)


# What survives


class Killed(Exception):
    pass


def test_an_interrupted_preparation_goes_on_where_it_was(config: DataConfig, tmp_path: Path):
    whole = prepare(replace(config, cache=str(tmp_path / "uninterrupted")), shard_bytes=2000)
    assert len(whole.split("train").shards) > 4

    for kill_at in (1, 3, 5):
        heard = []

        def kill(stage: str, done: int, total: int, heard=heard, kill_at=kill_at) -> None:
            heard.append(stage)
            if heard.count("encoding") == kill_at:
                raise Killed

        with pytest.raises(Killed):
            prepare(config, kill, shard_bytes=2000)
    (folder,) = cache_folder(config).iterdir()
    with pytest.raises(DataError, match="holds no finished corpus"):
        open_corpus(folder)
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*.train.tokens")}
    assert finished
    resumed = prepare(config, shard_bytes=2000)
    assert resumed.digest == whole.digest
    assert everything(resumed) == everything(whole)
    assert resumed.report == whole.report
    done_before = [path for path in finished if (folder / f"{path.name[:5]}.json").exists()]
    assert all(path.stat().st_mtime_ns == finished[path] for path in done_before[:2])


def test_a_jsonl_file_is_resumed_in_its_middle(config: DataConfig, tmp_path: Path):
    write_jsonl(tmp_path / "c4" / "a.jsonl.gz", 200, (b"corrupt",))
    config = replace(config, path=str(tmp_path / "c4"))
    whole = prepare(replace(config, cache=str(tmp_path / "uninterrupted")), shard_bytes=5000)
    calls = []

    def kill(stage: str, done: int, total: int) -> None:
        calls.append(stage)
        if len(calls) == 6:
            raise Killed

    with pytest.raises(Killed):
        prepare(config, kill, shard_bytes=5000)
    resumed = prepare(config, shard_bytes=5000)
    assert (resumed.digest, resumed.report) == (whole.digest, whole.report)
    assert resumed.report.corrupt == 1


def test_a_damaged_shard_is_prepared_again(config: DataConfig):
    first = prepare(config, shard_bytes=2000)
    before = everything(first)
    shard = first.folder / "00002.train.tokens"
    shard.write_bytes(shard.read_bytes()[:-2])
    (first.folder / "00003.train.tokens.unfinished").write_bytes(b"left by a crash")
    with pytest.raises(DataError, match="holds no finished corpus"):
        open_corpus(first.folder)
    again = prepare(config, shard_bytes=2000)
    assert again.digest == first.digest
    assert everything(again) == before
    assert not list(first.folder.glob("*.unfinished"))


def test_prepared_data_is_found_again_and_changed_data_is_not(config: DataConfig, folder: Path):
    first, stages = prepare(config), []
    again = prepare(replace(config, sequence=32, mode="truncate"), lambda stage, done, total: stages.append(stage))
    assert (again.folder, again.digest, stages) == (first.folder, first.digest, [])
    (folder / "01.txt").write_text("changed " * 100)
    changed = prepare(config)
    assert changed.folder != first.folder
    assert changed.digest != first.digest


def test_the_digest_does_not_depend_on_the_machine(config: DataConfig, folder: Path, tmp_path: Path):
    first = prepare(config)
    shutil.copytree(folder, tmp_path / "elsewhere")
    second = prepare(replace(config, path=str(tmp_path / "elsewhere"), cache=str(tmp_path / "other")))
    assert first.digest == second.digest


def test_two_processes_at_once_prepare_one_corpus(config: DataConfig):
    code = (
        "import sys, json; from jaxlm.data.config import *; from jaxlm.data.prepare import prepare;"
        "values = json.loads(sys.argv[1]); tokenizer = TokenizerConfig(**values.pop('tokenizer'));"
        "print(prepare(DataConfig(**values, tokenizer=tokenizer), shard_bytes=1000).digest)"
    )
    command = [sys.executable, "-c", code, json.dumps(dataclasses.asdict(config))]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    digests = {process.communicate()[0].strip() for process in started}
    assert digests == {prepare(config, shard_bytes=1000).digest}


def test_the_cache_lies_where_the_system_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(DataConfig()) == tmp_path / "jaxlm" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(DataConfig()) == tmp_path / ".cache" / "jaxlm" / "data"
    assert cache_folder(DataConfig(cache="here")) == Path("here")


# What is seen


def test_gzip_counts_the_same_text(config: DataConfig):
    corpus = prepare(config)
    text = "".join(texts(corpus, "valid")).encode()
    bits = gzip_bits_per_byte(corpus)
    assert bits == pytest.approx(8 * len(gzip.compress(text, 9)) / len(text), rel=0.002)
    assert gzip_bits_per_byte(corpus, "train") < 8


def test_evaluation_counts_the_bytes_of_the_files(config: DataConfig):
    corpus = prepare(config)
    evaluation = Evaluation(corpus.held_out, 4, config.sequence)
    assert evaluation.bytes == sum(os.path.getsize(path) for path in corpus.report.held_out_files)
    weights = sum(evaluation.fetch(index)["weights"].sum() for index in range(evaluation.batches))
    assert weights == evaluation.targets == len(corpus.held_out) - corpus.held_out.documents


def test_a_step_can_be_read_by_a_person(config: DataConfig):
    corpus = prepare(config)
    loader = Loader(corpus.split("train"), 4, 128, "pack", seed=0)
    page = show(corpus, loader, 2, rows=3)
    assert page.startswith("step 2: 4 rows x 128 tokens")
    assert "document 1" in page
    assert "(1 more rows)" in page
    assert max(len(line) for line in page.splitlines()) < 170


def test_progress_is_plain_lines_where_there_is_no_terminal():
    out = io.StringIO()
    progress = show_progress(out, every_seconds=0)
    for done in (0, 50, 100, 100):
        progress("encoding", done * 10**6, 10**8)
    lines = out.getvalue().splitlines()
    assert lines[0] == "encoding: 100.0 MB"
    assert lines[-1].startswith("encoding: done in")
    assert any("50%" in line and "s left" in line for line in lines)


def test_progress_is_a_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    progress = show_progress(out)
    for done in (0, 50, 100):
        progress("encoding", done, 100)
    assert "100%" in out.getvalue()


@pytest.mark.skipif("JAXLM_SHARED" not in os.environ, reason="JAXLM_SHARED, the folder of real data, is not set")
def test_the_novels_have_their_published_splits(config: DataConfig):
    novels = os.path.join(os.environ["JAXLM_SHARED"], "data", "english_novels")
    sources, binary = find_sources(replace(config, path=novels))
    counts = {split: sum(source.split == split for source in sources) for split in ("train", "valid", "test")}
    assert (counts, binary) == ({"train": 82, "valid": 3, "test": 2}, [])
    corpus = prepare(replace(config, path=novels, limit_bytes=500_000))
    assert corpus.held_out.name == "test"
    assert corpus.split("train").bytes == pytest.approx(500_000, abs=3)
    text = [gzip.decompress(Path(source.path).read_bytes()).decode() for source in sources if source.split == "test"]
    assert texts(corpus, "test") == text

"""Every format gives back the documents that were written, on the side where they belong, and names what is broken."""

import gc
import gzip
import json
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxlm.data.config import DataConfig, DataError
from jaxlm.data.prepare import prepare
from jaxlm.data.sources import TRAIN, Corrupt, Document, find_sources, read
from tests.data import writers

TEXTS = [f"document {number} \u00e9\u2581\x00 " * 3 for number in range(300)]
URLS = [f"https://a.example/{number}" for number in range(300)]


def items(
    path: Path | str, validation_fraction: float = 0.0, validation: str | None = None
) -> list[Document | Corrupt]:
    config = DataConfig(path=str(path), validation=validation, validation_fraction=validation_fraction)
    return [item for source in find_sources(config)[0] for item in read(source, validation_fraction)]


def texts(path: Path | str) -> list[str]:
    found = items(path)
    assert not [item for item in found if isinstance(item, Corrupt)]
    return [item.text for item in found if isinstance(item, Document)]


def sides(path: Path | str, validation_fraction: float = 0.0, validation: str | None = None) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for item in items(path, validation_fraction, validation):
        assert isinstance(item, Document)
        found.setdefault(item.split, []).append(item.text)
    return found


def write(path: Path, documents: list[str], urls: list[str] | None = None) -> Path:
    """The documents in the format that the name says."""
    if ".jsonl" in path.name:
        return writers.jsonl(path, documents, urls)
    content = writers.table(documents, urls)
    if path.suffix == ".parquet":
        return writers.write_parquet(path, content, row_group_size=50)
    return writers.saved(path, [content])


MANY = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "saved"]


# What comes back


@given(documents=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=20))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_list_of_documents_comes_back_from_every_format(tmp_path_factory, documents: list[str]):
    folder = tmp_path_factory.mktemp("formats")
    for name in MANY:
        assert texts(write(folder / name, documents)) == documents, name


@pytest.mark.parametrize("name", MANY)
def test_documents_held_out_by_url_are_the_same_in_every_format(tmp_path: Path, name: str):
    reference = sides(write(tmp_path / "b.jsonl", TEXTS, URLS), validation_fraction=0.2)
    assert sides(write(tmp_path / name, TEXTS, URLS), validation_fraction=0.2) == reference
    assert 30 < len(reference["valid"]) < 90


@pytest.mark.parametrize("name", MANY)
def test_progress_grows_to_the_size_of_the_file(tmp_path: Path, name: str):
    (source,), _ = find_sources(DataConfig(path=str(write(tmp_path / name, TEXTS)), validation_fraction=0.0))
    heard: list[int] = []
    assert sum(1 for _ in read(source, 0.0, heard.append)) == len(TEXTS)
    assert heard == sorted(heard)
    assert 0.9 * source.bytes <= heard[-1] <= source.bytes


@pytest.mark.parametrize("name", ["one.txt", "one.txt.gz", "one.txt.zst"])
def test_a_text_file_is_one_document_whatever_its_compression(tmp_path: Path, name: str):
    text = "one line\nanother \u4e2d\r\n" * 9_000
    path = writers.compressed(tmp_path / name, text.encode())
    assert texts(path) == [text]
    head_and_tail = sides(path, validation_fraction=0.2)
    assert head_and_tail["train"][0] + head_and_tail["valid"][0] == text


def test_a_zstd_file_of_many_frames_and_a_wide_window_is_read_to_its_end(tmp_path: Path):
    wide = zstandard.ZstdCompressionParameters.from_level(3, window_log=28, enable_ldm=True)
    frames = [zstandard.ZstdCompressor(compression_params=wide).compress(f"part {n}\n".encode()) for n in range(3)]
    (tmp_path / "a.txt.zst").write_bytes(b"".join([frames[0], b"\x50\x2a\x4d\x18\x04\0\0\0skip", *frames[1:]]))
    assert texts(tmp_path / "a.txt.zst") == ["part 0\npart 1\npart 2\n"]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_every_kind_of_string_column_is_text(tmp_path: Path, kind: pa.DataType):
    column = pa.array(["a\x00", "\u4e2d"]).cast(kind)
    assert texts(writers.write_parquet(tmp_path / "a.parquet", pa.table({"text": column}))) == ["a\x00", "\u4e2d"]


def test_the_arrow_file_format_is_read_as_well_as_the_stream_format(tmp_path: Path):
    content = writers.table(TEXTS)
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, content.schema) as writer:
        writer.write_table(content)
    assert texts(tmp_path / "a.arrow") == TEXTS


@pytest.mark.parametrize("name", ["a.parquet", "saved"])
def test_a_table_is_never_whole_in_memory(tmp_path: Path, name: str):
    content = writers.table([f"{number:05d}" * 500 for number in range(8_000)])
    if name == "a.parquet":
        writers.write_parquet(tmp_path / name, content, compression="none", use_dictionary=False)
    else:
        writers.saved(tmp_path / name, [content], rows_per_batch=100)
    del content
    gc.collect()
    (source,), _ = find_sources(DataConfig(path=str(tmp_path / name), validation_fraction=0.0))
    before, most = pa.total_allocated_bytes(), 0
    tracemalloc.start()  # Arrow's own buffers, and those that Python reads for it
    for _ in read(source, 0.0):
        most = max(most, pa.total_allocated_bytes() - before)
    most += tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 100_000 < most < source.bytes / 2


# What is held out


def test_the_splits_of_a_dataset_dict_are_kept(tmp_path: Path):
    folder = writers.saved_dict(
        tmp_path / "d",
        train=writers.table(TEXTS[:9]),
        validation=writers.table(TEXTS[9:11]),
        test=writers.table(TEXTS[11:12]),
    )
    assert sides(folder, validation_fraction=0.5) == {"train": TEXTS[:9], "valid": TEXTS[9:11], "test": TEXTS[11:12]}


def test_a_dataset_dict_that_holds_nothing_out_is_split_by_document(tmp_path: Path):
    found = sides(writers.saved_dict(tmp_path / "d", train=writers.table(TEXTS)), validation_fraction=0.2)
    assert sorted(found["train"] + found["valid"]) == sorted(TEXTS)


def test_a_split_of_unknown_use_is_not_guessed(tmp_path: Path):
    one = writers.table(TEXTS[:2])
    with pytest.raises(DataError, match=r"splits whose use is not clear from their names \(unsupervised of train, uns"):
        items(writers.saved_dict(tmp_path / "d", train=one, unsupervised=one))


@pytest.mark.parametrize(
    ("training", "held_out", "test"),
    [
        ("data/train-00000-of-00002.parquet", "data/validation-00000-of-00001.parquet", "data/test-0-of-1.parquet"),
        ("default/train/0000.parquet", "default/validation/0000.parquet", "default/test/0000.parquet"),
        ("c4-train.00000-of-01024.jsonl.gz", "c4-validation.00000-of-00008.jsonl.gz", "c4-test.0-of-1.jsonl.gz"),
        ("train/00.jsonl.zst", "val.jsonl.zst", "test.jsonl.zst"),
    ],
    ids=["hub", "converted", "c4", "pile"],
)  # fmt: skip
def test_the_names_of_a_published_data_set_give_its_splits(tmp_path: Path, training: str, held_out: str, test: str):
    write(tmp_path / training, TEXTS[:20])
    write(tmp_path / held_out, TEXTS[20:23])
    write(tmp_path / test, TEXTS[23:24])
    (tmp_path / "README.md").write_text("about it")
    (tmp_path / "dataset_infos.json").write_text('{\n"about": "it"\n}')
    wanted = {"train": TEXTS[:20], "valid": TEXTS[20:23], "test": TEXTS[23:24]}
    assert sides(tmp_path, validation_fraction=0.5) == wanted
    only_training = sides(tmp_path / training, validation_fraction=0.5)
    assert sorted(only_training["train"] + only_training["valid"]) == sorted(TEXTS[:20])
    given_apart = sides(tmp_path / training, validation=str(tmp_path / held_out))
    assert given_apart == {"train": TEXTS[:20], "valid": TEXTS[20:23]}


def test_names_that_name_no_training_text_give_no_splits(tmp_path: Path):
    write(tmp_path / "test-a.jsonl", TEXTS[:150])
    write(tmp_path / "test-b.jsonl", TEXTS[150:])
    assert set(sides(tmp_path, validation_fraction=0.2)) == {"train", "valid"}


def test_held_out_text_is_never_trained_on_when_validation_is_given(tmp_path: Path):
    for name, part in (("train", TEXTS[:9]), ("validation", TEXTS[9:11]), ("test", TEXTS[11:12])):
        write(tmp_path / "d" / f"{name}-00000-of-00001.parquet", part)
    write(tmp_path / "other.jsonl", ["other"])
    found = sides(tmp_path / "d", validation=str(tmp_path / "other.jsonl"))
    assert found == {"train": TEXTS[:9], "valid": ["other"]}
    whole = sides(tmp_path / "other.jsonl", validation=str(tmp_path / "d"))
    assert Counter(whole["valid"]) == Counter(TEXTS[9:12])


# What is broken


@pytest.mark.parametrize("damage", ["cut", "flipped", "plain", "empty", "garbage behind"])
@pytest.mark.parametrize("name", ["bad.txt.zst", "bad.jsonl.zst"])
def test_an_unreadable_zstd_file_is_named(tmp_path: Path, damage: str, name: str):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    content = zstandard.ZstdCompressor(write_checksum=True).compress(lines.encode())  # as the `zstd` command does
    damaged = {
        "cut": content[:-50],
        "flipped": content[:60] + bytes([content[60] ^ 255]) + content[61:],
        "plain": b'{"text": "not compressed"}\n',
        "empty": b"",
        "garbage behind": content + b"no frame",
    }
    (tmp_path / name).write_bytes(damaged[damage])
    with pytest.raises(DataError, match=rf"{name} is not a readable zstd file: \w+"):
        items(tmp_path / name)


@pytest.mark.parametrize("damage", ["cut", "plain", "empty"])
@pytest.mark.parametrize(("name", "kind"), [("a.parquet", "Parquet"), ("saved/data-00000-of-00001.arrow", "Arrow")])
def test_an_unreadable_table_is_named(tmp_path: Path, name: str, kind: str, damage: str):
    write(tmp_path / name.split("/")[0], TEXTS)
    content = (tmp_path / name).read_bytes()
    damaged = {"cut": content[: len(content) // 2], "plain": b'{"text": "plain"}\n' * 9, "empty": b""}
    (tmp_path / name).write_bytes(damaged[damage])
    with pytest.raises(DataError, match=rf"{name} is not a readable {kind} file: \w+"):
        items(tmp_path / name)


def test_a_damaged_page_of_a_parquet_file_is_named(tmp_path: Path):
    path = writers.write_parquet(
        tmp_path / "a.parquet", writers.table(TEXTS), write_page_checksum=True, use_dictionary=False, compression="none"
    )
    content = bytearray(path.read_bytes())
    content[content.find(b"document 7")] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet is not a readable Parquet file: .*(CRC|checksum)"):
        items(path)


@pytest.mark.parametrize("name", ["a.parquet", "saved"])
def test_a_table_without_text_lists_its_columns(tmp_path: Path, name: str):
    content = pa.table({"id": [1], "content": ["x"]})
    path = tmp_path / name
    _ = writers.write_parquet(path, content) if name.endswith("parquet") else writers.saved(path, [content])
    with pytest.raises(DataError, match=r"has no column `text`; it has id, content"):
        items(path)
    with pytest.raises(DataError, match=r"b\.parquet: column `text` holds int64, not strings"):
        items(writers.write_parquet(tmp_path / "b.parquet", pa.table({"text": [1]})))


@pytest.mark.parametrize("name", ["a.parquet", "saved"])
def test_a_row_that_is_no_text_is_corrupt_by_file_and_row(tmp_path: Path, name: str):
    content = writers.table(["one", None, "two", b"caf\xe9", *TEXTS[:200], None])
    path = tmp_path / name
    _ = writers.write_parquet(path, content) if name.endswith("parquet") else writers.saved(path, [content])
    found = items(path)
    bad = [item for item in found if isinstance(item, Corrupt)]
    assert [item.text for item in found if isinstance(item, Document)] == ["one", "two", *TEXTS[:200]]
    assert [item.where.rpartition(":")[2] for item in bad] == ["2", "4", "205"]
    assert [item.why for item in bad] == ["no `text` string in this row", "not UTF-8 (byte 0xe9)", bad[0].why]
    assert Path(bad[0].where.rpartition(":")[0]).is_file()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_corrupt_line_is_named_with_file_and_number(tmp_path: Path, suffix: str):
    lines = [b'{"text": "good"}', b'{"text": "cut', b"", b'{"n": ' + b"1" * 5000 + b"}", b'{"text": null}', b'"text"']
    path = writers.compressed(tmp_path / f"a.jsonl{suffix}", b"\n".join(lines))
    found = items(path)
    assert found[0] == Document("good", TRAIN)
    assert [item.where for item in found[1:] if isinstance(item, Corrupt)] == [f"{path}:{n}" for n in (2, 4, 5, 6)]


def test_corrupt_rows_are_counted_by_prepare_and_not_fatal_when_few(config: DataConfig, tmp_path: Path):
    path = writers.write_parquet(
        tmp_path / "a.parquet", writers.table([*[text * 9 for text in TEXTS], None], [*URLS, ""])
    )
    report = prepare(replace(config, path=str(path))).report
    assert report.corrupt == 1
    assert report.corrupt_examples == (f"{path}:301: no `text` string in this row",)
    assert sum(report.documents.values()) == 300
    with pytest.raises(DataError, match="1 of 301 documents are corrupt"):
        prepare(replace(config, path=str(path), corrupt_share=0.0))


def test_a_missing_part_of_a_saved_data_set_is_named(tmp_path: Path):
    folder = writers.saved(tmp_path / "saved", [writers.table(TEXTS[:3])] * 2)
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"state\.json names data-00001-of-00002\.arrow, which is not there"):
        items(folder)
    whole = writers.saved_dict(tmp_path / "d", train=writers.table(TEXTS[:3]))
    (whole / "train" / "state.json").unlink()
    with pytest.raises(DataError, match=r"dataset_dict\.json names train"):
        items(whole)


def test_other_files_of_a_saved_data_set_are_not_read(tmp_path: Path):
    folder = writers.saved(tmp_path / "saved", [writers.table(TEXTS[:3])])
    (folder / "cache-0123.arrow").write_bytes(b"left by map()")
    assert texts(folder) == TEXTS[:3]


def test_gzip_files_cut_by_a_full_disk_are_named(tmp_path: Path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 5000)[:-9])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz is not a readable gzip file"):
        items(tmp_path / "a.jsonl.gz")

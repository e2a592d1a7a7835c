"""What cleaning reads: archives, saved pages, JSON lines; and what it says of damaged ones."""

import gzip
import json
import os
import zlib
from pathlib import Path

import pytest
import zstandard

from jaxlm.data.cleaning.inputs import FILES_PER_BATCH, Input, batches, find_inputs
from jaxlm.data.cleaning.pages import Corrupt, Item, Page, Skipped
from jaxlm.data.config import DataError
from tests.data.web_pages import article, conversion, html, info, record, response, write_archive

OUT = Path("/nowhere")
HTML = "<html><body><p>text</p></body></html>"


def read(path: Path) -> list[Item]:
    (file,), _ = find_inputs(str(path), OUT)
    heard: list[int] = []
    items = list(file.read(heard.append))
    assert heard[-1] == file.bytes
    assert heard == sorted(heard)
    return items


def urls(items: list[Item]) -> list[str]:
    return [item.url for item in items if isinstance(item, Page)]


def corrupt(items: list[Item]) -> list[Corrupt]:
    return [item for item in items if isinstance(item, Corrupt)]


# Archives


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_html_responses_are_pages_and_other_records_are_counted(tmp_path: Path, name: str):
    records = [
        info(),
        record("request", "https://a.example/1", b"GET / HTTP/1.1\r\n\r\n", "application/http; msgtype=request"),
        response("https://a.example/1", HTML, media="text/html; charset=ISO-8859-1"),
        response("https://a.example/2", HTML, status="404 Not Found"),
        response("https://a.example/3", b"\x89PNG", media="image/png"),
        response("https://a.example/4", HTML, media="application/xhtml+xml"),
        record("resource", "https://a.example/5", HTML.encode(), "text/html"),
        record("resource", "dns:a.example", b"1.2.3.4", "text/dns"),
    ]
    items = read(write_archive(tmp_path / name, records))
    assert urls(items) == [f"https://a.example/{n}" for n in (1, 4, 5)]
    assert items[2] == Page("https://a.example/1", "2019-04-25T12:57:54Z", HTML.encode(), "iso-8859-1")
    skipped = [item.why for item in items if isinstance(item, Skipped)]
    assert skipped == ["warcinfo record", "request record", "HTTP status other than 200", "not HTML", "not HTML"]


def test_wet_records_are_pages_of_text(tmp_path: Path):
    path = write_archive(
        tmp_path / "CC-MAIN.warc.wet.gz", [info(), conversion("https://a.example/1", "Text \u00e9.\n")]
    )
    assert read(path)[1:] == [Page("https://a.example/1", "2019-04-25T12:57:54Z", "Text \u00e9.\n")]


def test_transfer_and_content_encodings_are_taken_off(tmp_path: Path):
    body = HTML.encode()
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    packed = gzip.compress(body)
    records = [
        response("https://a.example/1", chunked, extra="Transfer-Encoding: chunked\r\n"),
        response("https://a.example/2", packed, extra="Content-Encoding: gzip\r\n"),
        response("https://a.example/3", zlib.compress(body), extra="Content-Encoding: deflate\r\n"),
        response("https://a.example/4", zlib.compress(body)[2:-4], extra="Content-Encoding: deflate\r\n"),
        response("https://a.example/5", body, extra="Content-Encoding: gzip\r\n"),  # taken off already
        response("https://a.example/6", packed[:-9], extra="Content-Encoding: gzip\r\n"),
        response("https://a.example/7", b"\x0b\x02\x80", extra="Content-Encoding: br\r\n"),
    ]
    path = write_archive(tmp_path / "a.warc", records)
    items = read(path)
    assert [item.content for item in items if isinstance(item, Page)] == [body] * 5
    broken, brotli = corrupt(items)
    assert broken.where == f"{path} at byte {sum(map(len, records[:5])):,}"
    assert "Content-Encoding br cannot be decoded" in brotli.why


@pytest.mark.parametrize("damage", ["flipped", "cut", "garbage between"])
def test_a_damaged_gzip_member_is_named_by_its_offset_and_the_rest_is_read(tmp_path: Path, damage: str):
    members = [gzip.compress(conversion(f"https://a.example/{n}", os.urandom(3000).hex())) for n in range(4)]
    flipped = bytearray(members[1])
    flipped[1000] ^= 0xFF
    members[1] = {"flipped": bytes(flipped), "cut": members[1][:700], "garbage between": b"garbage"}[damage]
    path = tmp_path / "a.warc.wet.gz"
    path.write_bytes(b"".join(members))
    items = read(path)
    assert urls(items) == [f"https://a.example/{n}" for n in (0, 2, 3)]
    (only,) = corrupt(items)
    assert only.where == f"{path} at byte {len(members[0]):,}"
    assert f"{len(members[1]):,} bytes are passed over" in only.why


def test_a_gzip_file_cut_in_its_last_record_says_so(tmp_path: Path):
    path = write_archive(tmp_path / "a.warc.wet.gz", [conversion(f"https://a.example/{n}", "Text.") for n in range(2)])
    path.write_bytes(path.read_bytes()[:-5])
    items = read(path)
    assert urls(items) == ["https://a.example/0"]
    assert "the file ends in the middle of a record" in corrupt(items)[0].why


def test_an_archive_packed_as_one_gzip_member_is_read(tmp_path: Path):
    path = tmp_path / "a.warc.gz"
    records = [conversion(f"https://a.example/{n}", "Text.") for n in range(3)]
    broken = b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: many\r\n\r\nText.\r\n\r\n"
    path.write_bytes(gzip.compress(b"".join([*records, broken])))
    items = read(path)
    assert len(urls(items)) == 3
    assert corrupt(items) == [Corrupt(f"{path} at byte 0, record 4", "Content-Length 'many' is no number")]


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (b"not a record at all\r\nnor is this\r\n\r\n", "no record begins here"),
        (conversion("https://a.example/x", "Longer text than said.").replace(b"Length: 22", b"Length: 7"), "no record"),
        (conversion("https://a.example/x", "Text.").replace(b"Length: 5", b"Length: ?"), "'?' is no number"),
        (conversion("https://a.example/x", "Text.").replace(b"Text", b"\xff\xffxt"), "not UTF-8 (byte 0xff)"),
        (conversion("https://a.example/x", "Text.").replace(b"Length: 5", b"Length: 99999"), "the file ends before"),
    ],
)
def test_a_damaged_record_of_plain_warc_is_named_and_the_next_is_read(tmp_path: Path, broken: bytes, why: str):
    good = [conversion(f"https://a.example/{n}", "Text.") for n in range(2)]
    path = write_archive(tmp_path / "a.warc", [good[0], broken, good[1]])
    items = read(path)
    assert {"https://a.example/0", "https://a.example/1"} <= set(urls(items))
    (only,) = corrupt(items)
    assert why in only.why
    assert only.where.startswith(f"{path} at byte ")


# Saved pages


def test_a_saved_page_has_the_url_it_gives_for_itself(tmp_path: Path):
    link = '<link rel="canonical" href="https://coast.example/tower">'
    (tmp_path / "a.html").write_text(html(article(1), head=link))
    (tmp_path / "b c.htm").write_text(html(article(2)))
    (tmp_path / "d.html.gz").write_bytes(gzip.compress(html(article(3)).encode()))
    (tmp_path / "e.html.gz").write_bytes(gzip.compress(html(article(3)).encode())[:-9])
    os.utime(tmp_path / "a.html", (1_500_000_000.7, 1_500_000_000.7))
    inputs, _ = find_inputs(str(tmp_path), OUT)
    items = [item for each in inputs for item in each.read(lambda done: None)]
    assert urls(items) == ["https://coast.example/tower", "file:b%20c.htm", "file:d.html.gz"]
    assert items[0].timestamp == "2017-07-14T02:40:00Z"  # pyright: ignore[reportAttributeAccessIssue]
    assert corrupt(items)[0].where.endswith("e.html.gz")


def test_many_saved_pages_are_cleaned_together_and_archives_alone():
    files = [Input(str(n), str(n), 1, 0, "html") for n in range(FILES_PER_BATCH + 1)]
    archive = Input("a", "a", 1, 0, "archive")
    assert list(map(len, batches([archive, *files, archive, archive]))) == [1, FILES_PER_BATCH, 1, 1, 1]
    assert [each for batch in batches([*files, archive]) for each in batch] == [*files, archive]


# JSON lines


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_c4s_own_format_is_read_again(tmp_path: Path, packing: str):
    lines = [
        json.dumps({"text": "One.", "timestamp": "2019-04-25T12:57:54Z", "url": "https://a.example/1"}),
        "",
        json.dumps({"text": "Two."}),
        '{"text": "\\ud800"}',
        '{"text": 3}',
        '["text"]',
        '{"text": "cut',
    ]
    content = "\n".join(lines).encode()
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[packing]
    path = tmp_path / f"a.json{packing}"
    path.write_bytes(pack(content))
    items = read(path)
    assert items[0] == Page("https://a.example/1", "2019-04-25T12:57:54Z", "One.")
    assert items[1] == Page(f"file:a.json{packing}#3", "", "Two.")
    assert [item.where for item in corrupt(items)] == [f"{path}:{n}" for n in (4, 5, 6, 7)]
    if packing:
        path.write_bytes(pack(content)[:-12])
        assert "cannot be unpacked" in corrupt(read(path))[-1].why


# Finding


def test_only_pages_are_found_and_the_rest_is_said(tmp_path: Path):
    for name in (
        "b.warc.gz",
        "a/x.HTML",
        "c.txt",
        ".hidden.html",
        "out/c4-train.0.json.gz",
        "report.json",
        "d.warc.zst",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    inputs, others = find_inputs(str(tmp_path), tmp_path / "out")
    assert [each.name for each in inputs] == ["a/x.HTML", "b.warc.gz"]
    assert [Path(each).name for each in others] == ["c.txt", "d.warc.zst"]
    assert [each.name for each in find_inputs(str(tmp_path / "*.gz"), OUT)[0]] == ["b.warc.gz"]


def test_input_without_pages_is_refused(tmp_path: Path):
    (tmp_path / "a.txt").write_text("x")
    for spec, why in (
        (tmp_path, r"holds no file to clean; 1 of other kinds, .*a\.txt first\. These are read: \.warc"),
        (tmp_path / "a.txt", "holds no file to clean"),
        (tmp_path / "absent", "does not exist"),
        (tmp_path / "*.warc", "holds no file to clean"),
    ):
        with pytest.raises(DataError, match=why):
            find_inputs(str(spec), OUT)

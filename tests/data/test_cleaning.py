"""Cleaning from files to shards: what is kept, what is said, what survives an interruption, what is refused."""

import fcntl
import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jaxlm.cli import main
from jaxlm.data.cleaning import clean as composition
from jaxlm.data.cleaning.clean import clean
from jaxlm.data.cleaning.config import Cleaning
from jaxlm.data.config import DataConfig, DataError
from jaxlm.data.prepare import prepare
from tests.data.web_pages import (
    SENTENCES,
    article,
    as_text,
    conversion,
    documents,
    html,
    info,
    response,
    texts,
    write_archive,
    write_wet,
)

C4 = Cleaning()
GERMAN = [
    "Der alte Leuchtturm stand am Ende des langen Piers, wo der Wind niemals ruhte.",
    "Jeden Abend stieg der W\u00e4rter mit einer Lampe in der Hand die vielen Stufen hinauf.",
    "Er kannte die Namen aller Schiffe, die zwischen den beiden Inseln vorbeifuhren.",
]


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """Three archives of six articles each."""
    folder = tmp_path / "web"
    for number in range(3):
        write_wet(folder / f"{number}.warc.wet.gz", [article(10 * number + k) for k in range(6)])
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What is kept


def test_pages_become_c4s_json_lines_and_the_report_says_what_was_dropped(web: Path, out: Path):
    report = clean(C4, str(web), out, processes=1)
    kept = documents(out)
    assert list(kept[0]) == ["text", "timestamp", "url"]
    assert {each["url"]: each["text"] for each in kept} == {
        f"https://coast.example/{n}.warc.wet.gz/{k}": "\n".join(article(10 * n + k)) for n in range(3) for k in range(6)
    }
    assert {each["timestamp"] for each in kept} == {"2019-04-25T12:57:54Z"}
    assert sorted(path.name for path in out.iterdir()) == [
        "c4-train.00000-of-00001.json.gz",
        "c4-validation.00000-of-00001.json.gz",
        "manifest.csv",
        "report.json",
    ]
    saved = json.loads((out / "report.json").read_text())
    assert saved["tally"]["lines"] == {"no_end_mark": 18 * 5}
    assert saved["tally"]["skipped"] == {"warcinfo record": 3}
    assert (report.total("documents", "train"), report.total("documents", "validation")) == (17, 1)
    assert report.total("bytes") == sum(len(each["text"].encode()) for each in kept)
    printed = "\n".join(report.lines())
    assert "kept 18 of 18 pages (100.0%)" in printed
    assert "no_end_mark     90      -" in printed
    assert "https://coast.example/0.warc.wet.gz/0: Home" in printed


def test_html_and_common_crawls_text_of_a_page_give_the_same(tmp_path: Path):
    url = "https://coast.example/tower"
    write_archive(tmp_path / "html" / "a.warc.gz", [info(), response(url, html(article(1)))])
    write_archive(tmp_path / "text" / "a.warc.wet.gz", [info(), conversion(url, as_text(article(1)))])
    for name in ("html", "text"):
        clean(C4, str(tmp_path / name), tmp_path / f"from {name}", processes=1)
    assert documents(tmp_path / "from html") == documents(tmp_path / "from text")
    assert texts(tmp_path / "from html") == ["\n".join(article(1))]


def test_saved_pages_and_cleaned_text_are_inputs_too(tmp_path: Path, out: Path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "a.html").write_text(html(article(1)))
    (tmp_path / "saved" / "b.html").write_text(html(article(2)))
    clean(C4, str(tmp_path / "saved"), out, processes=1)
    again = tmp_path / "again"
    report = clean(C4, str(out), again, processes=1)
    assert documents(again) == documents(out)
    assert report.tally.pages == {}


def test_a_line_stays_where_it_stands_first(tmp_path: Path, out: Path):
    notice = "All the reports of this series can be read for free."
    write_wet(tmp_path / "web" / "a.wet", [[*article(1), notice]])
    write_wet(tmp_path / "web" / "b.wet", [[notice, *article(2)], article(1)])
    report = clean(C4, str(tmp_path / "web"), out, processes=1)
    assert sorted(texts(out)) == ["\n".join([*article(1), notice]), "\n".join(article(2))]
    assert report.tally.lines["duplicate"] == 1 + len(article(1))
    assert report.tally.pages == {"duplicate": 1}
    twice = clean(replace(C4, deduplicate="none"), str(tmp_path / "web"), tmp_path / "twice", processes=1)
    assert twice.total("documents") == 3


def test_spans_of_sentences_are_taken_out_where_asked_for(tmp_path: Path, out: Path):
    write_wet(tmp_path / "web" / "a.wet", [[" ".join(SENTENCES[:6])], [" ".join([*SENTENCES[6:10], *SENTENCES[1:4]])]])
    clean(replace(C4, deduplicate="spans"), str(tmp_path / "web"), out, processes=1)
    assert sorted(texts(out)) == sorted([" ".join(SENTENCES[:6]), " ".join(SENTENCES[6:10])])


def test_of_one_url_the_newest_page_stays_and_the_old_one_claims_no_line(tmp_path: Path, out: Path):
    old, new = article(1), [*article(1)[:3], "A fourth part was written anew after the great storm."]
    records = [
        conversion("https://www.coast.example/x/", "\n".join(old), when="2019-01-01T00:00:00Z"),
        conversion("http://coast.example/x", "\n".join(new), when="2020-01-01T00:00:00Z"),
    ]
    write_archive(tmp_path / "a.wet", records)
    report = clean(C4, str(tmp_path / "a.wet"), out, processes=1)
    assert texts(out) == ["\n".join(new)]
    assert report.tally.pages == {"duplicate_url": 1}


def test_language_length_and_sentences_drop_pages(tmp_path: Path, out: Path):
    pages = [article(1), GERMAN, ["It is so. It was so. It will be so."], [SENTENCES[0]]]
    write_wet(tmp_path / "a.wet", pages)
    report = clean(C4, str(tmp_path / "a.wet"), out, processes=1)
    assert texts(out) == ["\n".join(article(1))]
    assert report.tally.pages == {"language": 1, "too_short": 1, "few_sentences": 1}
    assert report.tally.examples["language"][0] == ("https://coast.example/a.wet/1", "de, probability 1.000")
    clean(replace(C4, language="de"), str(tmp_path / "a.wet"), tmp_path / "de", processes=1)
    assert texts(tmp_path / "de") == ["\n".join(GERMAN)]
    every = clean(replace(C4, language=None), str(tmp_path / "a.wet"), tmp_path / "all", processes=1)
    assert every.total("documents") == 2


def test_the_blocklist_drops_pages_and_can_be_off(tmp_path: Path, web: Path, out: Path):
    (tmp_path / "words.txt").write_text("Report 3\nreport 22\nlight hou\n")
    on = clean(replace(C4, blocklist=str(tmp_path / "words.txt")), str(web), out, processes=1)
    off = clean(C4, str(web), tmp_path / "off", processes=1)
    assert (on.total("documents"), off.total("documents")) == (16, 18)
    assert on.tally.examples["blocklist"][0] == ("https://coast.example/0.warc.wet.gz/3", "report 3")
    assert on.share("blocklist") == 2 / 18
    assert off.share("blocklist") == 0


def test_domains_keep_pages_of_news_sites_only(tmp_path: Path, out: Path):
    write_wet(tmp_path / "web" / "a.wet", [article(1)], site="https://www.news.example")
    write_wet(tmp_path / "web" / "b.wet", [article(2)], site="https://blog.example")
    (tmp_path / "domains.txt").write_text("news.example\n")
    report = clean(replace(C4, domains=str(tmp_path / "domains.txt")), str(tmp_path / "web"), out, processes=1)
    assert [each["url"] for each in documents(out)] == ["https://www.news.example/a.wet/0"]
    assert report.tally.pages == {"domain": 1}


# Shards


def test_text_is_split_into_shards_and_the_manifest_names_their_splits(web: Path, out: Path, tmp_path: Path):
    config = replace(C4, shard_characters=1000, validation_fraction=0.2)
    report = clean(config, str(web), out, processes=1)
    train = [shard for shard in report.shards if shard["split"] == "train"]
    assert train[1]["file"] == f"c4-train.00001-of-{len(train):05d}.json.gz"
    assert len(train) > 3
    assert sum(shard["documents"] for shard in report.shards) == len(documents(out)) == 18
    held_out = {each["url"] for each in documents(out, "validation")}
    assert 1 < len(held_out) < 9
    corpus = prepare(DataConfig(path=str(out), cache=str(tmp_path / "cache"), tokenizer=small_tokenizer()))
    assert corpus.report.documents == {"train": 18 - len(held_out), "valid": len(held_out)}
    assert corpus.report.corrupt == 0


def small_tokenizer():
    from jaxlm.data.config import TokenizerConfig

    return TokenizerConfig(vocab=400)


def test_nothing_is_held_out_where_nothing_shall_be_or_only_one_page_is_left(tmp_path: Path, web: Path, out: Path):
    clean(replace(C4, validation_fraction=0.0), str(web), out, processes=1)
    assert not documents(out, "validation")
    write_wet(tmp_path / "a.wet", [article(1)])
    clean(C4, str(tmp_path / "a.wet"), tmp_path / "one", processes=1)
    assert len(documents(tmp_path / "one", "train")) == 1


def test_the_same_input_gives_the_same_bytes_with_any_number_of_processes(web: Path, out: Path, tmp_path: Path):
    config = replace(C4, shard_characters=3000)
    heard: list[tuple[str, int, int]] = []
    clean(config, str(web), out, processes=1)
    clean(config, str(web), tmp_path / "two", processes=2, progress=lambda *said: heard.append(said))
    assert contents(out) == contents(tmp_path / "two")
    for stage in ("cleaning", "comparing", "writing"):
        done = [at for name, at, _ in heard if name == stage]
        assert done == sorted(done)
        assert done[-1] == next(total for name, _, total in heard if name == stage)


# Interruptions


class Killed(Exception):
    pass


@pytest.mark.parametrize(("stage", "calls"), [("clean_batch", 1), ("write_shard", 2), ("publish", 0)])
def test_an_interrupted_cleaning_goes_on_where_it_was(
    web: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, calls: int
):
    config = replace(C4, shard_characters=3000)
    clean(config, str(web), tmp_path / "undisturbed", processes=1)
    done: list[str] = []
    for name in ("clean_batch", "write_shard", "publish"):
        real = getattr(composition, name)

        def counted(*arguments, name=name, real=real):
            if name == stage and done.count(name) == calls:
                raise Killed
            result = real(*arguments)
            done.append(name)
            return result

        monkeypatch.setattr(composition, name, counted)
    with pytest.raises(Killed):
        clean(config, str(web), out, processes=1)
    assert not list(out.glob("*.json*"))  # nothing half done under a final name
    before = list(done)
    stage = "none"
    clean(config, str(web), out, processes=1)
    after = done[len(before) :]
    for name in ("clean_batch", "write_shard"):
        total = 3 if name == "clean_batch" else len(list(out.glob("c4-train.*")))
        assert before.count(name) + after.count(name) == total + (name == "write_shard")  # one held out at the end
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_a_shard_lost_while_publishing_is_written_again(web: Path, out: Path, tmp_path: Path, monkeypatch):
    clean(C4, str(web), tmp_path / "undisturbed", processes=1)

    def first_only(out: Path, shards, report):
        (out / shards[0].name).write_bytes(shards[0].made.read_bytes())
        shards[0].made.unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(composition, "publish", first_only)
        with pytest.raises(Killed):
            clean(C4, str(web), out, processes=1)
    clean(C4, str(web), out, processes=1)
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_a_finished_cleaning_is_not_done_again(web: Path, out: Path, monkeypatch: pytest.MonkeyPatch):
    first = clean(C4, str(web), out, processes=1)
    monkeypatch.setattr(composition, "clean_batch", None)
    assert clean(C4, str(web), out, processes=1) == first


# What is damaged, and what is refused


def test_what_cannot_be_read_is_counted_with_its_place(web: Path, out: Path):
    path = web / "1.warc.wet.gz"
    members = path.read_bytes().split(b"\x1f\x8b\x08")
    start = len(b"\x1f\x8b\x08".join(members[:3]))
    damaged = bytearray(path.read_bytes())
    damaged[start + 100] ^= 0xFF
    path.write_bytes(damaged)
    report = clean(C4, str(web), out, processes=1)
    assert report.total("documents") == 17
    assert report.tally.corrupt == 1
    assert report.tally.corrupt_places[0].startswith(f"{path} at byte {start:,}: damaged gzip member")
    assert any(f"cannot be read: 1 places, {path}" in line for line in report.lines())


def test_when_nothing_is_left_the_rules_say_why(tmp_path: Path, out: Path):
    write_wet(tmp_path / "a.wet", [GERMAN, ["Too short."]])
    with pytest.raises(DataError, match=r"nothing is left of 2 pages in .*(?s:.*)language +- +1 .*de, probability"):
        clean(C4, str(tmp_path / "a.wet"), out, processes=1)
    assert not list(out.iterdir())


def test_a_folder_with_something_else_in_it_is_refused(web: Path, out: Path, tmp_path: Path):
    clean(C4, str(web), out, processes=1)
    before = contents(out)
    with pytest.raises(DataError, match=r"holds another cleaning \(minimum_words was 5, is 6\)"):
        clean(replace(C4, minimum_words=6), str(web), out, processes=1)
    write_wet(web / "3.warc.wet.gz", [article(50)])
    with pytest.raises(DataError, match=r"holds another cleaning \(the input, a list or a library has changed"):
        clean(C4, str(web), out, processes=1)
    assert contents(out) == before
    (web / "3.warc.wet.gz").unlink()
    (out / "c4-train.00000-of-00001.json.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"c4-train\.00000-of-00001\.json\.gz is missing or has changed"):
        clean(C4, str(web), out, processes=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        clean(C4, str(web), tmp_path / "file", processes=1)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"used holds other files \(notes\.txt\)"):
        clean(C4, str(web), tmp_path / "used", processes=1)
    with pytest.raises(DataError, match="is where the input lies"):
        clean(C4, str(web), tmp_path, processes=1)


def test_two_processes_do_not_clean_into_one_folder(web: Path, out: Path):
    (out / ".work").mkdir(parents=True)
    with open(out / ".work" / "lock", "w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="process 4711 is cleaning into"):
            clean(C4, str(web), out, processes=1)
    assert clean(C4, str(web), out, processes=1).total("documents") == 18


def test_an_unknown_language_is_refused_before_any_work(web: Path, out: Path):
    with pytest.raises(DataError, match=r"language='english' is unknown; these are known: .* en .*"):
        clean(replace(C4, language="english"), str(web), out, processes=1)
    assert not out.exists()


@pytest.mark.parametrize("library", ["trafilatura", "warcio"])
def test_a_missing_library_is_named_with_its_remedy(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, library: str
):
    write_archive(tmp_path / "a.warc", [response("https://a.example", html(article(1)))])
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DataError, match=f"needs the package {library}: install it with `uv sync --extra clean`"):
        clean(C4, str(tmp_path / "a.warc"), out, processes=1)


# The command


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in arguments])
    return int(ended.value.code or 0)


def test_the_command_cleans_and_its_output_is_prepared_as_it_is(web: Path, out: Path, tmp_path: Path, capsys):
    (tmp_path / "rules.yaml").write_text("minimum_words: 4\nrules: {policy: false}\n")
    arguments = ("--config", tmp_path / "rules.yaml", "--validation_fraction", "0.1", "--processes", 1, "--json")
    assert run("data", "clean", web, "--out", out, *arguments) == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out.splitlines()[-1])
    assert facts == json.loads((out / "report.json").read_text())
    assert facts["config"]["rules"]["policy"] is False
    assert (facts["config"]["minimum_words"], facts["config"]["validation_fraction"]) == (4, 0.1)
    assert f"--data.path {out}" in printed.out
    assert "cleaning: done in" in printed.err
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {{path: {out}, cache: {tmp_path / 'cache'}, mode: truncate, tokenizer: {{vocab: 400}}}}")
    assert run("data", "prepare", config, "--json") == 0
    prepared = json.loads(capsys.readouterr().out.splitlines()[-1])["splits"]
    assert prepared["train"]["documents"] == len(documents(out, "train"))
    assert prepared["valid"]["documents"] == len(documents(out, "validation"))


def test_the_command_explains_its_rules_and_refuses_wrong_ones(web: Path, out: Path, capsys):
    assert run("data", "clean", web, "--out", out, "--print-config", "--language", "de") == 0
    printed = capsys.readouterr().out
    assert "language: de" in printed
    assert "# Drop lines with the word javascript" in printed
    for arguments, message in (
        (["--langauge", "de"], "unknown key 'langauge', did you mean 'language'?"),
        (["--rules.javascrip", "false"], "rules: unknown key 'javascrip', did you mean 'javascript'?"),
        (["--blocklist", "absent.txt"], "blocklist=absent.txt cannot be read: No such file"),
        (["--processes", "-1"], "processes=-1 must be at least 0"),
    ):
        assert run("data", "clean", web, "--out", out, *arguments) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_shards_are_plain_gzip_without_a_time_stamp(web: Path, out: Path):
    clean(C4, str(web), out, processes=1)
    content = (out / "c4-train.00000-of-00001.json.gz").read_bytes()
    assert content[4:8] == b"\0\0\0\0"
    assert gzip.decompress(content).endswith(b"}\n")

"""Each rule of cleaning by itself: lines, sentences, lists, language, duplicates."""

import gzip
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlm.data.cleaning.batches import clean_page
from jaxlm.data.cleaning.config import Cleaning, LineRules
from jaxlm.data.cleaning.duplicates import first_of_each, hashes, units, without_duplicates
from jaxlm.data.cleaning.extraction import main_text
from jaxlm.data.cleaning.language import identify
from jaxlm.data.cleaning.lists import Lists, blocked, from_domain, pattern, read_domains, read_lists
from jaxlm.data.cleaning.pages import Page, same_url, timestamp
from jaxlm.data.cleaning.rules import clean_lines, few_sentences
from jaxlm.data.cleaning.sentences import sentences
from jaxlm.data.cleaning.tally import RULES, Tally
from jaxlm.data.config import DataError
from tests.data.web_pages import SENTENCES, article, html

C4 = Cleaning()
GOOD = "The keeper lit the lamp before the sun had set."


# Lines


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (f"The word {'x' * 1001} is far too long to be one.", "long_word"),
        ("The keeper lit the lamp before the sun had set", "no_end_mark"),
        ("The keeper lit the lamp before the sun had set...", "no_end_mark"),
        ("The keeper lit the lamp;", "no_end_mark"),
        ("He lit the lamp.", "few_words"),
        ("You need to enable JavaScript to read this page.", "javascript"),
        ("By reading on you agree to our Terms of Use.", "policy"),
        ("Read our privacy policy before you go on reading.", "policy"),
        ("This site uses cookies to know its readers again.", "policy"),
    ],
)
def test_a_line_is_dropped_by_its_rule_alone(line: str, rule: str):
    text = f"{GOOD}\n{line}\n{GOOD}"
    found = clean_lines(text, C4)
    assert (found.kept, found.dropped, found.page) == ([GOOD, GOOD], [(rule, line)], None)
    off = replace(C4, rules=replace(LineRules(), **{rule: False}))
    assert clean_lines(text, off).kept == [GOOD, line, GOOD]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("Lorem ipsum dolor sit amet is what printers write.", "lorem_ipsum"),
        ("Then call it as main() { return 0 } to be done.", "curly_bracket"),
    ],
)
def test_a_page_is_dropped_by_one_such_line(line: str, rule: str):
    assert clean_lines(f"{GOOD}\n{line}", C4).page == rule
    off = replace(C4, rules=replace(LineRules(), **{rule: False}))
    assert clean_lines(f"{GOOD}\n{line}", off).kept == [GOOD, line]


def test_lines_that_c4_keeps_are_kept():
    lines = [
        GOOD,
        "Did the keeper light the lamp again?",
        "Nobody lit the lamp that night!",
        'He said "I lit the lamp."',
    ]
    assert clean_lines("\n".join(lines), C4).kept == lines


def test_citation_marks_are_taken_out_of_lines():
    line = "The tower[edit] was built in 1811 by his father.[12] It still stands today. [citation needed]"
    kept = clean_lines(line, C4).kept
    assert kept == ["The tower was built in 1811 by his father. It still stands today."]
    off = replace(C4, rules=LineRules(citation=False))
    assert clean_lines(line, off).dropped == [("no_end_mark", line)]


def test_the_numbers_of_the_rules_are_those_of_the_configuration():
    line = "Five words are enough here."
    assert clean_lines(line, C4).kept == [line]
    assert clean_lines(line, replace(C4, minimum_words=6)).dropped == [("few_words", line)]
    assert clean_lines(line, replace(C4, maximum_word=5)).dropped == [("long_word", line)]
    assert clean_lines("他点亮了灯 塔 的 灯 。", replace(C4, end_marks="。")).kept == ["他点亮了灯 塔 的 灯 。"]


# Sentences


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("One sentence stands here.", 1),
        ("It rained. He stayed. Nobody came.", 3),
        ("Mr. Smith met Dr. Jones at St. Mary's. They talked.", 2),
        ("J. R. Miller wrote it. It sold well.", 2),
        ("Lamps, e.g. old ones, cost 3.50 each! Who buys them? I do.", 3),
        ('"Come in!" he said. "Sit down."', 2),
        ("So did I. Then it rained.", 2),
        ("No mark at the end", 1),
        ("", 0),
    ],
)
def test_sentences_are_counted_as_a_reader_would(line: str, count: int):
    assert len(sentences(line)) == count


@given(st.text("aAB.!?\"' )\u2019\n", max_size=60))
def test_sentences_joined_are_the_line_again(line: str):
    assert "".join(sentences(line)) == line
    assert all(sentences(line))


def test_pages_with_few_sentences_are_found():
    assert few_sentences(f"{GOOD}\n{GOOD}", C4)
    assert not few_sentences(f"{GOOD}\n{GOOD} {GOOD}", C4)


# Pages


def page(text: str, url: str = "https://coast.example/1") -> Page:
    return Page(url, "2019-04-25T12:57:54Z", text)


def test_a_page_that_breaks_the_parsers_is_counted_and_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch):
    def broken(html: bytes, charset: str | None) -> str:
        raise RecursionError("too deep")

    monkeypatch.setattr("jaxlm.data.cleaning.batches.main_text", broken)
    tally = Tally()
    assert clean_page(Page("https://coast.example/1", "", b"<p>"), C4, Lists(None, None), tally) is None
    assert tally.corrupt_places == ["https://coast.example/1: its text cannot be extracted (RecursionError: too deep)"]


@pytest.mark.parametrize(
    ("text", "config", "rule"),
    [
        (f"{GOOD} " * 10, Cleaning(maximum_characters=300), "too_long"),
        (GOOD, C4, "few_sentences"),
        ("", C4, "no_text"),
        ("Home\nShop", Cleaning(minimum_sentences=0), "no_text"),
        (f"{GOOD}\nThen {'{'} came along the old pier.", C4, "curly_bracket"),
    ],
)
def test_a_dropped_page_is_counted_under_its_rule_with_its_url(text: str, config: Cleaning, rule: str):
    tally = Tally()
    assert clean_page(page(text), config, Lists(None, None), tally) is None
    assert (tally.pages_in, tally.pages) == (1, {rule: 1})
    assert rule in RULES
    assert tally.examples[rule][0][0] == "https://coast.example/1"


def test_few_examples_are_kept_of_many_drops():
    tally = Tally()
    for number in range(9):
        clean_page(page(f"Home\n{GOOD} {GOOD} {GOOD}", f"https://coast.example/{number}"), C4, Lists(None, None), tally)
    assert tally.lines == {"no_end_mark": 9}
    assert [url for url, _ in tally.examples["no_end_mark"]] == [f"https://coast.example/{n}" for n in range(3)]


def test_every_rule_for_lines_has_a_line_in_the_report():
    assert {name for name in LineRules.__slots__ if name != "citation"} <= set(RULES)


# Extraction


def test_extraction_leaves_navigation_and_boilerplate_behind():
    paragraphs = article(3)
    text = main_text(html(paragraphs).encode())
    assert text is not None
    lines = text.splitlines()
    assert [line for line in lines if line in paragraphs] == paragraphs
    for boilerplate in ("tracker", "color", "Home", "shop is open", "sign in", "Buy one lamp", "Copyright"):
        assert boilerplate not in text


def test_html_is_decoded_by_http_then_by_its_own_declaration():
    german = "Der W\u00e4rter z\u00fcndete jeden Abend die Lampe an, und die Schiffe f\u00fchren vorbei. "
    source = html([german * 3, german * 2]).replace('charset="utf-8"', 'charset="iso-8859-1"')
    for encoded, charset in ((source.encode("cp1252"), None), (source.encode("utf-8"), "utf-8")):
        assert german.strip() in (main_text(encoded, charset) or "")
    assert german.strip() in (main_text(source.encode("cp1252"), "no-such-charset") or "")
    assert german.strip() in (main_text(source.encode("cp1252"), "undefined") or "")


@pytest.mark.parametrize("content", [b"", b"   ", b"\x00\x01\x02", b"<html><body></body></html>"])
def test_html_without_text_gives_none(content: bytes):
    assert main_text(content) is None


# Language


def test_languages_are_told_apart():
    texts = {
        "en": " ".join(SENTENCES[:4]),
        "de": "Der W\u00e4rter stieg jeden Abend die Treppe hinauf, weil die Schiffe das Licht des Turms brauchten. "
        * 2,
        "fr": "Chaque soir le gardien montait l'escalier avec une lampe, car les bateaux attendaient la lumi\u00e8re. "
        * 2,
    }
    for language, text in texts.items():
        found, probability = identify(text)
        assert found == language
        assert probability > 0.99
    assert identify("7 8 9 0 1 2 3")[0] != "en"


def test_novels_are_english_and_pass_the_rules(shared: Path):
    """Real prose of ten authors, 600 characters at a time: C4's threshold must not throw away English."""
    found = Counter()
    for path in sorted((shared / "data" / "english_novels").glob("*.txt.gz"))[:10]:
        text = " ".join(gzip.decompress(path.read_bytes())[50_000:70_000].decode("utf-8", "replace").split())
        for at in range(0, len(text) - 600, 600):
            language, probability = identify(text[at : at + 600])
            found[language == "en" and probability >= C4.language_probability] += 1
        paragraph = " ".join(re.split(r"(?<=[.!?]) ", text)[1:-1])
        assert not few_sentences(paragraph, C4)
    assert found[True] / found.total() > 0.98, found


# Lists


def test_the_blocklist_finds_whole_words_and_phrases():
    words = pattern(["ass", "Bad Word", "f*ck"], "en")
    assert blocked("The class passed.", words) is None
    assert blocked("What an ASS!", words) == "ass"
    assert blocked("a bad\nword here", words) == "bad\nword"
    assert blocked("a bad, word here", words) is None
    assert blocked("(f*ck)", words) == "f*ck"
    assert blocked("xxass", pattern(["ass"], "ja")) == "ass"  # a language without spaces


def test_lists_are_read_and_wrong_ones_named(tmp_path: Path):
    words, domains = tmp_path / "words.txt", tmp_path / "domains.txt"
    words.write_text("\n\n")
    with pytest.raises(DataError, match=r"blocklist=.*words\.txt holds no word"):
        read_lists(str(words), None, "en")
    with pytest.raises(DataError, match=r"blocklist=.*absent cannot be read"):
        read_lists(str(tmp_path / "absent"), None, "en")
    words.write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_lists(str(words), None, "en")
    domains.write_text("bbc.co.uk\nhttps://cnn.com/\n")
    with pytest.raises(DataError, match=r"domains\.txt:2: 'https://cnn.com/' is no domain"):
        read_domains(str(domains))
    (tmp_path / "domains.json").write_text('["cnn.com"]')
    with pytest.raises(DataError, match="is no mapping of domains"):
        read_domains(str(tmp_path / "domains.json"))


def test_domains_hold_with_their_subdomains(tmp_path: Path):
    path = tmp_path / "domains.txt"
    path.write_text("bbc.co.uk\nCNN.com\n")
    domains = read_domains(str(path))
    for url in ("https://bbc.co.uk/news", "http://www.bbc.co.uk", "https://edition.cnn.com:80/x?y"):
        assert from_domain(url, domains)
    for url in ("https://notbbc.co.uk", "https://co.uk", "file:page.html", "https://cnn.com.evil.example", "http://[x"):
        assert not from_domain(url, domains)


def test_domains_of_realnews_may_name_their_subdomains(tmp_path: Path):
    path = tmp_path / "domains.json"
    path.write_text('{"cnn.com": true, "yahoo.com": ["news", "", "finance"]}')
    domains = read_domains(str(path))
    for url in ("https://x.cnn.com", "https://news.yahoo.com/1", "https://www.yahoo.com"):
        assert from_domain(url, domains)
    assert not from_domain("https://mail.yahoo.com", domains)


# Duplicates


def naive(parts: list[list[int]], ranks: list[int]) -> list[bool]:
    flat = [value for part in parts for value in part]
    best = {value: min((ranks[at], at) for at, each in enumerate(flat) if each == value)[1] for value in flat}
    return [best[value] == at for at, value in enumerate(flat)]


@given(st.lists(st.lists(st.integers(0, 12), max_size=8), max_size=5), st.integers(1, 20), st.data())
def test_one_of_each_stays_however_many_passes_it_takes(parts: list[list[int]], at_once: int, data: st.DataObject):
    total = sum(map(len, parts))
    ranks = data.draw(st.lists(st.integers(-3, 3), min_size=total, max_size=total))
    loaders = [lambda part=part: np.array(part, "<u8") for part in parts]
    for chosen in ([0] * total, ranks):
        keep = np.ones(total, bool)
        first_of_each(loaders, total, keep, ranks=lambda at, by=np.array(chosen, int): by[at], at_once=at_once)
        assert keep.tolist() == naive(parts, chosen)


def test_what_takes_no_part_claims_nothing():
    keep = np.array([False, True, True])
    first_of_each([lambda: np.array([7, 7, 7], "<u8")], 3, keep)
    assert keep.tolist() == [False, True, False]


def flags(texts: list[str], mode: str) -> list[np.ndarray]:
    found = [hashes(units(text, mode)) for text in texts]
    keep = np.ones(sum(map(len, found)), bool)
    first_of_each([lambda part=part: part for part in found], len(keep), keep)
    return np.split(keep, np.cumsum([len(part) for part in found])[:-1])


def test_repeated_lines_are_taken_out_without_regard_to_case():
    texts = [f"{SENTENCES[0]}\n{SENTENCES[1]}", f"{SENTENCES[2]}\n {SENTENCES[1].upper()}\n{SENTENCES[2]}"]
    first, second = (without_duplicates(t, k, "lines") for t, k in zip(texts, flags(texts, "lines"), strict=True))
    assert first == (texts[0], [])
    assert second == (SENTENCES[2], [f" {SENTENCES[1].upper()}", SENTENCES[2]])


def test_repeated_spans_of_three_sentences_are_taken_out_wherever_lines_break():
    a, b, c, d, e, f = SENTENCES[:6]
    texts = [f"{a} {b} {c} {d}", f"{e} {b}\n{c} {d} {f}", f"{a} {b} {e}"]
    kept = [without_duplicates(t, k, "spans")[0] for t, k in zip(texts, flags(texts, "spans"), strict=True)]
    assert kept == [texts[0], f"{e}\n{f}", texts[2]]  # two sentences in common are no span


# Values


def test_urls_of_one_page_are_one():
    assert len({same_url(url) for url in ("http://a.example/x/", "https://www.a.example/x?utm_source=y")}) == 1
    assert same_url("https://a.example/x?id=1") != same_url("https://a.example/x?id=2")


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("2019-04-25T12:57:54Z", "2019-04-25T12:57:54Z"),
        ("2019-04-25T12:57:54.123456Z", "2019-04-25T12:57:54Z"),
        ("2019-04-25T14:57:54+02:00", "2019-04-25T12:57:54Z"),
        ("yesterday", ""),
        (None, ""),
    ],
)
def test_timestamps_are_utc_in_whole_seconds(given: str | None, normal: str):
    assert timestamp(given) == normal


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"language": ""}, "language is empty"),
        ({"language_probability": 2}, "language_probability=2 must be between 0 and 1"),
        ({"validation_fraction": 1}, "validation_fraction=1 leaves nothing to train on"),
        ({"minimum_words": -1}, "minimum_words=-1 must be at least 0"),
        ({"shard_characters": 0}, "shard_characters=0 must be at least 1"),
        ({"maximum_characters": 100}, "maximum_characters=100 is below minimum_characters=128"),
        ({"end_marks": ""}, "end_marks is empty"),
        ({"deduplicate": "pages"}, "deduplicate='pages' must be lines, spans or none"),
    ],
)
def test_a_value_out_of_range_is_named(values: dict, message: str):
    with pytest.raises(DataError, match=re.escape(message)):
        Cleaning(**values)

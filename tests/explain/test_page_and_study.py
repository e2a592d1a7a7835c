"""The page stands alone and shows what it filters; the study is the paper's design and says nothing without people."""

import csv
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from jaxlm.decode import ConfigError
from jaxlm.explain import study
from jaxlm.explain.page import Explained, page
from jaxlm.explain.rules import Clause, Counts, Rule
from jaxlm.explain.sources import _selected, read_cose, read_eraser, read_esnli, read_toxic_spans, write_eraser
from jaxlm.explain.texts import Example
from tests.explain.tiny import examples

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chromium-headless-shell",
            "headless_shell")  # fmt: skip
COUNTS = Counts(texts=100, support=20, model=19, people=15)


def made() -> str:
    words = ("a", "<b>bold</b>", "</script>", "smoke")
    texts = [
        Explained(words=words, probabilities=np.array([0.2, 0.8]), scores={"ours": np.array([0, 0, 0.1, 2.0])},
                  label=1, rationale=np.array([False, False, False, True]), rules=(0,)),
        Explained(words=("garden",), probabilities=np.array([0.9, 0.1]), scores={"ours": np.array([-1.0])}, label=1),
    ]  # fmt: skip
    rules = [Rule(clause=Clause(("smoke",), 1), chosen_on=COUNTS, bound=0.71, tried=12, group="religion")]
    return page("Why & how", ("quiet", "trouble"), texts, rules, terms={"smoke": "religion"}, notes=["a < b"])


def test_the_page_needs_nothing_else_and_holds_no_markup_of_the_data():
    text = made()
    assert not re.search(r"""(src|href)\s*=|@import|https?://""", text)
    assert text.count("</script>") == 2
    assert "<b>bold" not in text
    assert "Why &amp; how" in text
    assert "bias: identity term (religion)" in text
    assert "0.71" in text
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert data["texts"][0]["words"][2] == "</script>"
    assert data["texts"][0]["scores"]["ours"] == [0, 0, 0.05, 1]


def test_the_page_opens_in_a_browser(tmp_path):
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)}")
    path = tmp_path / "page.html"
    path.write_text(made(), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
               "--virtual-time-budget=2000", "--dump-dom", path.as_uri()]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "2 of 2 texts" in found.stdout, found.stderr
    assert found.stdout.count('class="w m"') == 1


def test_the_study_is_the_papers_design():
    people, key = study.assign(seed=4)
    assert len(people) == 150
    assert sum(p.stratum == "expert" for p in people) == 45
    assert {p.field for p in people if p.stratum == "expert"} == set(study.FIELDS)
    for stratum, each in (("general", 35), ("expert", 15)):
        assert [sum(p.stratum == stratum and p.arm == letter for p in people) for letter in "ABC"] == [each] * 3
    assert set(key.values()) == set(study.ARMS)
    assert study.assign(seed=4)[0] == people
    assert study.assign(seed=5)[0] != people


def test_forms_are_blind_and_nothing_is_reported_without_people(tmp_path):
    pointed = {arm: np.array([False, True]) for arm in study.ARMS}
    shown = [study.Shown(("big", "<smoke>"), "trouble", pointed)] * 2
    study.export(tmp_path, shown, seed=1, count=30)
    forms = "".join(path.read_text() for path in sorted(tmp_path.glob("form_*.html")))
    assert not any(arm in forms for arm in ("Grad-CAM", "vanilla", "ours"))
    assert "<b>&lt;smoke&gt;</b>" in forms
    answers, key = tmp_path / "answers.csv", tmp_path / "key.json"
    with pytest.raises(ConfigError, match="nobody has taken part, so there is no satisfaction"):
        study.analyse(answers, key)
    rows: list[dict[str, str]] = list(csv.DictReader(answers.read_text().splitlines()))
    assert len(rows) == 30 * 2 * 3
    letter = {method: name for name, method in json.loads(key.read_text()).items()}
    for row in rows:
        row["rating"] = {letter["ours"]: "5", letter["Grad-CAM"]: "4" if row["text"] == "1" else "2"}.get(
            row["arm"], ""
        )
    with answers.open("w", newline="") as file:
        writer: csv.DictWriter[str] = csv.DictWriter(file, study.COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    found = {one.method: one for one in study.analyse(answers, key)}
    assert set(found) == {"ours", "Grad-CAM"}
    assert (found["ours"].percent, found["ours"].mean, found["ours"].people) == (100, 5, 10)
    assert (found["Grad-CAM"].percent, found["Grad-CAM"].mean) == (50, 3)
    answers.write_text(answers.read_text().replace(",5\n", ",7\n", 1).replace(",5\r\n", ",7\r\n", 1))
    with pytest.raises(ConfigError, match="ratings are 1 to 5"):
        study.analyse(answers, key)


def test_erasers_format_comes_back_as_it_was(tmp_path):
    given = [e for e in examples(6, 2)]
    write_eraser(tmp_path, "val", given, ("quiet", "trouble"))
    back = read_eraser(tmp_path, "val", ("quiet", "trouble"))
    for one, other in zip(given, back, strict=True):
        assert (one.words, one.label, one.name) == (other.words, other.label, other.name)
        want = np.zeros(len(one.words), bool) if one.rationale is None else one.rationale
        np.testing.assert_array_equal(other.rationale, want)


def gold(example: Example) -> np.ndarray:
    assert example.rationale is not None
    return example.rationale


def test_readers_of_marked_texts(tmp_path):
    question = {"id": "1", "answerKey": "B", "question": {"stem": "Where does a fox sleep at noon?",
                "choices": [{"label": "A", "text": "sea"}, {"label": "B", "text": "den"}]}}  # fmt: skip
    (tmp_path / "v1.0__dev_rand_split.jsonl").write_text(json.dumps(question) + "\n")
    chosen = {"id": "1", "explanation": {"selected": "fox sleep"}}
    (tmp_path / "v1.0__cose_dev_v1.0.jsonl").write_text(json.dumps(chosen) + "\n")
    (found,) = read_cose(tmp_path, "dev").examples
    assert [w for w, m in zip(found.words, gold(found), strict=True) if m] == ["fox", "sleep"]
    assert found.name.endswith("\tden")
    (tmp_path / "t.csv").write_text('spans,text\n"[4, 5, 6, 7]","the dull day"\n')
    (comment,) = read_toxic_spans(tmp_path / "t.csv")
    assert gold(comment.example()).tolist() == [False, True, False]
    assert comment.characters(np.array([True, True, False])) == set(range(8))
    (tmp_path / "e.csv").write_text(
        "gold_label,Sentence1_marked_1,Sentence2_marked_1\nneutral,A *red* fox,It *runs*\n-,x,y\n"
    )
    marked = read_esnli(tmp_path / "e.csv")
    assert gold(marked.examples[0]).tolist() == [False, True, False, False, True]
    assert marked.left_out == {"unknown label": 1}


@pytest.mark.parametrize(
    ("selected", "words"),
    [
        ("Question: Where does a fox sleep at noon?Answer Choices: \xa0 ", "where does a fox sleep at noon ?"),
        ("re does a fox sleep at no", "does a fox sleep at noon"),
        ("here does a fo", "where does a fox"),
        ("FOX  SLEEP", "fox sleep"),
        ("a", "a"),
        ("at", "at"),
        ("a hen sleeps", None),
        ("Question:", None),
    ],
)
def test_a_selection_of_cose_may_begin_inside_a_word(tmp_path, selected, words):
    question = {"id": "1", "answerKey": "B", "question": {"stem": "Where does a fox sleep at noon?",
                "choices": [{"label": "B", "text": "den"}]}}  # fmt: skip
    (tmp_path / "v1.0__dev_rand_split.jsonl").write_text(json.dumps(question) + "\n")
    (tmp_path / "v1.0__cose_dev_v1.0.jsonl").write_text(json.dumps({"id": "1", "explanation": {"selected": selected}}))
    read = read_cose(tmp_path, "dev")
    if words is None:
        assert read.left_out["selection is not in the question"] == 1 - len(read.examples) == 1
    else:
        (found,) = read.examples
        assert " ".join(w for w, m in zip(found.words, gold(found), strict=True) if m) == words


def test_a_selection_that_stands_twice_is_taken_where_words_begin_and_end():
    words = ("what", "do", "cats", "look", "at", "?")
    assert _selected(words, "at").tolist() == [False] * 4 + [True, False]
    assert _selected(words, "hat d").tolist() == [True, True] + [False] * 4
    assert not _selected(words, "dogs").any()


def test_cose_as_it_is(shared):
    found = read_cose(shared / "data" / "cose", "dev")
    everything = np.mean([e.rationale.mean() for e in found.examples if e.rationale is not None])
    assert sum(found.left_out.values()) <= 0.01 * len(found.examples)
    assert 0.4 < everything < 0.6

"""The experiment of figure 5 on a few pages: its table, its variants, what it refuses."""

import json
import sys
from pathlib import Path

import pytest

from experiments import c4
from experiments.c4 import Config, cleaning_rows, measure
from experiments.entry import main
from jaxlm.data.cleaning.config import Cleaning
from jaxlm.decode import ConfigError, decode, read
from tests.data.web_pages import article, write_wet

CONFIGS = Path("configs/experiments")


@pytest.fixture
def web(tmp_path: Path) -> Path:
    write_wet(tmp_path / "web" / "a.warc.wet.gz", [article(number) for number in range(10)])
    (tmp_path / "words.txt").write_text("report 3\n")
    return tmp_path / "web"


def test_pages_become_a_table_beside_the_paper(web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """As a user starts it, with the file that is read where none is given; data only, no training."""
    arguments = ["--input", str(web), "--clean.blocklist", str(tmp_path / "words.txt"), "--out", str(tmp_path / "out")]
    arguments += ["--clean.validation_fraction", "0.2", "--run.data.tokenizer.vocab", "400", "--processes", "1"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["c4", *arguments, "--json"])
    with pytest.raises(SystemExit) as ended:
        main("c4", c4.__doc__, Config, measure, default="c4_en")
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    saved = json.loads(printed.out.splitlines()[-1])
    rows = {(row["what"], row["quantity"]): row for row in saved["rows"]}
    kept = rows["C4 en", "documents kept, training"]
    held_out = rows["C4 en", "documents kept, held out"]["measured"]
    assert (kept["paper"], kept["measured"] + held_out) == (364_868_892, 9)
    assert rows["C4 en", "documents in"]["measured"] == 10
    assert rows["blocklist", "pages dropped, %"]["measured"] == 10
    assert rows["blocklist", "pages dropped, %"]["paper"] == pytest.approx(7.25, abs=0.005)
    assert rows["no_end_mark", "lines dropped, %"]["measured"] == pytest.approx(100 * 5 / 9)
    assert 0.3 < rows["C4 en", "tokens per byte"]["measured"] < 0.8
    assert rows["gzip -9", "held-out bits per byte"]["measured"] > 1
    assert "whole crawl" in kept["note"]
    assert (tmp_path / "out" / "c4.md").exists()


@pytest.mark.slow
def test_a_model_is_trained_on_what_is_left(web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = {"layers": 1, "embed": 32, "heads": 2, "mlp": 64}
    run = {"data": {"sequence": 32, "mode": "truncate", "tokenizer": {"vocab": 400}}, "model": model}
    run |= {"train": {"batch": 8}, "sample": {"tokens": 4}}
    config = Config(variant="en.noblocklist", input=str(web), processes=1, run=run, steps=4)
    rows = {(row.what, row.quantity): row for row in measure(config, tmp_path / "out").rows}
    assert 1 < rows["model", "held-out bits per byte"].measured < 9  # pyright: ignore[reportOperatorIssue]


@pytest.mark.parametrize("name", ["en", "noblocklist", "realnewslike"])
def test_the_shipped_files_fix_what_the_paper_fixes(name: str):
    config = decode(read(CONFIGS / f"c4_{name}.yaml"), Config)
    assert config.variant == {"noblocklist": "en.noblocklist"}.get(name, name)
    data = config.run["data"]
    assert (data["tokenizer"]["vocab"], data["sequence"], data["mode"]) == (32_000, 512, "truncate")
    assert data["minimum_characters"] == config.clean.minimum_characters == 128
    assert config.steps == 0
    with pytest.raises(ConfigError, match="input is null: give a folder of web pages"):
        config.check()


@pytest.mark.parametrize(
    ("variant", "clean", "message"),
    [
        ("en", {}, "clean.blocklist is null, and C4 en is defined by it"),
        ("realnewslike", {"blocklist": "w"}, "clean.domains is null, and C4 realnewslike is defined by it"),
        ("en.noblocklist", {"blocklist": "w"}, "clean.blocklist=w, but C4 en.noblocklist has no such filter"),
        ("en", {"blocklist": "w", "domains": "d"}, "clean.domains=d, but C4 en has no such filter"),
    ],
)
def test_a_variant_without_its_lists_or_with_others_is_refused(variant, clean: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        Config(variant=variant, input="x", clean=Cleaning(**clean)).check()


def test_a_rule_that_dropped_nothing_has_no_row_but_the_blocklist_has(web: Path, tmp_path: Path):
    from jaxlm.data.cleaning.clean import clean

    (tmp_path / "words.txt").write_text("submarine\n")
    config = Config(variant="en", input=str(web), clean=Cleaning(blocklist=str(tmp_path / "words.txt")))
    rows = cleaning_rows(config, clean(config.clean, str(web), tmp_path / "out", processes=1))
    dropped = {row.what: row.measured for row in rows if "dropped" in row.quantity}
    assert dropped == {"no_end_mark": pytest.approx(100 * 5 / 9), "blocklist": 0}

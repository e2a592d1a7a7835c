"""Figure 5: what do the steps from a web crawl to C4 drop, and what is left to train on?

Question: of the pages given, how many pass extraction, C4's line rules, deduplication, the least length, the language
          and the blocklist; how many tokens per byte has what is left; how well is it predicted?
Cost:     reading and cleaning, then a tokenizer; with --steps N also a training of the small model in `run`.
Run:      python -m experiments.c4 configs/experiments/c4_en.yaml --input CRAWL/ --clean.blocklist words.txt
          python -m experiments.c4 configs/experiments/c4_noblocklist.yaml --input CRAWL/
          python -m experiments.c4 configs/experiments/c4_realnewslike.yaml --input CRAWL/ \\
              --clean.blocklist words.txt --clean.domains domains.txt
Needs:    pages: a folder, glob or file of .warc, .wet, .html or C4-format .jsonl; for `en` a list of words, for
          `realnewslike` also one of domains. None is shipped. Without a file, c4_en.yaml is read.
Found:    depends on the pages given; the paper's counts are of a whole crawl of the web, April 2019.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.entry import main
from experiments.report import Report, Row
from experiments.runs import run_of, sections, trained
from jaxlm.data.cleaning.config import Cleaning
from jaxlm.decode import ConfigError

PAPER = {"en": 364_868_892, "en.noblocklist": 393_391_519, "realnewslike": 13_799_838}
"""Documents of each variant, table 2."""
BLOCKED = 100 * (1 - PAPER["en"] / PAPER["en.noblocklist"])
"""Percent of the pages that the blocklist drops, by the first two counts of table 2."""
WORDS = "https://github.com/LDNOOBW/List-of-Dirty-Naughty-Obscene-and-Otherwise-Bad-Words"
DOMAINS = "https://github.com/rowanz/grover/blob/master/realnews/domain_to_allowed_subdomains.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """From web pages to a corpus, and what it is worth.

    Attributes:
        variant: which of C4's variants is made: `en` needs clean.blocklist, `realnewslike` also clean.domains,
            `en.noblocklist` neither.
        input: folder, glob or file of web pages: .warc, .wet, .html or C4-format .jsonl.
        clean: the rules by which pages and lines are kept.
        processes: processes that clean; 0 means one per core.
        run: a file for `jaxlm train`, or its sections written here: tokenizer, rows and model. Its data.path is the
            cleaned text.
        steps: training steps of that model; 0 looks at the data only.
    """

    variant: Literal["en", "en.noblocklist", "realnewslike"] = "en"
    input: str | None = None
    clean: Cleaning = dataclasses.field(default_factory=Cleaning)
    processes: int = 0
    run: Any = dataclasses.field(default_factory=dict)
    steps: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ConfigError(f"steps={self.steps} must be at least 0; 0 looks at the data only")

    def check(self) -> str:
        """The input. Raises ConfigError naming what this variant still needs."""
        if self.input is None:
            raise ConfigError(
                "input is null: give a folder of web pages, e.g. --input crawl/ (.warc, .wet, .html, .jsonl)"
            )
        needs = {"blocklist": ("words", WORDS)} if self.variant != "en.noblocklist" else {}
        needs |= {"domains": ("domains", DOMAINS)} if self.variant == "realnewslike" else {}
        for key, (what, origin) in needs.items():
            if getattr(self.clean, key) is None:
                raise ConfigError(
                    f"clean.{key} is null, and C4 {self.variant} is defined by it: give a file of {what}, "
                    f"--clean.{key} FILE (C4 took {origin})"
                )
        for key in {"blocklist", "domains"} - set(needs):
            if (given := getattr(self.clean, key)) is not None:
                raise ConfigError(f"clean.{key}={given}, but C4 {self.variant} has no such filter: set it to null")
        return self.input


def measure(config: Config, out: Path) -> Report:
    """Cleans, prepares, trains if asked to, and reports each beside the paper."""
    from jaxlm.data.cleaning.clean import clean
    from jaxlm.data.corpus import gzip_bits_per_byte
    from jaxlm.data.prepare import prepare
    from jaxlm.data.progress import show_progress

    source, folder = config.check(), out / config.variant
    cleaned = folder / "cleaned"
    changes: dict[str, Any] = {"data": {"path": str(cleaned)}}
    changes |= {"train": {"steps": config.steps}} if config.steps else {}
    run = run_of(sections(config.run, "run"), changes, f"c4-{config.variant}", "run")
    found = clean(config.clean, source, cleaned, processes=config.processes, progress=show_progress())
    print("\n".join(found.lines()), flush=True)
    corpus = prepare(run.data, show_progress())
    print("\n".join(corpus.report.lines()), flush=True)
    train, valid = corpus.split("train"), corpus.held_out
    lengths = [len(document) for document in train.each_document()]
    cut = sum(length > run.data.sequence for length in lengths) / max(len(lengths), 1)
    name = f"C4 {config.variant}"
    tokens = f"SentencePiece, {corpus.tokenizer.vocab:,} tokens"
    rows = [
        *cleaning_rows(config, found),
        Row(what=name, quantity="tokens per byte", measured=len(train) / train.bytes, note=f"{tokens}, training text"),
        Row(what=name, quantity="tokens per document", measured=len(train) / train.documents),
        Row(what=name, quantity=f"documents cut at {run.data.sequence} tokens, %", measured=100 * cut),
        Row(
            what="gzip -9",
            quantity="held-out bits per byte",
            measured=gzip_bits_per_byte(corpus, valid.name),
            note=f"{valid.documents:,} documents",
        ),
    ]
    details: dict[str, Any] = {"cleaning": found.to_json(), "digest": corpus.digest}
    if config.steps:
        import json

        summary = json.loads(trained(run, folder / "run", apart=False).summary.read_text())
        note = f"{summary['parameters']:,} parameters, {summary['step']:,} steps"
        measured = summary["bits_per_byte"]
        rows.append(Row(what="model", quantity="held-out bits per byte", measured=measured, note=note))
        details["training"] = summary
    title = f"Figure 5: from web pages to {name}"
    return Report(title=title, rows=rows, remarks=REMARKS, details=details)


def cleaning_rows(config: Config, found: Any) -> list[Row]:
    """What went in, what each rule dropped, what came out. `found` is the `Report` of the cleaning."""
    from jaxlm.data.cleaning.tally import RULES

    name, tally = f"C4 {config.variant}", found.tally
    kept = found.total("documents")
    rows = [
        Row(what=name, quantity="documents in", measured=tally.pages_in),
        Row(
            what=name,
            quantity="documents kept, training",
            paper=PAPER[config.variant],
            measured=found.total("documents", "train"),
            note="the paper's of a whole crawl, ours of the pages given",
        ),
        Row(what=name, quantity="documents kept, held out", measured=found.total("documents", "validation")),
        Row(what=name, quantity="documents kept, %", measured=100 * kept / max(tally.pages_in, 1)),
        Row(what=name, quantity="text kept, bytes", measured=found.total("bytes")),
        Row(what=name, quantity="places that cannot be read", measured=tally.corrupt),
    ]
    for rule, meaning in RULES.items():
        share = 100 * found.share(rule)
        if rule == "blocklist" and config.clean.blocklist is not None:
            paper = BLOCKED if config.variant == "en" else None
            note = "of the pages that reach it; paper: 1 - en / en.noblocklist of table 2" if paper else meaning
            rows.append(Row(what=rule, quantity="pages dropped, %", paper=paper, measured=share, note=note))
        elif tally.pages.get(rule):
            rows.append(Row(what=rule, quantity="pages dropped, %", measured=share, note=meaning))
        if tally.lines.get(rule):
            lines = 100 * tally.lines[rule] / max(tally.lines_in, 1)
            rows.append(Row(what=rule, quantity="lines dropped, %", measured=lines, note=meaning))
    return rows


REMARKS = [
    "Pages dropped are in percent of the pages that reach the rule, lines in percent of all lines read. The paper "
    "gives counts of whole crawls (table 2) and no numbers for single steps; only the share that the blocklist drops "
    "can be computed from it.",
    "Where this differs from the program that made C4: HTML goes through trafilatura, where C4 took Common Crawl's "
    "plain text (.wet, which is read here too); languages are told by py3langid, not langdetect; sentences are counted "
    "by rules, not by NLTK's Punkt; texts under 128 characters are dropped, as the paper says.",
]


if __name__ == "__main__":
    main("c4", __doc__, Config, measure, default="c4_en")

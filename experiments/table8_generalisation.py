"""Table 8: how well does a model trained on one kind of text predict the others?

Question: models trained on novels, encyclopedia and news, each judged on the held-out text of all three: bits per
          byte, next-token accuracy, macro F1 over the vocabulary, latency of a forward pass.
Cost:     three trainings of the model in `run` (2 layers, 300 steps: about two minutes each on two cores).
Run:      python -m experiments.table8_generalisation --corpora.novels BOOKS/ --corpora.wikitext wiki.txt
Needs:    the texts, as folders, globs or files of text or C4-format JSON lines; none is shipped. A corpus that is
          not given leaves its row empty. `--runs.novels RUN` judges a model that exists instead of training one.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.entry import main
from experiments.report import Report, Row, Value
from experiments.runs import Sections, run_of, sections, trained
from jaxlm.data.config import DataConfig
from jaxlm.decode import ConfigError
from jaxlm.files import write_whole
from jaxlm.folder import Folder, open_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Printed:
    """One row of the paper's table 8: accuracy in percent, latency in milliseconds, F1."""

    name: str
    accuracy: float
    latency: float
    f1: float


PAPER = {
    "novels": Printed(name="BookCorpus", accuracy=80.2, latency=107, f1=0.82),
    "wikitext": Printed(name="WikiText-103", accuracy=82.1, latency=112, f1=0.84),
    "news": Printed(name="RealNews", accuracy=79.8, latency=105, f1=0.81),
}
AVERAGE = Printed(name="average", accuracy=80.7, latency=108, f1=0.82)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Models of one kind of text, judged on the others.

    Attributes:
        corpora: name -> folder, glob or file of text or C4-format JSON lines; null: not given. The names `novels`,
            `wikitext` and `news` stand for the paper's BookCorpus, WikiText-103 and RealNews; others may be added.
        runs: name -> directory of a run trained on that kind of text, judged as it is; its own configuration says
            what its text is, so `corpora` need not.
        run: a file for `jaxlm train`, or its sections written here: how the models are trained that `runs` does not
            name. Its data.path is that of the corpus.
        steps: training steps, in place of those of `run`.
        held_out_bytes: at most this much of each held-out text is judged, from its beginning; 0: all of it.
        latency: whether the forward pass is timed.
    """

    corpora: dict[str, str | None] = dataclasses.field(default_factory=lambda: dict.fromkeys(PAPER))
    runs: dict[str, str] = dataclasses.field(default_factory=dict)
    run: Any = dataclasses.field(default_factory=dict)
    steps: int | None = None
    held_out_bytes: int = 0
    latency: bool = True

    def __post_init__(self) -> None:
        if self.held_out_bytes < 0:
            raise ValueError(f"held_out_bytes={self.held_out_bytes} must not be negative")

    def base(self) -> Sections:
        return sections(self.run, "run", self.steps)


@dataclass(frozen=True, slots=True)
class Model:
    """A trained model, and the text it was trained on."""

    name: str
    folder: Folder
    data: DataConfig


def measure(config: Config, out: Path) -> Report:
    """Trains what is missing, judges every model on every text."""
    given = {name: path for name, path in config.corpora.items() if path is not None}
    if not given and not config.runs:
        ways = " ".join(f"--corpora.{name} PATH" for name in config.corpora)
        raise ConfigError(f"no text is given: write its paths into the configuration, or add {ways} (any of them)")
    base = config.base() if set(given) - set(config.runs) else {}
    runs = {
        name: run_of(base, {"data": {"path": path}}, name, f"run (for corpora.{name})")
        for name, path in given.items()
        if name not in config.runs
    }
    opened = {name: open_run(Path(path)) for name, path in config.runs.items()}
    models = [Model(name, folder, run.data) for name, (folder, run) in opened.items()]
    models += [Model(n, trained(run, out / "runs" / n, apart=False), run.data) for n, run in runs.items()]
    order = list(dict.fromkeys([*config.corpora, *config.runs]))
    models.sort(key=lambda model: order.index(model.name))
    texts = {model.name: held_out(model, out / "held_out", config.held_out_bytes) for model in models}
    found = {model.name: judged(model, texts, config.latency) for model in models}
    return report(order, found)


def held_out(model: Model, folder: Path, size: int) -> Path:
    """The held-out text that belongs to a model, as JSON lines: the same bytes for every model and its tokenizer.

    At most the first `size` bytes of it, or all where `size` is 0.
    """
    from jaxlm.data.prepare import prepare
    from jaxlm.data.progress import show_progress

    corpus = prepare(model.data, show_progress())
    left, lines = size or corpus.held_out.bytes, []
    for tokens in corpus.held_out.each_document():
        cut = corpus.tokenizer.bytes(tokens.tolist())[:left]
        # A character that the limit cuts through is left out.
        lines.append(json.dumps({"text": cut.decode(errors="ignore")}) + "\n")
        left -= len(cut)
        if left <= 0:
            break
    folder.mkdir(parents=True, exist_ok=True)
    path, content = folder / f"{model.name}.jsonl", "".join(lines).encode()
    if not path.exists() or path.read_bytes() != content:  # an unchanged file keeps its prepared tokens
        write_whole(path, content)
    return path


def judged(model: Model, texts: dict[str, Path], timed: bool) -> dict[str, dict[str, Any]]:
    """The facts of `jaxlm eval` by the name of the text."""
    from jaxlm.inspect import evaluate_texts

    given = {name: str(path) for name, path in texts.items()}
    return dict(zip(given, evaluate_texts(model.folder.path, list(given.values()), timed=timed), strict=True))


def report(order: list[str], found: dict[str, dict[str, dict[str, Any]]]) -> Report:
    """`found[model][text]` are the facts of one evaluation."""
    rows: list[Row] = []
    for name in order:
        if name not in found:
            rows += _absent(name)
            continue
        for text, facts in found[name].items():
            rows += _rows(name, text, facts)
    own = [found[name][name] for name in order if name in found]
    complete = all(name in found for name in PAPER)
    if complete:
        mean = lambda key: sum(found[name][name][key] for name in PAPER) / len(PAPER)
        rows.append(Row(what=AVERAGE.name, quantity="accuracy, %", paper=AVERAGE.accuracy, measured=100 * mean("top1")))
        rows.append(Row(what=AVERAGE.name, quantity="F1", paper=AVERAGE.f1, measured=mean("macro_f1")))
        timed = mean("latency_p50_ms") if "latency_p50_ms" in own[0] else None
        rows.append(Row(what=AVERAGE.name, quantity="latency, ms", paper=AVERAGE.latency, measured=timed))
    remarks = [
        _matrix(order, found),
        "The paper does not say what its accuracy and F1 are of, nor how large its model is. Here accuracy is the "
        "share of next tokens whose most likely prediction is right, and F1 is the mean over the token ids that occur. "
        "Both depend on the tokenizer (each model has its own); bits per byte do not. "
        "The models here are small: their numbers show how far one kind of text carries to another, not the paper's.",
        "Novels stand in for BookCorpus, WikiText-2 for WikiText-103, C4-format news for RealNews. The paper's numbers "
        "stand beside the model that was trained on the same kind of text.",
    ]
    details = {"evaluations": found}
    return Report(title="Table 8: models of one kind of text, judged on the others", rows=rows, remarks=remarks,
                  details=details)  # fmt: skip


def _rows(model: str, text: str, facts: dict[str, Any]) -> list[Row]:
    what = f"{model} model on {text}"
    paper = PAPER.get(text) if model == text else None
    name = f"paper: {paper.name}" if paper else ""
    value = lambda key: getattr(paper, key, None)
    gzip = f"gzip -9: {facts['gzip_bits_per_byte']:.3f}"
    rows = [
        Row(what=what, quantity="bits per byte", measured=facts["bits_per_byte"], note=gzip),
        Row(what=what, quantity="accuracy, %", paper=value("accuracy"), measured=100 * facts["top1"], note=name),
        Row(what=what, quantity="F1", paper=value("f1"), measured=facts["macro_f1"], note=name),
    ]
    if model == text:
        rows.append(_latency(what, value("latency"), facts))
    return rows


def _latency(what: str, paper: Value, facts: dict[str, Any]) -> Row:
    if "latency_p50_ms" not in facts:
        return Row(what=what, quantity="latency, ms", paper=paper, note="not timed: latency is false")
    how = f"median of {facts['latency_calls']} forward passes of 1 x {facts['latency_tokens']} tokens"
    note = f"{how}; 95th percentile {facts['latency_p95_ms']:.1f}"
    return Row(what=what, quantity="latency, ms", paper=paper, measured=facts["latency_p50_ms"], note=note)


def _absent(name: str) -> list[Row]:
    note = f"not given: --corpora.{name} PATH"
    paper = PAPER.get(name)
    if paper is None:
        return [Row(what=name, quantity="accuracy, %", note=note)]
    what = f"{name} model on {name}"
    note = f"{note}; paper: {paper.name}"
    return [
        Row(what=what, quantity="accuracy, %", paper=paper.accuracy, note=note),
        Row(what=what, quantity="F1", paper=paper.f1, note=note),
        Row(what=what, quantity="latency, ms", paper=paper.latency, note=note),
    ]


def _matrix(order: list[str], found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Bits per byte and accuracy, a row per model, a column per text."""
    names = [name for name in order if name in found]
    cell = lambda facts: f"{facts['bits_per_byte']:.3f} ({facts['top1']:.1%})"
    lines = [["trained on \\ judged on", *names]]
    lines += [[name, *(cell(found[name][text]) for text in names)] for name in names]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names) + 1)]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "Bits per byte (accuracy):\n\n" + "\n".join([text[0], rule, *text[1:]])


if __name__ == "__main__":
    main("table8_generalisation", __doc__, Config, measure)

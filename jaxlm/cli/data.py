"""`jaxlm data ...`: clean web pages, prepare the data of a run, look at it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg, subcommand

from jaxlm.cli.common import Common, Refused, report


@dataclass(kw_only=True)
class Prepare(Common):
    """Read the text, train the tokenizer, write token shards; an interrupted preparation goes on where it was.

    Example: jaxlm data prepare configs/quickstart.yaml
    """

    config: Positional[Path]
    """YAML file of the run."""
    json: bool = False
    """One JSON object as the last line."""

    def run(self) -> int:
        from jaxlm.finetune import load
        from jaxlm.inspect import prepare_data

        text, facts = prepare_data(load(self.config, self.overrides()))
        print(text)
        report(self.json, facts)
        return 0


@dataclass(kw_only=True)
class Show(Common):
    """Show what the model sees at one step: decoded rows, document boundaries, what is not predicted.

    Example: jaxlm data show configs/quickstart.yaml --step 3
    """

    config: Positional[Path]
    """YAML file of the run."""
    step: int = 0
    """Which step, from 0."""

    def run(self) -> int:
        from jaxlm.finetune import load
        from jaxlm.inspect import show_data

        if self.step < 0:
            raise Refused(f"--step {self.step} must not be negative: steps are counted from 0")
        print(show_data(load(self.config, self.overrides()), self.step))
        return 0


@dataclass(kw_only=True)
class Clean(Common):
    """Clean web pages (.warc, .wet, .html, .jsonl) into JSON lines of text, URL and timestamp, as C4 was made.

    Every rule can be set: --language de --minimum_characters 200 --rules.javascript false --deduplicate spans.
    --print-config lists all rules with their values and what they mean.
    An interrupted cleaning goes on where it was. Train on the result with --data.path OUT.

    Example: jaxlm data clean crawl/ --out cleaned/ --blocklist words.txt
    """

    source: Annotated[Positional[str], arg(metavar="INPUT")]
    """Folder, glob or file of web pages."""
    out: Path
    """Folder for the cleaned text and its report."""
    config: Path | None = None
    """YAML file of a cleaning, as --print-config prints it; default C4's English set."""
    processes: int = 0
    """Processes that share the work; 0 means one per core."""
    print_config: bool = False
    """Print the rules that would be applied, each explained, and stop."""
    json: bool = False
    """One JSON object as the last line."""

    def run(self) -> int:
        from jaxlm.data.cleaning.clean import clean
        from jaxlm.data.cleaning.config import Cleaning
        from jaxlm.data.progress import show_progress
        from jaxlm.decode import decode, dotted, dump, override, read

        raw = {} if self.config is None else read(self.config)
        config = decode(override(raw, dotted(list(self.overrides()))), Cleaning)
        if self.print_config:
            print(dump(config, comments=True), end="")
            return 0
        found = clean(config, self.source, self.out, processes=self.processes, progress=show_progress())
        print("\n".join([*found.lines(), f"train on it: --data.path {self.out}"]))
        report(self.json, found.to_json())
        return 0


@dataclass(kw_only=True)
class Data(Common):
    """Clean web pages, prepare the data of a configuration, or look at it."""

    action: (
        Annotated[Prepare, subcommand("prepare")]
        | Annotated[Show, subcommand("show")]
        | Annotated[Clean, subcommand("clean")]
    )

    def run(self) -> int:
        self.action.rest = self.rest
        return self.action.run()

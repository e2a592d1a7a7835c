"""How every experiment is started: its YAML file, overrides on top, one report at the end.

    python -m experiments.NAME [CONFIG.yaml] [--out DIR] [--json] [--print-config] [--dotted.key value ...]

Without CONFIG.yaml the experiment reads configs/experiments/DEFAULT.yaml. `--out` is where the report and what the
experiment leaves behind go (default: runs/experiments/NAME).
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from experiments.report import Report
from jaxlm.cli import guarded
from jaxlm.decode import ConfigError, decode, dotted, dump, override, read

C = TypeVar("C")
CONFIGS = Path(__file__).parent.parent / "configs" / "experiments"


def main(
    name: str, about: str | None, kind: type[C], run: Callable[[C, Path], Report], *, default: str | None = None
) -> None:
    """Reads the configuration as `kind`, calls `run(config, out)`, prints and saves its report, and exits.

    `about` is the experiment's docstring: what `--help` prints. `default` is the file in configs/experiments that is
    read where none is given, without its suffix; by itself `name`. Exit codes are those of `jaxlm`.
    """
    arguments = sys.argv[1:]
    sys.argv[0] = f"experiments.{name}"
    sys.exit(guarded(_Experiment(name, about or "", kind, run, arguments, default or name)))


class _Experiment:
    """One call of an experiment, in the form that the command line guards."""

    def __init__(self, name: str, about: str, kind: type[Any], run: Any, arguments: Sequence[str], default: str):
        self.name, self.about, self.kind, self.execute, self.default = name, about, kind, run, default
        self.arguments = list(arguments)
        self.debug = self._flag("--debug")

    def _flag(self, flag: str) -> bool:
        found = flag in self.arguments
        if found:
            self.arguments.remove(flag)
        return found

    def _option(self, flag: str, default: Path) -> Path:
        if flag not in self.arguments:
            return default
        at = self.arguments.index(flag)
        if at + 1 == len(self.arguments):
            raise ConfigError(f"{flag} needs a value, e.g. {flag} {default}")
        value = self.arguments[at + 1]
        del self.arguments[at : at + 2]
        return Path(value)

    def run(self) -> int:
        if self._flag("--help") or self._flag("-h"):
            print(
                f"{self.about.strip()}\n\n{(__doc__ or '').replace('NAME', self.name).replace('DEFAULT', self.default)}"
            )
            return 0
        as_json, show = self._flag("--json"), self._flag("--print-config")
        out = self._option("--out", Path("runs") / "experiments" / self.name)
        named = bool(self.arguments) and not self.arguments[0].startswith("-")
        path = Path(self.arguments.pop(0)) if named else CONFIGS / f"{self.default}.yaml"
        raw = override(read(path), dotted(self.arguments))
        try:
            config = decode(raw, self.kind)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        if show:
            print(dump(config, comments=True), end="")
            return 0
        report: Report = self.execute(config, out)
        print(f"\n{report.title}\n\n{report.table()}")
        for remark in report.remarks:
            print(f"\n{remark}")
        saved = report.save(out, self.name)
        print(f"\nsaved {', '.join(map(str, saved))}")
        if as_json:
            print(json.dumps(json.loads(saved[1].read_text())))
        return 0

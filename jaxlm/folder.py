"""What lies where in a run directory, and whether a run may go on in it."""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.config import Run, build, differences
from jaxlm.decode import ConfigError, dump, read
from jaxlm.files import write_whole

APART = (".lock", "hosts", "audit")
"""What may lie in the directory of a run before its configuration does: its lock, what a launcher of many hosts keeps,
and the audit trail, which process 0 may have begun before another process looks here."""


@dataclass(frozen=True, slots=True)
class Folder:
    """The directory of one run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def explanation(self) -> Path:
        return self.path / "plan.txt"

    @property
    def plans(self) -> Path:
        """The plans that `--replan` chooses among, each usable with `jaxlm train --plan`."""
        return self.path / "plans"

    @property
    def decisions(self) -> Path:
        return self.path / "plans.jsonl"

    @property
    def remat(self) -> Path:
        """What layers kept in each epoch of `plan.remat_feedback`, what that took, and what was decided."""
        return self.path / "remat.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checks(self) -> Path:
        """Held-out checks of a run that debiases."""
        return self.path / "checks.jsonl"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def comparison(self) -> Path:
        return self.path / "predicted_vs_measured.json"

    @property
    def copies(self) -> Path:
        """Encrypted copies of checkpoints, where governance.copies names no other folder."""
        return self.path / "copies"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.model"

    @property
    def hosts(self) -> Path:
        """Logs, signs of life and reports of each host, `K.log` and `K.json`, and `events.jsonl`."""
        return self.path / "hosts"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def audit(self) -> Path:
        """Logs, public keys and proofs; never a private key."""
        return self.path / "audit"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def profile(self) -> Path:
        return self.path / "profile"

    @property
    def plot(self) -> Path:
        return self.path / "loss.png"

    def check(self) -> None:
        """Raises ConfigError unless this directory is new, empty or a run."""
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"run directory {self.path} is a file")
        if self.path.is_dir() and not self.config.exists() and any(p.name not in APART for p in self.path.iterdir()):
            raise ConfigError(
                f"run directory {self.path} holds other files and no config.yaml; choose another --run-dir"
            )

    def before(self) -> Run | None:
        """The run that was started here, if any."""
        if not self.config.exists():
            return None
        raw = read(self.config)
        if not raw:
            raise ConfigError(f"{self.config} is empty: it should hold the configuration of the run")
        return build(raw, str(self.config))

    def finished(self) -> int | None:
        """The step whose final results are written, if any are."""
        try:
            return json.loads(self.summary.read_text())["step"]
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def make(self) -> None:
        """Raises ConfigError where the directory cannot be made."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--run-dir {self.path} cannot be made: {error.strerror}") from None

    def admit(self, run: Run) -> Run | None:
        """The run that was started here, if `run` may go on with it. Raises ConfigError naming what differs."""
        self.check()
        before = self.before()
        if before is not None and (changed := differences(before, run)):
            listed = "\n".join(f"  {line}" for line in changed)
            raise ConfigError(
                f"{self.path} holds a run that this configuration cannot continue:\n{listed}\n"
                "Choose another --run-dir, or take the values back. A resumed run may change steps, logging, "
                "evaluation, checkpoint policy, sample and plan."
            )
        return before

    def write_config(self, run: Run) -> None:
        write_whole(self.config, dump(run).encode())


def open_run(path: Path) -> tuple[Folder, Run]:
    """An existing run. Raises ConfigError when there is none, naming one that looks like it."""
    folder = Folder(path)
    run = folder.before() if path.is_dir() else None
    if run is not None:
        return folder, run
    siblings = [p.name for p in path.parent.iterdir() if p.name != path.name] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f"; did you mean {path.parent / near[0]}?" if near else ""
    raise ConfigError(f"{path} is no run directory: it has no config.yaml{hint}")


def write_json(path: Path, value: dict[str, Any]) -> None:
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())

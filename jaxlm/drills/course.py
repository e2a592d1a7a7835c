"""One launched run that is disturbed on its way, what can be done to it, and what is seen of it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxlm.runtime.hosts import last_words
from jaxlm.runtime.launch import progress
from jaxlm.runtime.monitor import read_reports

LIMIT = 300.0
"""Seconds after which what is waited for counts as never."""

TOLERANCE = 1e-5
"""Relative difference of two losses in float32 that still counts as the same step."""

_RESUMED = re.compile(r"resuming .* after step (\d+)")


class NotSurvived(Exception):
    """The run did not come through, and why."""


class Skipped(Exception):
    """This machine cannot be disturbed like that, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all drills share.

    Attributes:
        config: YAML file of the run.
        out: folder for the runs of the drills.
        overrides: arguments of `jaxlm train`.
        hosts: of each run.
        steps: of each run.
        every: steps between two checkpoints.
        at: the step after which a run is disturbed.
    """

    config: Path
    out: Path
    overrides: tuple[str, ...] = ()
    hosts: int = 2
    steps: int = 40
    every: int = 5
    at: int = 13

    def train(self) -> list[str]:
        """The overrides of every run: short, in float32, and nothing beside the training."""
        own = {
            "train.steps": self.steps,
            "train.log_every": 1,
            "train.eval_every": 0,
            "train.tensorboard": "false",
            "checkpoint.every_steps": self.every,
            "checkpoint.keep_last": 3,
            "model.dtype": "float32",
            "sample.prompt": "null",
        }
        return [*(text for key, value in own.items() for text in (f"--{key}", str(value))), *self.overrides]


@dataclass
class Course:
    """A run under way. Use as a context: nothing of it goes on afterwards.

    Attributes:
        setting: what all drills share.
        name: of the drill.
        more: further arguments of `jaxlm launch local`.
        run: the run directory.
    """

    setting: Setting
    name: str
    more: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    run: Path = field(init=False)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.run = self.setting.out / self.name

    def __enter__(self) -> "Course":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.continue_all()
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def start(self) -> None:
        """Starts the launcher, or starts it again."""
        self.run.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "jaxlm", "launch", "local", str(self.setting.config)]
        command += ["--hosts", str(self.setting.hosts), "--run-dir", str(self.run), "--platform", "cpu"]
        command += ["--silent-after", "8", "--stall-seconds", "8", *self.more, *self.setting.train()]
        with self.output.open("ab") as log:
            environment = {**os.environ, **self.environment}
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    @property
    def output(self) -> Path:
        """What the launcher says."""
        return self.setting.out / f"{self.name}.log"

    @property
    def step(self) -> int:
        return progress(self.run)

    @property
    def attempts(self) -> int:
        log = self.run / "hosts" / "0.log"
        return log.read_text(errors="replace").count("--- attempt") if log.exists() else 0

    @property
    def resumed(self) -> int:
        """The step that the last attempt went on from; 0 where it began anew."""
        text = (self.run / "hosts" / "0.log").read_text(errors="replace")
        found = _RESUMED.findall(text.rsplit("--- attempt", 1)[-1])
        return int(found[-1]) if found else 0

    def checkpoints(self) -> list[int]:
        """Steps whose checkpoint is complete, newest first."""
        return sorted((int(p.parent.name) for p in self._manifests() if p.parent.name.isdigit()), reverse=True)

    def newest(self) -> int:
        """The step of the newest complete checkpoint. Raises NotSurvived where there is none."""
        if not (found := self.checkpoints()):
            raise NotSurvived("no complete checkpoint before the fault")
        return found[0]

    def _manifests(self) -> list[Path]:
        return list((self.run / "checkpoints").glob("*/manifest.json"))

    def pid(self, host: int) -> int:
        """Of the process that is this host now. Raises NotSurvived where nobody says."""
        for report in read_reports(self.run / "hosts"):
            if report["host"] == host:
                return report["pid"]
        raise NotSurvived(f"host {host} had written no report before the fault (train.monitor)")

    def send(self, host: int, number: int) -> None:
        os.kill(self.pid(host), number)

    def continue_all(self) -> None:
        for report in read_reports(self.run / "hosts"):
            if Path(f"/proc/{report['pid']}").exists():
                os.kill(report["pid"], signal.SIGCONT)

    def until(self, condition: Callable[[], bool], what: str, *, ended: bool = False) -> float:
        """Waits; the seconds that it took. Raises NotSurvived where it never comes, or the launcher ends before."""
        began = time.monotonic()
        while not condition():
            assert self.process is not None
            if not ended and self.process.poll() is not None and not condition():
                said = last_words(self.output.read_text(errors="replace"))
                raise NotSurvived(f"ended with exit code {self.process.returncode} before {what}: {said}")
            if time.monotonic() - began > LIMIT:
                raise NotSurvived(f"no {what} within {LIMIT:.0f} s; see {self.output}")
            time.sleep(0.02)
        return time.monotonic() - began

    @property
    def ended(self) -> bool:
        """Whether the launcher has ended, however."""
        return self.process is not None and self.process.poll() is not None

    def beyond(self, step: int) -> None:
        """Waits for a later step, or the end, where that was the last one."""
        self.until(lambda: self.step > step or self.ended, f"step beyond {step}")

    def reach(self, step: int) -> None:
        self.until(lambda: self.step >= step, f"step {step}")

    def finish(self, code: int = 0, *, unbroken: str = "") -> None:
        """Waits for the end. Raises NotSurvived where it comes with another exit code, or after a restart for which
        there was no reason: `unbroken` says why."""
        assert self.process is not None
        process = self.process
        self.until(lambda: process.poll() is not None, "end", ended=True)
        if process.returncode != code:
            said = last_words(self.output.read_text(errors="replace"))
            raise NotSurvived(f"ended with exit code {process.returncode}, expected {code}: {said}")
        if unbroken and self.attempts != 1:
            raise NotSurvived(f"the job was restarted, {unbroken}")

    def records(self) -> list[dict[str, Any]]:
        lines = (self.run / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def events(self) -> list[dict[str, Any]]:
        path = self.run / "hosts" / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def same_run(got: Sequence[Mapping[str, Any]], want: Sequence[Mapping[str, Any]]) -> None:
    """Raises NotSurvived unless every step is there once, with the same batches and the same loss to 1e-5."""
    steps = [record["step"] for record in got]
    if steps != [record["step"] for record in want]:
        raise NotSurvived(f"its {len(steps)} records are not those of steps 1 to {want[-1]['step']}, each once")
    for mine, other in zip(got, want, strict=True):
        if mine["batches"] != other["batches"]:
            raise NotSurvived(f"step {mine['step']} saw other tokens than in the undisturbed run")
        if abs(mine["loss"] - other["loss"]) > TOLERANCE * abs(other["loss"]):
            raise NotSurvived(
                f"the loss of step {mine['step']} is {mine['loss']}, in the undisturbed run {other['loss']}"
            )

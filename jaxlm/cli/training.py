"""`jaxlm train`."""

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, cast

from tyro.conf import Positional, arg

from jaxlm.cli.common import Member

if TYPE_CHECKING:
    from jaxlm.config import Run


@dataclass(kw_only=True)
class Train(Member):
    """Plan, train, checkpoint and evaluate; resumes the same run directory by itself.

    Every key of the configuration can be overridden: --model.layers 8 --optim.lr 1e-3.
    --print-config lists all keys with their values and what they mean.
    Presets for model.preset: gpt2-124m gpt2-350m gpt2-774m gpt2-1558m llama-1b llama-7b llama-8b nano.

    Example: jaxlm train configs/quickstart.yaml --train.steps 200 --run-dir runs/short
    """

    config: Positional[Path]
    """YAML file of the run."""
    run_dir: Path | None = None
    """Where everything is written; default runs/NAME."""
    plan: Path | None = None
    """Replay a saved plan (plan.json) instead of searching."""
    cluster: Path | None = None
    """Plan with what `jaxlm probe` measured here, a YAML file; default what JAX reports."""
    replan: bool = False
    """Try the next best plans while training and change to one that proves faster; see train.replan."""
    allow_unsafe: bool = False
    """Accept ways for gradients to travel that are known to spoil training, to measure what they cost."""
    from_: Annotated[str | None, arg(name="from", metavar="RUN[@STEP]")] = None
    """Start from the weights of another run, with its tokenizer; model keys left out are its own."""
    profile: Annotated[str | None, arg(metavar="START:STOP")] = None
    """Record these steps, both included and numbered as in the log, into the run directory, for xprof or Perfetto."""
    allow_rollback: bool = False
    """Go on from an older checkpoint than the audit log knows; the log says so for ever."""
    allow_unverified: bool = False
    """Go on from a checkpoint whose signature cannot be verified; the log says so for ever."""
    print_config: bool = False
    """Print the resolved configuration, each key explained, and stop."""

    def load(self) -> "Run":
        """The configuration as this command line has it. Raises ConfigError."""
        from jaxlm.finetune import load

        overrides = [*self.overrides(), *(["--train.replan.enabled", "true"] if self.replan else [])]
        overrides += ["--plan.allow_unsafe", "true"] if self.allow_unsafe else []
        return load(self.config, overrides, start=self.from_, run_dir=self.run_dir, training=True)

    def run(self) -> int:
        from jaxlm.decode import dump
        from jaxlm.trainer.profile import Steps

        run = self.load()
        if self.print_config:
            print(dump(run, comments=True), end="")
            return 0
        profile = None if self.profile is None else Steps.parse(self.profile, run.train.steps)
        from jaxlm.run import train
        from jaxlm.runtime.allocator import keep_freed
        from jaxlm.setup import Options

        keep_freed()
        sys.stdout = cast(TextIO, Sturdy(sys.stdout))
        directory = self.run_dir or Path("runs") / run.name
        chosen = Options(
            job=self.job(),
            plan_file=self.plan,
            cluster_file=self.cluster,
            profile=profile,
            again=again(),
            allow_rollback=self.allow_rollback,
            allow_unverified=self.allow_unverified,
        )
        return train(run, directory, chosen)


class Sturdy:
    """Standard output that a run outlives: when its reader goes away (`| head`), training goes on in silence."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError as error:
            self._lost(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            why = "nobody reads standard output any more"
        else:
            why = f"standard output cannot be written ({error.strerror})"
        with contextlib.suppress(OSError):  # standard error may have gone the same way
            print(f"jaxlm: {why}; the run goes on, see metrics.jsonl", file=sys.stderr, flush=True)
        self.stream = open(os.devnull, "w")  # noqa: SIM115 (it lives as long as the process)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def again() -> str:
    """How a person started this program, for the commands that it prints."""
    return "uv run jaxlm" if os.environ.get("UV") else "jaxlm"

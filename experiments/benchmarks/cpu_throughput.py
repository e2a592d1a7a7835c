"""How fast is a training step on this machine's processor, beside torch, and what does the host add to each step?

Question: tokens per second of ours and of torch on the same models, in turns; and how much longer a step of
          `jaxlm train` is than the compiled step alone, for a model of one layer.
Aims:     at least torch eager for the model of 10 million parameters; less than 1 ms per step beyond the compiled call.
Cost:     about five minutes on two cores. Without torch our side is timed alone and the report says so.
Run:      python -m experiments.benchmarks.cpu_throughput [--entries nano] [--torch_python PYTHON] [--json]
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.entry import main
from experiments.report import Report, Row
from experiments.throughput.contest import How, contest, rows
from experiments.throughput.pace import paced
from experiments.throughput.suite import CPU, pick
from jaxlm.decode import ConfigError
from jaxlm.runtime.allocator import keep_freed

AIM_MS = 1.0
WINDOW = 10
"""Steps whose mean time is one record of a run, as by default."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What is timed.

    Attributes:
        entries: `nano` (10 M parameters), `small` (42 M), apart by commas; empty: both.
        mode: of the torch side: `eager`, or a mode of torch.compile (which needs a C++ compiler).
        torch_python: the Python with torch; empty: this one.
        rounds: in which both sides take turns.
        steps: of each side in a round.
        warm: steps before the first round.
        host_steps: steps of the one-layer model; 0 leaves it out.
    """

    entries: str = ""
    mode: str = "eager"
    torch_python: str = ""
    rounds: int = 8
    steps: int = 6
    warm: int = 4
    host_steps: int = 600

    def __post_init__(self) -> None:
        if min(self.rounds, self.steps, self.warm) < 1:
            raise ValueError("rounds, steps and warm must be at least 1")
        if self.host_steps and self.host_steps < 10 * WINDOW:
            raise ValueError(f"host_steps={self.host_steps} must be 0 or at least {10 * WINDOW}")


def execute(config: Config, out: Path) -> Report:
    entries = pick(CPU, config.entries)
    if jax.default_backend() != "cpu":
        raise ConfigError("this benchmark is for processors: start it with JAX_PLATFORMS=cpu")
    how = How(
        rounds=config.rounds,
        steps=config.steps,
        warm=config.warm,
        mode=config.mode,
        torch_python=config.torch_python or sys.executable,
        profile=False,
        cold=False,
        tolerance=1e-4,
    )
    found = [contest(entry, how, out, lambda text: print(text, file=sys.stderr, flush=True)) for entry in entries]
    made = [row for each in found for row in rows(each, on_gpu=False)]
    details: dict[str, Any] = {"found": found}
    if config.host_steps:
        details["host"] = host = overhead(config.host_steps)
        what = "a model of one layer, 16 x 32 tokens"
        met = "met" if host["added_ms"] < AIM_MS else "missed"
        made += [
            Row(what=what, quantity="ms per step, the compiled step alone", measured=host["alone_ms"]),
            Row(what=what, quantity="ms per step, jaxlm train", measured=host["train_ms"]),
            Row(what=what, quantity="ms that the host adds", measured=host["added_ms"], note=f"aim {AIM_MS:g}: {met}"),
        ]
    remarks = [f"{each['entry']['name']}: torch: {each['no_torch']}" for each in found if "no_torch" in each]
    return Report(title="A training step on a processor, beside torch", rows=made, remarks=remarks, details=details)


RUN = """\
name: host
data: {{path: {texts}, cache: {cache}, sequence: 32, validation_fraction: 0.2, tokenizer: {{vocab: 340}}}}
model: {{layers: 1, embed: 32, heads: 2, mlp: 64}}
optim: {{lr: 1e-3, warmup: 1}}
train: {{steps: {steps}, batch: 16, log_every: {window}}}
checkpoint: {{every_steps: {never}}}
"""

ALONE = """
import json, sys
from experiments.benchmarks.cpu_throughput import alone
print(json.dumps(alone(sys.argv[1], int(sys.argv[2]))))
"""


def overhead(steps: int) -> dict[str, float]:
    """Milliseconds per step of `jaxlm train` as it is by default (its data, its metrics, its audit trail), of the same
    compiled step called in a row, and their difference; medians of means of ten steps, each in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="jaxlm-host-") as name:
        home = Path(name)
        (home / "texts").mkdir()
        rng = np.random.default_rng(0)
        for number in range(12):
            words = [f"{i:x}" for i in rng.integers(0, 5000, 4000)]
            (home / "texts" / f"{number}.txt").write_text(" ".join(words))
        config = home / "host.yaml"
        config.write_text(
            RUN.format(texts=home / "texts", cache=home / "cache", steps=steps, window=WINDOW, never=10 * steps)
        )
        environment = os.environ | {
            "XDG_CACHE_HOME": str(home),
            "JAXLM_KEYS": str(home / "keys"),
            "JAX_PLATFORMS": "cpu",
        }
        train = [sys.executable, "-m", "jaxlm", "train", str(config), "--run-dir", str(home / "run")]
        done = subprocess.run(train, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(
                f"jaxlm train ended with code {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}"
            )
        records = [json.loads(line) for line in (home / "run" / "metrics.jsonl").read_text().splitlines()]
        seconds = [r["step_seconds"] for r in records if "step_seconds" in r][1:]
        command = [sys.executable, "-c", ALONE, str(home / "run"), str(steps)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        single = json.loads(done.stdout.splitlines()[-1])
    train_ms = 1e3 * statistics.median(seconds)
    return {"train_ms": train_ms, "alone_ms": single, "added_ms": train_ms - single}


def alone(run: str, steps: int) -> float:
    """Milliseconds of the compiled step of a run, called again and again on one batch, one step in flight; as above."""
    from experiments.weight_gradient import RandomTokens
    from jaxlm.config import Run
    from jaxlm.decode import decode, read
    from jaxlm.session import Session, numerics, resolve
    from planners.plan import Plan

    keep_freed()  # as `jaxlm train` does
    configured = decode(read(Path(run) / "config.yaml"), Run)
    model = resolve(configured, configured.model.vocab or configured.data.tokenizer.vocab)
    plan = Plan.load(Path(run) / "plan.json")
    session = Session(configured, model, numerics(configured.model, "cpu"), plan)
    with jax.set_mesh(session.mesh):
        feed = session.feed(
            RandomTokens(model.vocab, configured.data.sequence), plan.batch.accumulation, plan.batch.microbatch
        )
        tokens = feed[0]
        _, times = paced(session.compile_step(tokens), session.fresh(), tokens, steps)
    windows = [statistics.fmean(times[at : at + WINDOW]) for at in range(WINDOW, steps - WINDOW, WINDOW)]
    return 1e3 * statistics.median(windows)


if __name__ == "__main__":
    main("cpu_throughput", __doc__, Config, execute)

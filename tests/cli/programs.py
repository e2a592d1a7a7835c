"""Real `jaxlm` processes on a tiny corpus."""

import atexit
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.compiling import flags

CONFIG = """\
name: tiny
data:
  path: {texts}
  cache: {cache}
  sequence: 32
  validation_fraction: 0.2
  tokenizer: {{vocab: 360}}
model: {{layers: 2, embed: 32, heads: 4, mlp: 64, dropout: 0.1}}
optim: {{lr: 3e-3, warmup: 10}}
train: {{steps: 120, batch: 8, log_every: 1}}
checkpoint: {{every_steps: 20}}
sample: {{prompt: null}}
"""

WORDS = ["the", "of", "and", "to", "in", "that", "was", "his", "with", "as", "had", "her", "for", "on", "at", "she"]


def write_texts(folder: Path, files: int = 12, words: int = 900) -> Path:
    """Text files of English words in a fixed pseudo-random order."""
    folder.mkdir(parents=True, exist_ok=True)
    state = 12345
    for number in range(files):
        text = []
        for _ in range(words):
            state = (1103515245 * state + 12345) % 2**31
            text.append(WORDS[(state >> 16) % len(WORDS)] + ("\n" if state % 11 == 0 else ""))
        (folder / f"{number:02d}.txt").write_text(" ".join(text))
    return folder


def write_config(folder: Path) -> Path:
    """A configuration with its own texts and data cache."""
    path = folder / "tiny.yaml"
    path.write_text(CONFIG.format(texts=write_texts(folder / "texts"), cache=folder / "cache"))
    return path


def start(
    arguments: Sequence[str | Path], *, home: Path, devices: int = 1, program: Sequence[str] = ("-m", "jaxlm")
) -> subprocess.Popen[str]:
    """A `jaxlm` process with its own user cache and that many CPU devices; `program` says what Python runs."""
    environment = {
        k: v for k, v in os.environ.items() if k == "JAXLM_KEYS" or not k.startswith(("JAX", "XLA", "UV", "PYTHONDONT"))
    }
    environment |= {"XDG_CACHE_HOME": str(home), "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONUNBUFFERED": "1"}
    environment |= {"XLA_FLAGS": flags()}
    environment |= {"JAX_COMPILATION_CACHE_DIR": _programs(), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05"}
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@functools.cache
def _programs() -> str:
    """Where the processes of this session keep what they compiled, for each other: the same tiny model again and again.

    One folder per pytest worker, whose processes run one after the other: JAX does not write it in one piece.
    """
    folder = tempfile.mkdtemp(prefix="jaxlm-test-programs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def finish(process: subprocess.Popen[str], code: int = 0, seconds: float = 180) -> str:
    """What the process printed; it must end with the exit code."""
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode == code, f"exit code {process.returncode}, expected {code}:\n{output}"
    return output


def signal_at(process: subprocess.Popen[str], metrics: Path, step: int, number: signal.Signals) -> None:
    """Sends the signal once the metrics file holds that step."""
    deadline = time.monotonic() + 120
    while not metrics.exists() or not any(r["step"] >= step for r in records(metrics)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"step {step} was never reached"
        time.sleep(0.02)
    process.send_signal(number)


def records(metrics: Path) -> list[dict]:
    lines = metrics.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def losses(run: Path) -> list[tuple[int, float, float]]:
    """Step, loss and gradient norm of every record: floats written in full, so equality is bit equality."""
    return [(r["step"], r["loss"], r["grad_norm"]) for r in records(run / "metrics.jsonl")]

"""What does the audit trail cost?

Question: do signing, logging, hashing tensors, asking a witness and encrypting take less than 1% of a run's time and
          processor?
Cost:     6 to 8 minutes for 10 pairs of the quickstart's model on two quiet cores; for gpt2-124m see `Config.model`.
Run:      python -m experiments.benchmarks.governance_overhead [--model gpt2-124m --pairs 2]

The same run, 1 x 128 tokens per step, with governance off, on, and on with a witness in another process and an
encrypted copy of each checkpoint (governance.recipients), in turns, each in a fresh process with two checkpoints.
Compared are, pair by pair, the seconds of the training loop with its checkpoints, the seconds of the whole process, and
its processor seconds, children included; the median of the pairs counts, with its quartiles. The witness, on another
machine in earnest, is not counted; what it used is printed. Where others use the machine too, look at processor
seconds, and expect a few percent of noise in each pair. What the threads of one more run spend on which part of the
trail is listed as well: that is far steadier, and leaves out what is inside the compiled step (norms).

With --policies true there is a fourth setting, on with a policy. Runs that are there are not repeated: after an
interruption the same command goes on, in the same --out. Beside them durable appends per second, what a judgement of a
policy takes by itself, and what hashing costs against OpenSSL alone.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pyrage

from experiments.entry import main
from experiments.report import Report, Row
from jaxlm.governance.engine import Engine
from jaxlm.governance.keys import Keys
from jaxlm.governance.log import Log
from jaxlm.governance.notes import LogKey
from jaxlm.governance.policy import load, train_facts

LIMIT = 1.0
"""Percent that the trail may cost."""
JUDGEMENTS = 500
WHOLE = "on + witness + encryption"
MODELS = {
    "quickstart": "configs/quickstart.yaml --train.batch 1 --train.eval_batch 32 --sample.prompt null",
    # Text and vocabulary of quickstart: what the words are changes nothing of what a step or a checkpoint costs.
    "gpt2-124m": "configs/gpt2-124m.yaml --data.path stdlib --data.tokenizer.vocab 4096 --data.sequence 128 "
    "--data.validation_fraction 0.05 --train.batch 1 --train.eval_batch 8 --train.eval_every 0 --train.eval_batches 2 "
    "--optim.warmup 20 --checkpoint.every_seconds null --sample.prompt null",
}
"""The command line of each run. A step is 1 x 128 tokens, which is where a trail costs most, and what has nothing to do
with it is left out: a sample at the end, evaluation in small batches."""
MEASURES = {"loop": "seconds of training", "wall": "seconds of the process", "cpu": "processor seconds"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What is measured.

    Attributes:
        model: whose run, a name in MODELS. Fewer steps of gpt2-124m are no short cut: its checkpoints stay as dear.
        arguments: more of its command line.
        steps: of each run; it saves half way and at the end.
        pairs: runs with each setting; 0 leaves only the run whose threads are timed, which hardly minds other work.
        policies: whether there is a setting "on + policy" too, which is a quarter more runs.
        policy: the rules of the setting "on + policy", and of the judgements that are timed alone.
        appends: batches of 256 entries of 300 bytes that are made durable.
    """

    model: str = "quickstart"
    arguments: str = ""
    steps: int = 400
    pairs: int = 10
    policies: bool = False
    policy: str = "configs/policies/sample.yaml"
    appends: int = 100

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"model={self.model!r} must be one of {', '.join(MODELS)}")
        if self.pairs < 0:
            raise ValueError(f"pairs={self.pairs} must not be negative")


def run(config: Config, out: Path) -> Report:
    out.mkdir(parents=True, exist_ok=True)
    keys = Keys(out.absolute() / "keys")
    environment = os.environ | {"JAXLM_KEYS": str(keys.folder)}
    node = str(LogKey("node", keys.log()).verifier)
    witness = subprocess.Popen(
        [sys.executable, "-m", "jaxlm", "audit", "witness", "--port", "0", "--name", "w.example", "--node", node],
        env=os.environ | {"JAXLM_KEYS": str(out.absolute() / "witness")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert witness.stdout is not None
    try:
        (name, *rest) = witness.stdout.readline().split()
        (out / "policy").write_text(f"{name} {' '.join(rest)}\nquorum {rest[0]}\n")
        settings = {
            "off": ["--governance.enabled", "false"],
            "on": [],
            WHOLE: ["--governance.witnesses", str(out.absolute() / "policy"), *_encrypted(out)],
        }
        if config.policies:
            settings["on + policy"] = ["--governance.policy", config.policy]
        found = _Kept(config, out / "runs.jsonl")
        if not config.pairs or not found.complete(settings):
            _warm(config, out / "warm", settings["off"], environment)
            _warm(config, out / "warm", settings["on"], environment)
        for pair in range(config.pairs):
            for name in list(settings) if pair % 2 else list(settings)[::-1]:
                if not found.has(pair, name):
                    shutil.rmtree(out / "copies", ignore_errors=True)
                    found.add(pair, name, _train(config, out / "run", settings[name], environment))
            print(f"pair {pair + 1} of {config.pairs}: {found.sentence(pair)}", flush=True)
        parts = _parts(config, out, settings[WHOLE], environment)
        parts.append(Row(what="witness", quantity="processor seconds, all runs", measured=_used(witness.pid)))
    finally:
        witness.terminate()
        witness.wait()
    runs = found.by_setting(settings)
    rows, remarks = _rows(runs) if config.pairs else ([], ["No pairs were run: only the clocks of one run's threads."])
    rows += [*parts, _appends(config, keys, out), *_judgements(Path(config.policy)), *_hashing(out)]
    return Report(
        title=f"Cost of the audit trail, {config.model}, {config.steps} steps",
        rows=rows,
        remarks=remarks,
        details={"runs": runs},
    )


class _Kept:
    """Runs that were measured, one JSON line each; those of another configuration are left alone."""

    def __init__(self, config: Config, path: Path):
        self._path = path
        self._what = [config.model, config.arguments, config.steps]
        self._runs: dict[tuple[int, str], dict[str, float]] = {}
        for line in path.read_text().splitlines() if path.is_file() else []:
            run = json.loads(line)
            if run["what"] == self._what:
                self._runs[run["pair"], run["setting"]] = run["used"]
        self._pairs = config.pairs

    def has(self, pair: int, name: str) -> bool:
        return (pair, name) in self._runs

    def complete(self, names: Iterable[str]) -> bool:
        return all(self.has(pair, name) for pair in range(self._pairs) for name in names)

    def add(self, pair: int, name: str, used: dict[str, float]) -> None:
        self._runs[pair, name] = used
        with self._path.open("a") as file:
            print(json.dumps({"what": self._what, "pair": pair, "setting": name, "used": used}), file=file)

    def by_setting(self, names: Iterable[str]) -> dict[str, list[dict[str, float]]]:
        return {name: [self._runs[pair, name] for pair in range(self._pairs)] for name in names}

    def sentence(self, pair: int) -> str:
        runs = {name: used for (other, name), used in self._runs.items() if other == pair}
        parts = []
        for name, used in runs.items():
            more = "" if name == "off" else f" ({100 * (used['cpu'] / runs['off']['cpu'] - 1):+.1f}%)"
            parts.append(f"{name} {used['cpu']:.2f} s cpu{more}, {used['wall']:.2f} s")
        return "; ".join(sorted(parts, key=lambda part: not part.startswith("off ")))


def _encrypted(out: Path) -> list[str]:
    """The setting in which each checkpoint is copied for somebody who can read it."""
    to = str(pyrage.x25519.Identity.generate().to_public())
    return ["--governance.recipients", f"[{to}]", "--governance.copies", str(out.absolute() / "copies")]


def _command(config: Config, folder: Path, setting: list[str]) -> list[str]:
    """What `jaxlm` is given."""
    often = ["--train.steps", str(config.steps), "--checkpoint.every_steps", str(config.steps // 2)]
    return [
        "train",
        *MODELS[config.model].split(),
        "--run-dir",
        str(folder),
        *often,
        *config.arguments.split(),
        *setting,
    ]


def _parts(config: Config, out: Path, setting: list[str], environment: dict[str, str]) -> list[Row]:
    """Where the processor seconds of the trail go, in one more run."""
    for name in ("run", "copies"):
        shutil.rmtree(out / name, ignore_errors=True)
    module = [sys.executable, "-m", "experiments.workers.trail_parts", str(out / "parts.json")]
    command = [*module, *_command(config, out / "run", setting)]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    found = json.loads((out / "parts.json").read_text())
    whole = found.pop("whole process")
    found["all of these"] = sum(found.values())
    return [
        Row(
            what="part of the trail",
            quantity=part,
            measured=seconds,
            note=f"{100 * seconds / whole:.2f}% of {whole:.1f} s",
        )
        for part, seconds in sorted(found.items(), key=lambda item: item[1])
    ]


def _warm(config: Config, folder: Path, setting: list[str], environment: dict[str, str]) -> None:
    """Leaves behind the prepared data and the compiled programs of a run, which is stopped after its first step."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "jaxlm", *_command(config, folder, setting)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not (folder / "metrics.jsonl").exists():
            time.sleep(0.2)
        process.terminate()  # it saves, and says how to go on


def _used(pid: int) -> float:
    """Processor seconds of a process until now."""
    return sum(psutil.Process(pid).cpu_times()[:2])


def _train(config: Config, folder: Path, setting: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Seconds of the loop, of the process, and of its processors."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "jaxlm", *_command(config, folder, setting)]
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
    wall = time.monotonic() - began
    summary = json.loads((folder / "summary.json").read_text())
    return {"loop": summary["train_seconds"], "wall": wall, "cpu": used.ru_utime + used.ru_stime}


def _rows(found: dict[str, list[dict[str, float]]]) -> tuple[list[Row], list[str]]:
    rows, remarks = [], []
    for key, what in MEASURES.items():
        off = [each[key] for each in found["off"]]
        rows.append(Row(what="off", quantity=what, measured=statistics.median(off)))
        for name in [name for name in found if name != "off"]:
            percents = sorted(100 * (on[key] / one - 1) for on, one in zip(found[name], off, strict=True))
            cost = statistics.median(percents)
            low, high = percents[len(percents) // 4], percents[(3 * len(percents)) // 4]
            rows.append(
                Row(what=name, quantity=f"percent more {what}", measured=cost, note=f"{low:+.2f} to {high:+.2f}")
            )
            verdict = "met" if cost < LIMIT else "MISSED"
            remarks.append(f"{name}, {what}: {verdict} ({cost:+.2f}%, target below {LIMIT:g}%)")
    return rows, remarks


def _appends(config: Config, keys: Keys, out: Path) -> Row:
    """Entries that are safe from a power cut, per second of wall time, on the disk of `out`."""
    with tempfile.TemporaryDirectory(dir=out) as folder, Log(Path(folder) / "log", LogKey("x", keys.log())) as log:
        batch = [os.urandom(300) for _ in range(256)]
        began = time.perf_counter()
        for _ in range(config.appends):
            log.append(batch)
        rate = config.appends * 256 / (time.perf_counter() - began)
    verdict = "met" if rate >= 10_000 else "MISSED"
    return Row(what="log", quantity="durable appends per second", measured=rate, note=f"target 10,000: {verdict}")


def _judgements(path: Path) -> list[Row]:
    """Milliseconds from the question to the answer of the process that judges, all rules over training at once, those
    over layers left out, which are judged as rarely as there are new norms."""
    loaded = load(path)
    rules = [rule for rule in loaded.rules(requests=False) if rule.name not in loaded.layered]
    facts = {
        **train_facts({"step": 200, "loss": 3.0, "grad_norm": 1.0, "step_seconds": 0.1, "tokens_per_second": 1e4}),
        **{"eval": {}, "fairness": {}, "dp": {}, "log": {"size": 100, "waiting": 1}},
    }
    taken = []
    with Engine(rules, 10.0) as engine:
        engine.judge(facts)
        judge, own = psutil.Process(engine.pid), time.process_time()
        before = sum(judge.cpu_times()[:2])
        for step in range(JUDGEMENTS):
            now = facts | {"step": step}
            began = time.perf_counter()
            engine.judge(now)
            taken.append(1e3 * (time.perf_counter() - began))
        own, theirs = time.process_time() - own, sum(judge.cpu_times()[:2]) - before
    middle, late = statistics.median(taken), statistics.quantiles(taken, n=100)[98]
    what = f"policy, {len(rules)} rules"
    return [
        Row(what=what, quantity="milliseconds per judgement", measured=middle, note="while the next step runs"),
        Row(what=what, quantity="milliseconds per judgement, 99th percentile", measured=late),
        Row(what=what, quantity="processor ms per judgement, its process", measured=1e3 * theirs / JUDGEMENTS),
        Row(what=what, quantity="processor ms per judgement, ours", measured=1e3 * own / JUDGEMENTS),
    ]


def _hashing(out: Path) -> list[Row]:
    """One core: SHA-256 as checkpoints are hashed, and as OpenSSL's own benchmark does it."""

    block, count = bytes(1 << 26), 8
    began = time.process_time()
    for _ in range(count):
        hashlib.sha256(block).digest()
    ours = count * len(block) / (time.process_time() - began) / 1e9
    rows = [Row(what="hashing", quantity="GB/s per core, ours", measured=ours)]
    if shutil.which("openssl"):
        said: Any = (
            subprocess.run(
                ["openssl", "speed", "-elapsed", "-seconds", "2", "-bytes", "16777216", "-evp", "sha256"],
                capture_output=True,
                text=True,
                check=True,
            )
            .stdout.splitlines()[-1]
            .split()[-1]
        )
        rows.append(
            Row(what="hashing", quantity="GB/s per core, openssl speed", measured=float(said.rstrip("k")) / 1e6)
        )
    return rows


if __name__ == "__main__":
    main("governance_overhead", __doc__, Config, run)

"""What do private training and its ledger cost, and are its epsilons right?

Question: how much slower and how much worse is a run with a budget, how many charges per second does the ledger take
          from one and from 64 spenders, and do the accountants give the published epsilons?
Cost:     three minutes on two cores.
Run:      python -m experiments.benchmarks.private_training [--vectors dp_epsilon.json]

The same model of Python sources is trained once without and once with each budget, on documents cut to a row, with the
vocabulary of other text; held-out bits per byte say what privacy costs in quality at this size, which is tiny. Step
times are the mean over all steps of the loop. Published epsilons come from a file of reference values, where one is
given: theirs stand under published, ours under measured.
"""

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from experiments.entry import main
from experiments.report import Report, Row
from experiments.runs import Sections, merged, run_of, sections, trained
from jaxlm.data.config import DataConfig, TokenizerConfig
from jaxlm.data.corpus import MODEL
from jaxlm.data.prepare import prepare
from jaxlm.data.progress import silent
from jaxlm.privacy.accounting import ORDERS, pld_epsilon, rdp_epsilon
from jaxlm.privacy.budget import Budget
from jaxlm.privacy.ledger import Ledger
from jaxlm.privacy.mechanisms import Mechanism
from jaxlm.replaying import replay_run

RELATIVE = 1e-4
QUERY = Mechanism("gaussian", 1.0, 0.01)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What is measured.

    Attributes:
        base: the run without privacy, as a file or in sections; its vocabulary is learned from the text of `public`.
        public: text that is protected by nobody.
        vocab: tokens learned from it.
        steps: of each run.
        epsilons: a run for each budget.
        delta: of all of them.
        charges: that one process makes.
        processes: with which they are made at once.
        threads: of each of these.
        vectors: a JSON file of published epsilons; null compares none.
    """

    base: Any = None
    public: str = "jaxlm"
    vocab: int = 1024
    steps: int = 40
    epsilons: tuple[float, ...] = (8.0, 2.0)
    delta: float = 1e-5
    charges: int = 200
    processes: int = 4
    threads: int = 16
    vectors: str | None = None


def run(config: Config, out: Path) -> Report:
    out.mkdir(parents=True, exist_ok=True)
    rows, remarks = _published(config.vectors)
    rows += _ledger(config, out)
    trained_rows, details = _trained(config, out)
    return Report(
        title="Private training: epsilons, ledger, steps",
        rows=rows + trained_rows,
        remarks=remarks,
        details=details,
    )


def _published(file: str | None) -> tuple[list[Row], list[str]]:
    if file is None:
        return [], ["published epsilons: none compared, --vectors names no file"]
    rows, worst = [], 0.0
    for row in json.loads(Path(file).read_text())["published_dpsgd"]:
        if "epsilon" not in row or row["accountant"] not in ("RDP", "PLD"):
            continue
        # Sampling without replacement counts as Poisson sampling with twice the sensitivity.
        noise = row["noise_multiplier"] / (2 if "fixed batch" in row.get("sampling", "") else 1)
        spent = [(Mechanism("gaussian", noise, row["sampling_rate"]), row["steps"])]
        whole = [order for order in ORDERS if order % 1 == 0]  # jax-privacy's orders leave out 9.2
        orders = whole if row["id"].startswith("jaxp") else ORDERS
        by_rdp = row["accountant"] == "RDP"
        found = rdp_epsilon(spent, row["delta"], orders) if by_rdp else pld_epsilon(spent, row["delta"])
        error = abs(found / row["epsilon"] - 1)
        worst = max(worst, error)
        rows.append(
            Row(
                what=row["id"],
                quantity=f"epsilon, {row['accountant']}",
                published=row["epsilon"],
                measured=found,
                note=f"relative difference {error:.1e}",
            )
        )
    verdict = "met" if worst <= RELATIVE else "MISSED"
    return rows, [f"published epsilons to {RELATIVE:g}: {verdict} (worst {worst:.1e})"]


def _ledger(config: Config, out: Path) -> list[Row]:
    """Charges that are durable, settled with the next one as training does it, per second of wall time."""
    many = config.processes * config.threads
    with tempfile.TemporaryDirectory(dir=out) as folder:
        path = Path(folder) / "ledger"
        ledger, before = Ledger(path, Budget(1e6, 1e-5, {8.0: 1.0})), None
        began = time.perf_counter()
        for _ in range(config.charges):
            before = ledger.reserve(QUERY, settles=before)
        alone = config.charges / (time.perf_counter() - began)
        each = -(-config.charges // config.processes)
        command = [sys.executable, "-m", "experiments.benchmarks.private_training", "spend", str(path)]
        running = [
            subprocess.Popen([*command, str(config.threads), str(each)], stdout=subprocess.PIPE, text=True)
            for _ in range(config.processes)
        ]
        times = [json.loads(process.communicate()[0]) for process in running]
        seconds = max(end for _, end in times) - min(start for start, _ in times)
        count = ledger.spending().queries[QUERY]
        right = count == config.charges + each * config.processes
    note = "every charge counted once" if right else f"MISSED: {count} charges counted"
    return [
        Row(what="ledger", quantity="durable charges per second, one spender", measured=alone),
        Row(
            what="ledger",
            quantity=f"durable charges per second, {many} spenders",
            measured=each * config.processes / seconds,
            note=note,
        ),
    ]


def spend(path: str, threads: str, charges: str) -> None:
    """A process of `_ledger`: prints when it began and ended, in seconds of the system's clock."""
    ledger = Ledger(Path(path))
    began = time.monotonic()
    with ThreadPoolExecutor(int(threads)) as pool:
        list(pool.map(lambda _: ledger.settle(ledger.reserve(QUERY)), range(int(charges))))
    print(json.dumps([began, time.monotonic()]))


def _trained(config: Config, out: Path) -> tuple[list[Row], dict[str, Any]]:
    public = DataConfig(path=config.public, validation_fraction=0.0, tokenizer=TokenizerConfig(vocab=config.vocab))
    tokenizer = out.absolute() / "public.model"
    shutil.copyfile(prepare(public, silent).folder / MODEL, tokenizer)
    base = sections(config.base, "base", config.steps)
    base = merged(base, {"data": {"mode": "truncate", "tokenizer": {"path": str(tokenizer)}}})
    changes: dict[str, Sections] = {"none": {}}
    for epsilon in config.epsilons:
        said = {"enabled": True, "epsilon": epsilon, "delta": config.delta}
        changes[f"epsilon {epsilon:g}"] = {"privacy": said}
    rows, details, plain = [], {}, 0.0
    for name, change in changes.items():
        key = name.replace(" ", "-")
        folder = trained(run_of(base, change, key, f"privacy.{name}"), out / key, apart=True)
        summary = json.loads(folder.summary.read_text())
        seconds = summary["train_seconds"] / config.steps
        details[name] = summary
        plain = plain or seconds
        note = "" if name == "none" else f"{seconds / plain:.2f} x that without privacy, checkpoints included"
        rows.append(Row(what=name, quantity="seconds per step", measured=seconds, note=note))
        rows.append(Row(what=name, quantity="held-out bits per byte", measured=summary["bits_per_byte"]))
        if name != "none":
            rows += _spent(folder.path, name)
    return rows, details


def _spent(path: Path, name: str) -> Sequence[Row]:
    found = replay_run(path)
    note = "; ".join(found.faults) or "log and ledger agree"
    return [
        Row(what=name, quantity="epsilon spent, filter", measured=found.log.filter, note=note),
        Row(what=name, quantity="epsilon spent, PLD", measured=found.log.pld),
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["spend"]:
        spend(*sys.argv[2:])
    else:
        main("private_training", __doc__, Config, run)

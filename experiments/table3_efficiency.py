"""Table 3: how many samples a second, beside the systems that the paper compares itself with?

Question: samples (of 512 tokens) per second of ours and of torch on the 1 B stand-in, in turns on one GPU; what the
          planner predicts for the paper's 512 A100; what others publish for models of that size.
Cost:     minutes on one GPU; seconds without one, and then nothing is measured and every such row says so.
Run:      python -m experiments.table3_efficiency [--published FOLDER] [--json]

FairScale's successor is torch's own FSDP2; on one GPU it shards nothing, so it is the plain torch step. DeepSpeed's
ZeRO-3 and Megatron-Core are looked for; what does not import is listed with the reason.
"""

import csv
import dataclasses
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

from experiments.entry import main
from experiments.report import Report, Row
from experiments.scaling import Config as Cluster
from experiments.scaling import point
from experiments.throughput.contest import How, contest, rows
from experiments.throughput.suite import TINY, Entry
from jaxlm.decode import ConfigError

PAPER = {
    "Megatron-LM": (12_345, 48.2, 81.4),
    "DeepSpeed": (13_721, 45.5, 81.6),
    "FairScale": (14_012, 42.7, 82.5),
    "the paper's system": (18_901, 29.8, 81.3),
}
"""Samples per second, hours to converge and accuracy in percent on C4 en, 512 A100: table 3."""
SAMPLE = 512
"""Tokens of a sample."""
OTHERS = {"DeepSpeed ZeRO-3": "deepspeed", "Megatron-Core": "megatron.core"}
NEAREST = ("mpt-760m", "mpt-1b")
"""Published models nearest to 1.1 B parameters, in mosaicml_llmfoundry.csv."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What is compared.

    Attributes:
        cluster: the stand-in model and how its plan for the paper's cluster is made (as in table 9).
        gpus: of the paper's cluster.
        rows: of a step on one GPU, and of them at once by the twin.
        microbatch: rows that the torch twin holds at once.
        mode: of torch.compile, or `eager`.
        torch_python: the Python with torch; empty: this one.
        rounds: in which both sides take turns.
        steps: of each side in a round.
        smoke: two sides of a tiny model on this machine, whatever it is, to see that the comparison runs.
        published: folder with mosaicml_llmfoundry.csv; empty: groundtruth in JAXLM_SHARED where that is set.
    """

    cluster: Cluster = dataclasses.field(default_factory=Cluster)
    gpus: int = 512
    rows: int = 32
    microbatch: int = 16
    mode: str = "default"
    torch_python: str = ""
    rounds: int = 6
    steps: int = 10
    smoke: bool = False
    published: str = ""


def measure(config: Config, out: Path) -> Report:
    made = [
        row
        for system, (rate, hours, accuracy) in PAPER.items()
        for row in (
            Row(what=f"{system}, 512 A100", quantity="samples/s", paper=rate),
            Row(what=f"{system}, 512 A100", quantity="hours to converge", paper=hours),
            Row(what=f"{system}, 512 A100", quantity="accuracy, %", paper=accuracy),
        )
    ]
    ours = point(config.cluster, config.gpus, "strong", lambda text: print(text, file=sys.stderr, flush=True))
    what = f"jaxlm, {config.gpus:,} {config.cluster.device}, 1.1 B stand-in"
    made.append(
        Row(
            what=what, quantity="samples/s", predicted=ours.samples_per_second, note=f"predicted; {ours.plan.summary()}"
        )
    )
    on_gpu, details = jax.default_backend() == "gpu", {}
    if on_gpu or config.smoke:
        entry = TINY[1] if config.smoke else _entry(config)
        how = How(
            rounds=config.rounds,
            steps=config.steps,
            warm=5,
            mode=config.mode,
            torch_python=config.torch_python or sys.executable,
            profile=False,
            cold=False,
            tolerance=1e-2 if on_gpu else 1e-4,
        )
        found = contest(entry, how, out, lambda text: print(text, file=sys.stderr, flush=True))
        details["found"] = [found]
        made += rows(found, on_gpu)
        for side, seconds in found.get("pairs", {"ours": found.get("alone", [])}).items():
            middle = sorted(seconds)[len(seconds) // 2]
            name = "jaxlm" if side == "ours" else "torch (FSDP2 on one GPU)"
            made.append(
                Row(what=f"{name}, {entry.name}", quantity="samples/s", measured=entry.tokens / SAMPLE / middle)
            )
    else:
        made.append(Row(what="jaxlm beside torch, one GPU", quantity="samples/s", note="not measured: no GPU here"))
    made += [Row(what=name, quantity="samples/s", note=why) for name, why in _others(on_gpu)]
    made += list(_published(config))
    remarks = [
        "The paper names neither the size of its model nor its batch and defines neither convergence nor accuracy; its "
        f"accuracy is the lowest of its table. Its rate at {config.gpus} A100 allows about 1.1 B parameters at 40 % "
        "MFU, our stand-in. Hours to converge and accuracy: not measured, for want of 512 A100 and of C4.",
    ]
    return Report(title="Table 3: efficiency", rows=made, remarks=remarks, details=details)


def _entry(config: Config) -> Entry:
    model = config.cluster.run.model
    shape = {
        name: getattr(model, name)
        for name in ("layers", "embed", "heads", "kv_heads", "mlp", "vocab", "tied", "norm", "position", "activation")
    }
    return Entry(
        name="1.1 B stand-in",
        model=shape,
        sequence=SAMPLE,
        rows=config.rows,
        microbatch=config.microbatch,
        memory=0.5,
        parity_layers=4,
        target=0.0,
    )


def _others(on_gpu: bool) -> Iterator[tuple[str, str]]:
    for name, module in OTHERS.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            yield name, f"cannot run here: {error}"
        else:
            yield name, "imports here, but no twin is written for it" if on_gpu else "not measured: no GPU here"


def _published(config: Config) -> Iterator[Row]:
    shared = os.environ.get("JAXLM_SHARED")
    folder = Path(config.published) if config.published else Path(shared) / "groundtruth" if shared else None
    if folder is None:
        yield Row(
            what="published, about 1 B", quantity="tokens/s per GPU", note="skipped: no --published, no JAXLM_SHARED"
        )
        return
    path = folder / "mosaicml_llmfoundry.csv"
    try:
        lines = list(csv.DictReader(path.read_text().splitlines()))
    except OSError as error:
        raise ConfigError(f"published: {path}: {error.strerror}") from None
    for line in lines:
        if line["model"] in NEAREST and line["gpus"] == "8" and line["seq_len"] == str(SAMPLE):
            what = f"{line['model']}, T={line['seq_len']}, 8 x {line['gpu']}"
            rate = float(line["tokens_per_s_per_gpu"])
            note = f"torch FSDP, MFU {line['mfu_pct']} %, {line['precision']}"
            yield Row(what=what, quantity="tokens/s per GPU", published=rate, note=note)


if __name__ == "__main__":
    main("table3_efficiency", __doc__, Config, measure)

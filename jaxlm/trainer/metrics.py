"""What a run reports of itself: one record per logged step, to metrics.jsonl, TensorBoard and the terminal."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import jax
import psutil

from jaxlm.files import write_whole
from jaxlm.trainer.loop import Finished

Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one step costs, to turn seconds into rates.

    `flops_full` and `flops_causal` count the matrix products of forward and backward of the whole step, attention
    not halved and halved (no recomputation in either); `peak` is the datasheet FLOP/s of one device or None.
    """

    tokens: int
    flops_full: float
    flops_causal: float
    devices: int
    peak: float | None
    bytes_per_token: float


class Meter:
    """Turns finished steps into records every `every` steps, and hands them to the writers."""

    def __init__(self, work: Work, every: int, last: int, writers: list[Callable[[Record], None]]):
        self.work, self.every, self.last, self.writers = work, every, last, writers
        self.seconds: list[float] = []
        self.compiled = False

    def __call__(self, finished: Finished) -> None:
        self.seconds.append(finished.seconds)
        if finished.step % self.every and finished.step != self.last and self.compiled:
            return
        self.compiled = True
        seconds = sum(self.seconds) / len(self.seconds)
        self.seconds = []
        record = record_of(finished, seconds, self.work)
        for write in self.writers:
            write(record)


def record_of(finished: Finished, seconds: float, work: Work) -> Record:
    """`loss` in nats per token, `bits_per_byte` by the training text's mean bytes per token, rates from `seconds`,
    the mean step time since the record before."""
    values = finished.scalars
    record: Record = {
        "step": finished.step,
        "loss": values["loss"],
        "bits_per_byte": values.get("nll", values["loss"]) / math.log(2) / work.bytes_per_token,
        "grad_norm": values["grad_norm"],
        "lr": values.get("lr"),
        "tokens_per_second": work.tokens / seconds,
        "step_seconds": seconds,
        "tflops_per_device": work.flops_full / seconds / work.devices / 1e12,
    }
    if work.peak:
        record["mfu"] = work.flops_full / seconds / work.devices / work.peak
        record["mfu_causal"] = work.flops_causal / seconds / work.devices / work.peak
    others = {k: v for k, v in values.items() if k not in {*record, "nll", "weight"}}
    return record | others | {"tokens": values["weight"], "memory_bytes": memory_in_use()}


def memory_in_use() -> int:
    """Peak bytes in use on the first local device where the backend tells, else this process's resident bytes."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    return int(psutil.Process().memory_info().rss)


class JsonLines:
    """Appends one JSON object per line; what lies beyond `keep` steps is dropped first, so that a resumed run's file
    holds each step once."""

    def __init__(self, path: Path, keep: int):
        if path.exists():
            records = [r for r in read_jsonl(path) if r["step"] <= keep]
            write_whole(path, "".join(json.dumps(r) + "\n" for r in records).encode())
        self.file: TextIO = path.open("a")

    def __call__(self, record: Record) -> None:
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def read_jsonl(path: Path) -> list[Record]:
    """Every complete record of a metrics file; a last line cut off by a crash is left out."""
    lines = path.read_text().split("\n")
    records = [json.loads(line) for line in lines[:-1] if line.strip()]
    return records


class TensorBoard:
    """Scalars as TensorBoard events."""

    def __init__(self, directory: Path, keep: int):
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(directory), purge_step=keep + 1 if keep else None)

    def __call__(self, record: Record) -> None:
        for name, value in record.items():
            if name != "step" and isinstance(value, (int, float)):
                self.writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self.writer.close()

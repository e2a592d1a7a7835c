"""What a run reports of itself: one record per logged step, to metrics.jsonl, TensorBoard and the terminal."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import psutil

from jaxlm.files import room, write_whole
from jaxlm.trainer.loop import Finished

Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one step costs, to turn seconds into rates.

    `flops_full` and `flops_causal` count the matrix products of forward and backward of the whole step, attention
    not halved and halved (no recomputation in either); `peak` is the datasheet FLOP/s of one device or None;
    `bytes_per_token` is None where what is learned is no text.
    """

    tokens: int
    flops_full: float
    flops_causal: float
    devices: int
    peak: float | None
    bytes_per_token: float | None


class Meter:
    """Turns finished steps into records every `every` steps, and hands them to the writers. Besides what `record_of`
    says, a record holds `batches`: the hash of each batch since the record before, in order, its own step's last; and
    what `more(its last step, steps since the record before)` adds."""

    def __init__(
        self,
        work: Work,
        every: int,
        last: int,
        writers: list[Callable[[Record], None]],
        more: Callable[[Finished, int], Record] = lambda finished, steps: {},
    ):
        self.work, self.every, self.last, self.writers, self.more = work, every, last, writers, more
        self.waiting: list[Finished] = []
        self.compiled = False

    def __call__(self, finished: Finished) -> None:
        self.waiting.append(finished)
        if finished.step % self.every and finished.step != self.last and self.compiled:
            return
        self.compiled = True
        self.flush()

    def flush(self) -> None:
        """Writes the record of the steps since the last one, if there are any: before a checkpoint and at the end, so
        that no hash is missing in a run that was ended between two lines and went on."""
        if not self.waiting:
            return
        seconds = sum(each.seconds for each in self.waiting) / len(self.waiting)
        record = record_of(self.waiting[-1], seconds, self.work)
        record |= self.more(self.waiting[-1], len(self.waiting))
        record["batches"] = [each.batch for each in self.waiting]
        self.waiting = []
        for write in self.writers:
            write(record)

    def close(self) -> None:
        self.flush()


def record_of(finished: Finished, seconds: float, work: Work) -> Record:
    """`loss` in nats per token or labelled row, of text also `bits_per_byte` by the training text's mean bytes per
    token, rates from `seconds`, the mean step time since the record before. What the step says of each replica is a
    list: their `shares` in microbatches, `replica_seconds` at them, and `alpha`."""
    values = finished.scalars
    record: Record = {
        "step": finished.step,
        "loss": values["loss"],
        "grad_norm": values["grad_norm"],
        "lr": values.get("lr"),
        "tokens_per_second": work.tokens / seconds,
        "step_seconds": seconds,
        "tflops_per_device": work.flops_full / seconds / work.devices / 1e12,
    }
    if work.bytes_per_token is not None:
        record["bits_per_byte"] = values.get("nll", values["loss"]) / math.log(2) / work.bytes_per_token
    if work.peak:
        record["mfu"] = work.flops_full / seconds / work.devices / work.peak
        record["mfu_causal"] = work.flops_causal / seconds / work.devices / work.peak
    others = {k: v for k, v in values.items() if k not in {*record, "nll", "weight"}}
    others |= {name: list(values) for name, values in finished.vectors.items()}
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
        self.path, self.file = path, path.open("ab", buffering=0)

    def __call__(self, record: Record) -> None:
        line = (json.dumps(record) + "\n").encode()
        with room(self.path, len(line)):
            while line:  # the kernel takes what fits of a line before it says that the disk is full
                line = line[self.file.write(line) :]

    def close(self) -> None:
        self.file.close()


def read_jsonl(path: Path) -> list[Record]:
    """Every complete record of a metrics file; a last line cut off by a crash is left out."""
    lines = path.read_text().split("\n")
    records = [json.loads(line) for line in lines[:-1] if line.strip()]
    return records


class TensorBoard:
    """Scalars as TensorBoard events, written here and now: tensorboardX's own writer works in a thread, where an error
    is lost and later records wait for ever."""

    def __init__(self, directory: Path, keep: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self.directory, self.flushed = directory, time.monotonic()
        self.events: Any = event_pb2
        self.summaries: Any = summary_pb2
        directory.mkdir(parents=True, exist_ok=True)
        with room(directory):
            self.writer = EventsWriter(str(directory / "events"))
        if keep:  # readers drop what an earlier part of the run wrote beyond this step
            restart = self.events.SessionLog(status=self.events.SessionLog.START)
            self._write(step=keep + 1, session_log=restart)

    def __call__(self, record: Record) -> None:
        numbers = {k: v for k, v in record.items() if k != "step" and isinstance(v, (int, float))}
        values = [self.summaries.Summary.Value(tag=name, simple_value=v) for name, v in numbers.items()]
        self._write(step=record["step"], summary=self.summaries.Summary(value=values))

    def _write(self, **what: Any) -> None:
        with room(self.directory):
            self.writer.write_event(self.events.Event(wall_time=time.time(), **what))
            if time.monotonic() - self.flushed > 10:
                self.writer.flush()
                self.flushed = time.monotonic()

    def close(self) -> None:
        with room(self.directory):
            self.writer.close()

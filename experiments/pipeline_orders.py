"""Does the pipeline simulator know how long published steps took?

Question: step times of published runs with pipelines, 1F1B and interleaved, against the simulator. Two leagues.
          Megatron's own tables (Korthikanti et al. table 5; SC21 table 1, whose interleaving stands in the authors'
          script) by the cost model alone. vTrain's runs anchored: each group of runs that share model, tensor ranks and
          microbatch is scaled so that its run with the fewest stages is met, and the others are judged, so that the
          error is that of the pipeline and not of the kernels. Target: within 10 %.
Cost:     a minute or two on one core; reads CSV files, measures nothing.
Run:      JAXLM_SHARED=DIR python -m experiments.pipeline_orders, or --groundtruth DIR/groundtruth
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from experiments.benchmarks.published.megatron import SCRIPT
from experiments.benchmarks.published.megatron_style import MEGATRON, REMATS, a100, runs
from experiments.benchmarks.published.tables import Table
from experiments.entry import main
from experiments.report import Report, Row
from jaxlm.decode import ConfigError
from planners.prices.cost import seconds
from planners.schedules.durations import Duration
from planners.schedules.pipeline_time import pipeline_seconds
from planners.schedules.pipelines import Pipeline, Shape, stage_durations

KORTHIKANTI, SC21, VTRAIN = "korthikanti2022_table5_end2end", "megatron_sc21_table1", "vtrain_multi"

FORWARD = {"none": 7.7 / 19.6, "full": 7.7 / 27.2, "selective": 7.2 / 20.3}
"""Part of a layer's time that is its forward pass (Korthikanti et al., table 4; `selective` with sequence parallel)."""

BUSY = ("compute", "elementwise", "recompute", "dispatch", "tensor_parallel")
"""Parts of a step that a stage spends on its microbatches."""

SELENE, VTRAIN_NETWORK = 25e9, 100e9 / 8
"""Bytes/s of the network per device: eight 200 Gb/s adapters per node (SC21, section 5); 800 Gb/s per node (vTrain)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Published pipelines.

    Attributes:
        groundtruth: folder of the CSV files; by default JAXLM_SHARED/groundtruth.
    """

    groundtruth: Path | None = None

    def folder(self) -> Path:
        if self.groundtruth is not None:
            return self.groundtruth
        if not (shared := os.environ.get("JAXLM_SHARED")):
            raise ConfigError("--groundtruth DIR or JAXLM_SHARED must say where the published tables are")
        return Path(shared) / "groundtruth"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One published run with a pipeline.

    Attributes:
        name: of its model.
        dims: layers, width, heads, sequence, vocabulary.
        tensor, stages, data: ranks of each axis.
        batch, microbatch: sequences of the global batch, and of one replica's microbatch.
        virtual: chunks of each device.
        remat: none, full or selective.
        sequence_parallel: activations between blocks are split over the tensor ranks.
        network: bytes/s of the network per device.
        published: seconds of one step.
    """

    name: str
    dims: tuple[int, int, int, int, int]
    tensor: int
    stages: int
    data: int
    batch: int
    microbatch: int
    virtual: int
    remat: Literal["none", "full", "selective"]
    sequence_parallel: bool
    network: float
    published: float

    @property
    def microbatches(self) -> int:
        return self.batch // (self.data * self.microbatch)

    def parts(self, layers: int) -> dict[str, float]:
        """The cost model's parts of a step of this job with another number of layers."""
        _, width, heads, sequence, vocabulary = self.dims
        one = lambda value: np.array([value])
        made = runs(
            cluster=a100(self.network),
            layers=one(layers),
            width=one(width),
            heads=one(heads),
            sequence=one(sequence),
            vocabulary=one(vocabulary),
            batch=one(self.batch),
            tensor=one(self.tensor),
            data=one(self.data),
            stage=one(self.stages),
            remat=one(REMATS.index(self.remat)),
            microbatches=(one(self.microbatch),),
            virtual=(one(1),),
            sequence_parallel=one(self.sequence_parallel),
        )
        found, _ = seconds(made.work, made.where, made.cluster, made.candidates, MEGATRON)
        return {name: float(part[0]) for name, part in found.items()}

    def simulate(self, pipeline: Pipeline, virtual: int) -> float:
        """Seconds of one step in this order, from the cost model's time of one block, the head and one message."""
        shape = Shape(pipeline, self.stages, self.microbatches, virtual)
        thin, thick, real = (self.parts(n) for n in (self.stages, 2 * self.stages, self.dims[0]))
        times = self.microbatches
        busy = lambda parts: sum(parts[name] for name in BUSY) / times
        block = busy(thick) - busy(thin)
        head = busy(thin) - block
        share, deep = FORWARD[self.remat], self.dims[0] / shape.chunks
        ends = [head if k == shape.chunks - 1 else 0.0 for k in range(shape.chunks)]
        known = stage_durations(
            shape,
            [Duration(deep * block * share + end / 3) for end in ends],
            [Duration(deep * block * (1 - share) + end * 2 / 3) for end in ends],
            send=Duration(real["pipeline_hops"] / times / 2),
        )
        passes = pipeline_seconds(shape, known) + real["gradient_sync"] + real["fsdp_gather"] + real["optimizer"]
        everything = sum(real.values()) - real["stragglers"] - real["overhead"]
        return passes * (1.0 + real["stragglers"] / everything) + real["overhead"]

    def orders(self) -> list[tuple[Pipeline, int]]:
        """Orders that this job could run in, the simplest first."""
        deep = self.dims[0] // self.stages
        found: list[tuple[Pipeline, int]] = [("gpipe", 1), ("1f1b", 1)]
        if self.microbatches % self.stages == 0 and self.dims[0] % self.stages == 0:
            found.extend(("interleaved", v) for v in range(2, deep + 1) if deep % v == 0)
        return found

    @property
    def own(self) -> tuple[Pipeline, int]:
        """The order it was run in."""
        return ("1f1b", 1) if self.virtual == 1 else ("interleaved", self.virtual)


def execute(config: Config, out: Path) -> Report:
    """Judges every published pipeline."""
    folder = config.folder()
    rows: list[Row] = []
    remarks: list[str] = []
    zero = [(job, job.simulate(*job.own)) for job in [*korthikanti(folder), *sc21(folder)]]
    rows += [_row(job, predicted, "cost model alone") for job, predicted in zero]
    if zero:
        remarks.append(_verdict("Megatron's tables, cost model alone", [p / j.published - 1 for j, p in zero]))
        remarks.append(_orders([job for job, _ in zero]))
    anchored = list(scaled(vtrain(folder)))
    rows += [_row(job, predicted, f"scaled to {anchor.stages} stages") for job, predicted, anchor in anchored]
    if anchored:
        remarks.append(_verdict("vTrain's runs, anchored", [p / j.published - 1 for j, p, _ in anchored]))
        plain = [p / j.published - 1 for j, p, _ in scaled(vtrain(folder), bubble=False)]
        remarks.append(f"Control: the same without a bubble errs by {np.mean(np.abs(plain)):.1%} on average.")
    if not rows:
        raise ConfigError(f"{folder} holds none of {KORTHIKANTI}.csv, {SC21}.csv and {VTRAIN}.csv")
    return Report(title="Published pipelines and the simulator", rows=rows, remarks=remarks)


def scaled(jobs: Sequence[Job], *, bubble: bool = True) -> Iterable[tuple[Job, float, Job]]:
    """Every job but the anchor of its group, its predicted seconds, and the anchor.

    Without `bubble` a step is its microbatches times the slowest stage, for control.
    """
    groups: dict[tuple[object, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.name, job.tensor, job.microbatch), []).append(job)
    for members in groups.values():
        anchor, *others = sorted(members, key=lambda job: (job.stages, job.data))
        if not others:
            continue
        predict = lambda job: job.simulate(*job.own) if bubble else _steady(job)
        factor = anchor.published / predict(anchor)
        yield from ((job, factor * predict(job), anchor) for job in others)


def _steady(job: Job) -> float:
    return job.microbatches * job.microbatch * job.dims[0] / job.stages


def _row(job: Job, predicted: float, how: str) -> Row:
    name, chunks = job.own
    order = name if chunks == 1 else f"{name} x{chunks}"
    what = (
        f"{job.name} t{job.tensor} p{job.stages} d{job.data} b{job.microbatch} m{job.microbatches} {order} {job.remat}"
    )
    error = predicted / job.published - 1.0
    return Row(
        what=what,
        quantity="s per step",
        published=job.published,
        predicted=predicted,
        note=f"{error:+.1%} ({how})",
    )


def _verdict(what: str, errors: Sequence[float]) -> str:
    size = np.abs(errors)
    inside = int((size <= 0.1).sum())
    said = "met" if inside == len(size) else f"MISSED by {len(size) - inside} rows"
    return (
        f"{what}: {len(size)} rows, error {size.mean():.1%} mean, {np.median(size):.1%} median, {size.max():.1%} "
        f"largest; {inside} of {len(size)} within 10 % (target: all; {said})."
    )


def _orders(jobs: Sequence[Job]) -> str:
    """Which order the simulator would have chosen for each job, and what it expects that to save."""
    lines = []
    for job in jobs:
        times = {order: job.simulate(*order) for order in job.orders()}
        best = min(times, key=lambda order: times[order])
        saved = 1.0 - times[best] / times[job.own]
        lines.append(f"{job.name} p{job.stages} {job.remat}: ran {job.own[0]} x{job.own[1]}, ")
        lines[-1] += "also chosen" if best == job.own else f"{best[0]} x{best[1]} expected {saved:.1%} faster"
    return "Orders chosen by expected time: " + "; ".join(lines) + "."


def _table(folder: Path, name: str) -> Iterable[dict[str, str]]:
    path = folder / f"{name}.csv"
    return Table.read(path).rows if path.exists() else ()


def _dims(row: dict[str, str]) -> tuple[int, int, int, int, int]:
    layers, width, heads, sequence = (int(row[name]) for name in ("layers", "hidden", "heads", "seq_len"))
    vocabulary = -(-int(row["vocab"].split()[0]) // 1024) * 1024  # padded to 128 x 8, as Megatron does
    return layers, width, heads, sequence, vocabulary


def korthikanti(folder: Path) -> list[Job]:
    return [
        _job(
            row,
            row["model"],
            microbatch=int(row["micro_batch"]),
            virtual=int(row["vpp"] or 1),
            remat="full" if row["recompute"] == "full" else "selective",
            sequence_parallel=row["sequence_parallel"] == "True",
            published=float(row["iter_time_s"]),
        )
        for row in _table(folder, KORTHIKANTI)
        if row["iter_time_s"] and int(row["pp"]) > 1
    ]


def sc21(folder: Path) -> list[Job]:
    found = []
    for row in _table(folder, SC21):
        size = float(row["params_b"])
        if int(row["pp"]) > 1 and size in SCRIPT:
            microbatch, virtual = SCRIPT[size][:2]
            seconds = float(row["iter_time_s_derived"])
            found.append(
                _job(row, f"{row['params_b']}B SC21", microbatch=microbatch, virtual=virtual, published=seconds)
            )
    return found


def vtrain(folder: Path) -> list[Job]:
    return [
        _job(
            row,
            f"{row['params_b']}B vTrain",
            microbatch=int(row["micro_batch"]),
            network=VTRAIN_NETWORK,
            published=float(row["iter_time_ms"]) / 1e3,
        )
        for row in _table(folder, VTRAIN)
        if int(row["layers"]) % int(row["pp"]) == 0
    ]


def _job(
    row: dict[str, str],
    name: str,
    *,
    microbatch: int,
    published: float,
    virtual: int = 1,
    remat: Literal["none", "full", "selective"] = "full",
    sequence_parallel: bool = False,
    network: float = SELENE,
) -> Job:
    """A run from the columns that all three tables have, and what each says in its own way."""
    return Job(
        name=name,
        dims=_dims(row),
        tensor=int(row["tp"]),
        stages=int(row["pp"]),
        data=int(row["dp"]),
        batch=int(row["global_batch"]),
        microbatch=microbatch,
        virtual=virtual,
        remat=remat,
        sequence_parallel=sequence_parallel,
        network=network,
        published=published,
    )


if __name__ == "__main__":
    main("pipeline_orders", __doc__, Config, execute)

"""Predicted throughput of one model on growing clusters, for table 9 and figure 13; nothing here is measured."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

from jaxlm.compiled import Compiler, target_of
from jaxlm.config import Run
from jaxlm.inspect import numerics_of
from jaxlm.runtime.aot import missing
from jaxlm.session import resolve, workload_of
from planners.machines.cluster_file import load_cluster
from planners.plan import Plan
from planners.search import plan as search_plan

Reading = Literal["weak", "strong"]
READINGS: tuple[Reading, ...] = ("strong", "weak")
"""The paper does not say whether its batch grows with the GPUs: `weak` grows it, `strong` keeps it."""

PAPER = {128: (5_440, 100.0), 256: (10_701, 98.4), 512: (18_901, 87.0), 1024: (35_102, 80.7)}
"""GPUs -> samples/s and efficiency in percent, table 9."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One model on clusters of growing size.

    Attributes:
        run: the training run; `train.batch` is ignored, `model.vocab` must be set.
        device: the GPU, a name in planners/facts/devices.yaml.
        gpus: sizes of the clusters; efficiency is relative to the first of them that the paper has.
        sequences_per_gpu: the batch over the GPUs of the smallest cluster of the paper (weak scaling: of all).
        compile: compile each plan for its cluster and report XLA's memory; needs the extra `aot`.
        compile_seconds: what one compilation may take.
    """

    run: Run = dataclasses.field(default_factory=Run)
    device: str = "A100-80"
    gpus: tuple[int, ...] = tuple(PAPER)
    sequences_per_gpu: int = 32
    compile: bool = True
    compile_seconds: float = 1200.0

    def __post_init__(self) -> None:
        if not self.gpus or self.base not in self.gpus:
            raise ValueError(f"gpus={list(self.gpus)} must hold {self.base}, the paper's smallest cluster")
        if not self.run.model.vocab:
            raise ValueError("run.model.vocab must be set: no tokenizer is trained here")

    @property
    def base(self) -> int:
        return min(PAPER)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One cluster under one reading: what the planner chooses and expects, and what XLA compiles it to."""

    gpus: int
    reading: Reading
    batch: int
    plan: Plan
    parameters: int
    compiled_bytes: float | None

    @property
    def samples_per_second(self) -> float:
        assert self.plan.predicted is not None
        return self.batch / self.plan.predicted.step_seconds


def points(config: Config, say: Callable[[str], None] = print) -> list[Point]:
    """Every cluster under every reading, smallest first."""
    return [point(config, gpus, reading, say) for reading in READINGS for gpus in sorted(config.gpus)]


def point(config: Config, gpus: int, reading: Reading, say: Callable[[str], None] = print) -> Point:
    """Plans, and where it is asked for and possible compiles, for one cluster."""
    batch = config.sequences_per_gpu * (gpus if reading == "weak" else config.base)
    run = dataclasses.replace(config.run, train=dataclasses.replace(config.run.train, batch=batch))
    cluster = load_cluster(f"{config.device.lower()}x{gpus}")
    workload = workload_of(run, resolve(run, run.model.vocab), numerics_of(run, cluster))
    plan = search_plan(workload, cluster, run.plan)
    say(f"{gpus} GPUs, {reading} scaling, batch {batch}: {plan.summary()}")
    compiled = None
    if config.compile and not missing():
        compile = Compiler(run, run.model.vocab, target_of(cluster), seconds=config.compile_seconds)
        compiled = compile(plan).memory_bytes
    return Point(
        gpus=gpus,
        reading=reading,
        batch=batch,
        plan=plan,
        parameters=workload.parameter_count,
        compiled_bytes=compiled,
    )


def efficiency(found: Sequence[Point], one: Point, base: int) -> float:
    """Throughput per GPU over that of the smallest cluster under the same reading, in percent."""
    first = next(each for each in found if each.reading == one.reading and each.gpus == base)
    return 100.0 * (one.samples_per_second / one.gpus) / (first.samples_per_second / first.gpus)


def remarks(config: Config, found: Sequence[Point]) -> list[str]:
    """What a reader must know before comparing the columns."""
    batch = config.sequences_per_gpu * config.base
    lines = [
        f"Predicted by our cost model for {config.device}, {found[0].parameters / 1e9:.2f} B parameters and samples of "
        f"{config.run.data.sequence} tokens: no such cluster was used. The paper gives neither model size nor batch; "
        "its rate at 512 GPUs allows about 1.1 B parameters at 40 % MFU, which is our stand-in.",
        f"Strong scaling keeps the batch at {batch:,} sequences, weak scaling at {config.sequences_per_gpu} per GPU.",
        "The paper prints an efficiency of 87.0 % at 512 GPUs; its own rates give 86.9 %.",
    ]
    if config.compile and (lacking := missing()):
        lines.append(f"No memory was compiled: {', '.join(lacking)} not installed (uv sync --extra aot).")
    return lines

"""Starting JAX, alone or as one process of a job."""

import os
from dataclasses import dataclass
from pathlib import Path

import jax

from jaxlm.decode import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Where this process stands in a job of several.

    Attributes:
        coordinator: HOST:PORT of process 0.
        processes: how many processes there are.
        process: which of them this is, from 0.
    """

    coordinator: str | None = None
    processes: int = 1
    process: int = 0

    def __post_init__(self) -> None:
        if self.processes < 1 or not 0 <= self.process < self.processes:
            raise ConfigError(f"--process {self.process} must be in 0..{self.processes - 1}, below --processes")
        if self.processes > 1 and self.coordinator is None:
            raise ConfigError(f"--processes {self.processes} needs --coordinator HOST:PORT, the address of process 0")


def start(job: Job, cache: Path | None) -> None:
    """Joins the job and turns on the persistent compilation cache; call before the first use of a device."""
    if job.processes > 1:
        jax.distributed.initialize(job.coordinator, job.processes, job.process)
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

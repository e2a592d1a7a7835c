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
        dead_after: seconds without a sign of life after which a process counts as dead and the others end.
    """

    coordinator: str | None = None
    processes: int = 1
    process: int = 0
    dead_after: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.dead_after <= 86400:
            raise ConfigError(f"--dead-after {self.dead_after:g} must be between 1 and 86400 seconds")
        if self.processes < 1 or not 0 <= self.process < self.processes:
            raise ConfigError(f"--process {self.process} must be in 0..{self.processes - 1}, below --processes")
        if self.processes > 1 and self.coordinator is None:
            raise ConfigError(f"--processes {self.processes} needs --coordinator HOST:PORT, the address of process 0")


def start(job: Job, cache: Path | None) -> None:
    """Joins the job and turns on the persistent compilation cache; call before the first use of a device."""
    if job.processes > 1:
        # JAX aborts with a stack trace where it finds a process dead, so `peers` is given the time to be first.
        jax.distributed.initialize(
            job.coordinator, job.processes, job.process, heartbeat_timeout_seconds=int(job.dead_after) + 40
        )
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""Starting JAX, alone or as one process of a job."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import jax

from jaxlm.decode import ConfigError

AUTO = "auto"

LAUNCHED = "JAXLM_LAUNCHED"
"""The environment variable in which a launcher says how a person starts its job again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Where this process stands in a job of several.

    Attributes:
        coordinator: HOST:PORT of process 0; `auto`: as SLURM, MPI or Kubernetes say it, and so the other two.
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


def start(job: Job, cache: Path | None) -> Job:
    """Joins the job and turns on the persistent compilation cache; call before the first use of a device.

    JAX_COMPILATION_CACHE_DIR and JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS, where set, go before `cache` and our own.


    Returns the job, with what `auto` has found. Raises ConfigError where it finds none.
    """
    # JAX aborts with a stack trace where it finds a process dead, so `peers` is given the time to be first.
    heartbeat = int(job.dead_after) + 40
    if job.coordinator == AUTO:
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat)
        except ValueError as error:
            raise ConfigError(
                f"--coordinator auto: JAX finds no job of SLURM, MPI or Kubernetes around this process ({error}); "
                "give --coordinator HOST:PORT --processes N --process I"
            ) from None
        job = replace(job, **_found())
    elif job.processes > 1:
        jax.distributed.initialize(job.coordinator, job.processes, job.process, heartbeat_timeout_seconds=heartbeat)
    if cache is not None:
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            cache.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(cache))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return job


def _found() -> dict[str, int]:
    """How many processes there are and which of them this is, without waiting for devices."""
    from jax._src.distributed import global_state  # jax.process_count() would start them before their cache is set

    return {"processes": global_state.num_processes or 1, "process": global_state.process_id or 0}


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

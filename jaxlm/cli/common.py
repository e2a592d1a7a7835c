"""What every command shares: the flags, the refusal of bad input, the report as JSON, the place in a job."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tyro

if TYPE_CHECKING:
    from jaxlm.runtime.distributed import Job


class Refused(ValueError):
    """Something on the command line itself that cannot be."""


@dataclass(kw_only=True)
class Common:
    debug: bool = False
    """Show the full traceback of an error."""
    rest: tyro.conf.Suppress[tuple[str, ...]] = ()

    def overrides(self) -> Sequence[str]:
        return self.rest

    def no_overrides(self) -> None:
        if self.rest:
            raise Refused(f"unexpected argument {self.rest[0]!r}; see --help")


@dataclass(kw_only=True)
class Member(Common):
    """A command that may run as one process of a job."""

    coordinator: str | None = None
    """HOST:PORT of process 0, for a job of several processes; auto: as SLURM, MPI or Kubernetes say it."""
    processes: int = 1
    """Processes of the job."""
    process: int = 0
    """Which of them this is, from 0."""
    dead_after: float = 60.0
    """Seconds without a sign of life after which a process of the job counts as dead and the others end."""

    def job(self) -> "Job":
        from jaxlm.runtime.distributed import AUTO, Job

        if self.coordinator == AUTO and (self.processes, self.process) != (1, 0):
            raise Refused("--coordinator auto finds the other two itself: leave out --processes and --process")
        return Job(
            coordinator=self.coordinator,
            processes=self.processes,
            process=self.process,
            dead_after=self.dead_after,
        )


def report(wanted: bool, facts: dict[str, Any]) -> None:
    if wanted:
        print(json.dumps(facts))

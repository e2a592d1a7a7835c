"""What is decided about a start of a run before any data is read."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from jaxlm.config import Run
from jaxlm.folder import Folder
from jaxlm.runtime.distributed import LAUNCHED, Job
from jaxlm.session import Numerics
from jaxlm.trainer.balanced import Pace
from jaxlm.trainer.profile import Steps
from planners.machines.topology import Cluster
from planners.plan import Plan, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a run is started, none of it part of what it is.

    Attributes:
        job: where this process stands in a job of several.
        plan_file: a saved plan to follow instead of a search.
        profile: the steps to record.
        again: how the printed commands begin.
        cluster_file: what this machine was measured to be; None takes what JAX reports.
        pace: slows replicas down, for experiments with unequal shares.
        allow_rollback: go on from an older checkpoint than the audit log knows; it is logged.
        allow_unverified: go on from a checkpoint whose signature cannot be verified; it is loud and logged.
    """

    job: Job = Job()
    plan_file: Path | None = None
    profile: Steps | None = None
    again: str = "jaxlm"
    cluster_file: Path | None = None
    pace: Pace | None = None
    allow_rollback: bool = False
    allow_unverified: bool = False


@dataclass(frozen=True, slots=True)
class Setup:
    """What is decided before any data is read."""

    run: Run
    folder: Folder
    how: Numerics
    cluster: Cluster
    plan: Plan
    workload: Workload
    options: Options


def resume_command(setup: Setup) -> str:
    """What to type to go on with this run."""
    job, config, path = setup.options.job, setup.folder.config, setup.folder.path
    if (launched := os.environ.get(LAUNCHED)) is not None:
        return f"{launched} {shlex.quote(str(config))} --run-dir {shlex.quote(str(path))}"
    several = f" --coordinator {job.coordinator} --processes {job.processes} --process I" if job.processes > 1 else ""
    if (file := setup.options.cluster_file) is not None:
        several += f" --cluster {shlex.quote(str(file))}"
    return f"{setup.options.again} train {shlex.quote(str(config))} --run-dir {shlex.quote(str(path))}{several}"

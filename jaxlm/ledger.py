"""Where a user's runs leave what they measured, and what that has taught about a machine."""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import re
from pathlib import Path

import jax

from jaxlm.files import user_cache
from jaxlm.runtime.aot import chip_name
from jaxlm.runtime.distributed import cores
from planners.learning.calibration import Calibration
from planners.machines.topology import Cluster
from planners.plan import Workload
from planners.prices.assumptions import Assumptions
from planners.prices.memory_calibration import MemoryCalibration
from planners.wishes import Search


def ledger_path() -> Path:
    """One line per run of this user on this machine."""
    return user_cache("ledger") / "runs.jsonl"


def calibration_path(machine: str) -> Path:
    """What the ledger taught about one kind of machine."""
    return user_cache("ledger") / f"{re.sub(r'[^a-z0-9]+', '-', machine.lower()).strip('-')}.json"


def machine_of(cluster: Cluster) -> str:
    """Which runs can be compared: by the kinds of the devices; CPUs by processor and cores, their only identity."""
    kinds = [pool.device.kind for pool in cluster.parts]
    if all(kind.lower() == "cpu" for kind in kinds):
        return f"{cores()} cores of {processor()}"
    return " + ".join(dict.fromkeys(chip_name(kind) or kind for kind in kinds))


def processor() -> str:
    """The model name of this machine's processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    named = next((line for line in lines if line.startswith("model name")), "")
    return named.partition(":")[2].strip() or platform.processor() or platform.machine()


def calibration_for(cluster: Cluster, search: Search) -> Calibration:
    """What runs on machines of this kind have taught, or the prior: before the first of them, where the configuration
    asks for it, and in a job of several processes, whose users may have learnt different things.

    Raises PlanError for a file that is none of this version.
    """
    path = calibration_path(machine_of(cluster))
    if not search.calibrate or jax.process_count() > 1 or not path.exists():
        return Calibration.prior()
    return Calibration.load(path)


def memory_path(workload: Workload, kind: str) -> Path:
    """What compiled steps of one model have taught about its memory on one kind of device."""
    described = json.dumps([dataclasses.asdict(each) for each in workload.parameters], sort_keys=True)
    key = f"{described} {workload.sequence} {workload.compute_dtype} {workload.kernel} {kind}"
    return user_cache("ledger") / "memory" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def memory_for(cluster: Cluster, workload: Workload) -> MemoryCalibration | None:
    """None where no step of this model was compiled for such a device by this version of the compiler."""
    path = memory_path(workload, cluster.device.kind)
    if not path.exists():
        return None
    found = MemoryCalibration.load(path, json.loads(path.read_text())["jaxlib"])
    return found if found.jaxlib == importlib.metadata.version("jaxlib") else None


def constants(cluster: Cluster, workload: Workload, search: Search) -> tuple[Assumptions, str]:
    """The constants to price plans with, from measured steps and from compiled ones, and what they have learnt from."""
    calibration = calibration_for(cluster, search)
    memory = memory_for(cluster, workload) if search.calibrate else None
    if memory is None:
        return calibration.assumptions, said(calibration)
    note = (
        f"{said(calibration)}; memory learnt from {memory.compiled} compiled steps, within {memory.error:.1%} of them"
    )
    return dataclasses.replace(calibration.assumptions, memory_habits=memory.habits), note


def said(calibration: Calibration) -> str:
    """What it has learnt from and its error bar, without the word itself."""
    return calibration.describe().removeprefix("calibration: ")

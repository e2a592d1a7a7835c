"""Where a user's runs leave what they measured, and what that has taught about a machine."""

import platform
import re
from pathlib import Path

import jax

from jaxlm.files import user_cache
from jaxlm.runtime.aot import chip_name
from jaxlm.runtime.distributed import cores
from planners.calibration import Calibration
from planners.plan import Search
from planners.topology import Cluster


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


def said(calibration: Calibration) -> str:
    """What it has learnt from and its error bar, without the word itself."""
    return calibration.describe().removeprefix("calibration: ")

"""How long does planning take on one core, from a saved workload, all mesh axes searched?

Question: is a plan for 4,096 equal GPUs found within 1 s, and one for 4,096 unequal ones within 10 s, without JAX?
Cost:     about a minute on one core.
Run:      python -m experiments.benchmarks.planning_time

Each time is taken in a fresh process with one thread, after its imports: reading the workload, the search, and the
choice of uneven splits. Seconds are wall time; processor time stands beside it, which other work does not lengthen.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from experiments.entry import main
from experiments.report import Report, Row
from jaxlm.config import load
from jaxlm.inspect import described
from planners.machines.cluster_file import load_cluster

LIMITS = {False: 1.0, True: 10.0}
"""Seconds allowed for equal and for unequal devices."""

CODE = """
import json, sys, time
from pathlib import Path
from planners.prices.assumptions import Assumptions
from planners.machines.cluster_file import load_cluster
from planners.plan import MESH_AXES, Workload
from planners.wishes import Search
from planners.space.rivals import compare
from planners.search import plan
wall, cpu = time.perf_counter(), time.process_time()
work, cluster = Workload.load(Path(sys.argv[1])), load_cluster(sys.argv[2])
made = plan(work, cluster, Search(), None, MESH_AXES)
if cluster.unequal:
    compare(made, work, cluster, Search(), MESH_AXES)
took = time.perf_counter() - wall, time.process_time() - cpu
print(json.dumps({"wall": took[0], "cpu": took[1], "plan": made.summary(), "jax": "jax" in sys.modules}))
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What is planned.

    Attributes:
        config: the run whose model is planned for.
        batch: sequences of its global batch.
        clusters: presets or files, separated by commas.
        repeats: processes for each; the median counts.
    """

    config: str = "configs/llama-8b.yaml"
    batch: int = 4096
    clusters: str = "h100x4096"
    repeats: int = 3


def run(config: Config, out: Path) -> Report:
    workload, _ = described(load(Path(config.config), ["--train.batch", str(config.batch)]), "h100x8")
    out.mkdir(parents=True, exist_ok=True)
    file = out / "workload.json"
    workload.save(file)
    alone = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    rows, remarks, details = [], [], {}
    for name in (part.strip() for part in config.clusters.split(",")):
        command = [sys.executable, "-c", CODE, str(file), name]
        found = [
            json.loads(subprocess.run(command, env=alone, check=True, capture_output=True, text=True).stdout)
            for _ in range(config.repeats)
        ]
        cluster = load_cluster(name)
        wall = statistics.median(each["wall"] for each in found)
        rows.append(Row(what=name, quantity="seconds to plan, wall", measured=wall))
        rows.append(
            Row(
                what=name,
                quantity="seconds to plan, processor",
                measured=statistics.median(each["cpu"] for each in found),
            )
        )
        limit = LIMITS[cluster.unequal]
        verdict = "met" if wall < limit and not any(each["jax"] for each in found) else "MISSED"
        remarks.append(f"{name}: {verdict} (target {limit:g} s, JAX never imported); plan: {found[0]['plan']}")
        details[name] = found
    return Report(
        title=f"Planning {workload.name}, {config.batch} sequences", rows=rows, remarks=remarks, details=details
    )


if __name__ == "__main__":
    main("planning_time", __doc__, Config, run)

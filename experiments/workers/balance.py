"""One of the processes that `experiments.balance` trains with: `jaxlm train` on replicas slower than they need be.

A microbatch is padded by sleep to a given time, many times what it computes for, so that processes which share few
cores do not slow each other down; and one replica's to a multiple of it, for some of the steps.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxlm.config import load
from jaxlm.run import train
from jaxlm.runtime.distributed import Job
from jaxlm.setup import Options


class Paced:
    """Every microbatch of a replica takes `seconds`; those of replica `slow` take `factor` times as long from step
    `first` to step `last`, counted from the start of this process. What was added is written to `log`."""

    def __init__(self, task: dict[str, Any], log: Path):
        self.task, self.log = task, log.open("w")
        self.steps: dict[int, int] = {}
        self.used = time.process_time()

    def __call__(self, replica: int, microbatches: int, seconds: float) -> None:
        step = self.steps[replica] = self.steps.get(replica, 0) + 1
        slow = replica == self.task["slow"] and self.task["first"] <= step <= self.task["last"]
        wanted = microbatches * self.task["seconds"] * (self.task["factor"] if slow else 1.0)
        time.sleep(max(0.0, wanted - seconds))
        before, self.used = self.used, time.process_time()
        line = {"step": step, "replica": replica, "microbatches": microbatches, "seconds": seconds, "padded": wanted}
        self.log.write(json.dumps({**line, "cpu": self.used - before}) + "\n")
        self.log.flush()


def launch(task: dict[str, Any], folder: Path, *, devices: int = 1) -> list[subprocess.Popen[str]]:
    """Starts the processes of a task (see `main`), whose files go into `folder`; `devices` is how many each has."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "task.json"
    file.write_text(json.dumps({**task, "folder": str(folder)}))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX")}
    environment = kept | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "experiments.workers.balance", str(file)]
    return [
        subprocess.Popen(
            [*command, str(process)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for process in range(task["processes"])
    ]


def main(arguments: Sequence[str]) -> int:
    """`TASK.json PROCESS`: trains as the task says, with the keys `config`, `overrides`, `run`, `processes`,
    `coordinator` (HOST:PORT), those of `Paced`, and the `folder` for its logs."""
    task, process = json.loads(Path(arguments[0]).read_text()), int(arguments[1])
    coordinator = task["coordinator"] if task["processes"] > 1 else None
    job = Job(coordinator=coordinator, processes=task["processes"], process=process)
    pace = Paced(task, Path(task["folder"]) / f"pace-{process}.jsonl")
    run = load(Path(task["config"]), task["overrides"])
    return train(run, Path(task["run"]), Options(job=job, pace=pace))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

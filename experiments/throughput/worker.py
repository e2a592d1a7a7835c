"""One side of a comparison in a process of its own, which does what it is told, a line of JSON at a time.

    python -m experiments.throughput.worker ours|torch

Each line on standard input is `{"do": NAME, ...}`, and one line answers it; what a library prints goes to standard
error.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.throughput.suite import Entry
from jaxlm.runtime.allocator import keep_freed


class Worker:
    """The requests that a side understands; `start` comes first, and a later one replaces it."""

    def __init__(self, side: str):
        self.kind, self.side = side, None

    def __call__(self, request: dict[str, Any]) -> Any:
        do = request.pop("do")
        if do == "start":
            return self.start(**request)
        if do == "ceilings":
            from experiments.throughput.ours import ceilings

            return ceilings(**request)
        side: Any = self.side
        if do == "steps":
            return side.steps(request["count"])
        if do == "losses":
            return side.losses(request["count"])
        if do == "memory":
            return side.memory()
        if do == "save":
            np.savez(request["path"], **side.batch(), **{f"weights/{k}": v for k, v in side.weights().items()})
            return True
        if do == "load":
            with np.load(request["path"]) as saved:
                side.put(saved["tokens"], saved["targets"])
                side.load({k.removeprefix("weights/"): saved[k] for k in saved.files if k.startswith("weights/")})
            return True
        if do == "kernels":
            return [dataclasses.asdict(kernel) for kernel in side.kernels(Path(request["folder"]))]
        raise ValueError(f"unknown request {do!r}")

    def start(self, entry: dict[str, Any], **how: Any) -> dict[str, Any]:
        self.side = None  # what it held is free before another is made
        if self.kind == "ours":
            from experiments.throughput.ours import Ours as Side
        else:
            from experiments.throughput.theirs import Theirs as Side
        self.side = Side(Entry(**entry), **how)
        return self.side.facts()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints to standard output would break a line of JSON
    if sys.argv[1] == "ours":
        keep_freed()  # as `jaxlm train` does
    worker = Worker(sys.argv[1])
    for line in sys.stdin:
        try:
            answer = {"ok": worker(json.loads(line))}
        except Exception as error:  # the other process decides what it means
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

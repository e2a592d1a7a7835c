"""One of the processes of `experiments.benchmarks.compression`: times each way for one flat gradient to be averaged."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.collectives import reduce
from jaxlm.collectives.codecs import BFloat16, Float8, Int4, Int8, Sign, TopK

Move = Callable[[jax.Array], jax.Array]
WAYS: dict[str, Move] = {
    "fp32 sum": lambda rows: jax.lax.psum(rows, "zone") / rows.shape[0],
    "fp16 sum": lambda rows: jax.lax.psum(rows.astype(jnp.float16), "zone").astype(jnp.float32) / rows.shape[0],
    "bf16": lambda rows: reduce.two_shot(rows, "zone", BFloat16()).mean,
    "int8": lambda rows: reduce.two_shot(rows, "zone", Int8()).mean,
    "fp8": lambda rows: reduce.two_shot(rows, "zone", Float8()).mean,
    "int8_shared": lambda rows: reduce.shared_scale(rows, "zone").mean,
    "int4": lambda rows: reduce.two_shot(rows, "zone", Int4()).mean,
    "sign": lambda rows: reduce.two_shot(rows, "zone", Sign()).mean,
    "topk 1%": lambda rows: reduce.gathered(rows, "zone", TopK()).mean,
    "topk 1% int8": lambda rows: reduce.gathered(rows, "zone", TopK(small=True)).mean,
}
"""Means over workers of rows [H, n]. A sum of float16 is the honest 16-bit baseline on CPU, where XLA sends bfloat16 as
float32."""
FLAT = "fp32 flat ring"
"""The float32 sum over all processes of all hosts at once; every other way adds up inside a host first."""


def way(name: str, processes: int) -> Move:
    """The mean over hosts and their processes of rows [H, n]: exact sums inside a host, a share of each to the slow
    link, and all shares back."""
    if name == FLAT:
        return lambda rows: jax.lax.psum(rows, ("zone", "data")) / (rows.shape[0] * processes)
    if processes == 1:
        return WAYS[name]

    def hierarchical(rows: jax.Array) -> jax.Array:
        cut = rows.reshape(rows.shape[0], processes, -1).swapaxes(0, 1)
        mean = WAYS[name](jax.lax.psum_scatter(cut, "data", scatter_dimension=0) / processes)
        return jax.lax.all_gather(mean, "data").swapaxes(0, 1).reshape(rows.shape)

    return hierarchical


def sent() -> int:
    """Bytes that this host has sent, by its interface's counter."""
    return int(Path("/sys/class/net/e0/statistics/tx_bytes").read_text())


def _noise(process: int, workers: int, n: int) -> np.ndarray:
    """The gradient of a process, [1, workers, n / workers]."""
    return np.random.default_rng(process).standard_normal((1, workers, n // workers), np.float32)


def main(arguments: list[str]) -> None:
    """`TASK.json PROCESS`: keys `coordinator`, `hosts`, `processes` (of each host), `elements`, `rounds`, `ways`, and
    `out` for the numbers."""
    task, process = json.loads(Path(arguments[0]).read_text()), int(arguments[1])
    workers, local, n = task["hosts"], task["processes"], task["elements"]
    jax.distributed.initialize(task["coordinator"], num_processes=workers * local, process_id=process)
    mesh = Mesh(np.asarray(jax.devices()).reshape(workers, local), ("zone", "data"), axis_types=(AxisType.Auto,) * 2)
    spec = P(("zone", "data"))
    place = NamedSharding(mesh, spec)
    unit = 1024 * workers * local
    n = -(-n // unit) * unit
    x = jax.make_array_from_process_local_data(place, _noise(process, workers, n))
    steps: dict[str, Any] = {}
    for name in task["ways"]:
        one = lambda rows, move=way(name, local): move(rows[0])[None]
        step = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
        steps[name] = step.lower(x).compile()
    want = np.zeros((workers, n // workers), np.float32)
    for i in range(workers * local):
        want += _noise(i, workers, n)[0] / (workers * local)
    far = lambda step: np.linalg.norm(np.asarray(step(x).addressable_shards[0].data)[0] - want) / np.linalg.norm(want)
    errors = {name: max(float(far(step)) for _ in range(2)) for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    moved: dict[str, list[int]] = {name: [] for name in steps}
    for turn in range(task["rounds"]):
        for name, step in steps.items():
            sync_global_devices(f"{turn} {name}")
            before, began = sent(), time.perf_counter()
            jax.block_until_ready(step(x))
            # A process may be done with megabytes still in its socket; all are done when the last one is.
            sync_global_devices(f"{turn} {name} done")
            seconds[name].append(time.perf_counter() - began)
            time.sleep(0.3)
            moved[name].append(sent() - before)
    found = {"elements": n, "seconds": seconds, "bytes": moved, "errors": errors}
    Path(task["out"]).joinpath(f"times{process}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])

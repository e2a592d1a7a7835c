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


def sent() -> int:
    """Bytes that this host has sent, by its interface's counter."""
    return int(Path("/sys/class/net/e0/statistics/tx_bytes").read_text())


def main(arguments: list[str]) -> None:
    """`TASK.json PROCESS`: keys `coordinator`, `processes`, `elements`, `rounds`, `ways`, and `out` for the numbers."""
    task, process = json.loads(Path(arguments[0]).read_text()), int(arguments[1])
    workers, n = task["processes"], task["elements"]
    jax.distributed.initialize(task["coordinator"], num_processes=workers, process_id=process)
    mesh = Mesh(np.asarray(jax.devices()), ("zone",), axis_types=(AxisType.Auto,))
    place = NamedSharding(mesh, P("zone"))
    n = -(-n // (1024 * workers)) * 1024 * workers
    noise = np.random.default_rng(process).standard_normal((1, workers, n // workers), np.float32)
    x = jax.make_array_from_process_local_data(place, noise)
    steps: dict[str, Any] = {}
    for name in task["ways"]:
        way = lambda rows, move=WAYS[name]: move(rows[0])[None]
        step = jax.jit(jax.shard_map(way, mesh=mesh, in_specs=P("zone"), out_specs=P("zone"), check_vma=False))
        steps[name] = step.lower(x).compile()
    want = np.asarray(steps["fp32 sum"](x).addressable_shards[0].data)
    errors = {
        name: float(np.linalg.norm(np.asarray(step(x).addressable_shards[0].data) - want) / np.linalg.norm(want))
        for name, step in steps.items()
    }
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

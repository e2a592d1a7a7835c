"""One of the two processes of `experiments.benchmarks.scheduler`: measures a link, lets the scheduler choose from that,
and times every rung, then the chosen and the best ones against each other."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather, sync_global_devices
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.collectives.compressed import Compressed, cut_leaves
from jaxlm.collectives.schemes import scheme
from jaxlm.collectives.timing import codec_seconds
from jaxlm.files import write_whole
from jaxlm.runtime.measure import Meter, bytes_of, collective
from planners.communication import BUDGETS, RUNGS, Axis, Priced, communication, ranked
from planners.machines.link_table import Collective, Timing
from planners.machines.topology import Device, Link
from planners.plan import Communication

COLLECTIVES: tuple[Collective, ...] = ("all_reduce", "all_gather", "all_to_all")
SIZES = (1 << 14, 1 << 17, 1 << 20, 1 << 23)
WIDTH = 1024
Exchange = Callable[[], Any]


def main(arguments: list[str]) -> None:
    """`TASK.json PROCESS`: keys `coordinator`, `elements`, `rounds`, `judging`, `seconds` and `out`."""
    task, process = json.loads(Path(arguments[0]).read_text()), int(arguments[1])
    jax.distributed.initialize(task["coordinator"], num_processes=2, process_id=process)
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 1), ("zone", "data"), axis_types=(AxisType.Auto,) * 2)
    elements = -(-task["elements"] // (2 * WIDTH)) * 2 * WIDTH
    link = measured(task["seconds"])
    codec = {
        rung.scheme: slowest(codec_of(rung.scheme, elements, mesh)) / elements
        for rung in RUNGS
        if rung.scheme != "none"
    }
    device = Device(kind="cpu", memory=1 << 34)
    axis = Axis(name="zone", workers=2, link=link, elements=elements, device=device, codec=codec)
    order = {budget: ranked(axis, budget) for budget in BUDGETS}
    priced = {each.rung.scheme: each for each in order[BUDGETS[-1]]}
    programs = {name: program(each, axis, mesh, elements) for name, each in priced.items()}
    for run in programs.values():
        run()
    picking = rounds(programs, list(programs), task["rounds"], "picking")
    median = {name: float(np.median(times)) for name, times in picking.items()}
    pairs = {}
    for budget, ranking in order.items():
        names = [each.rung.scheme for each in ranking]
        pairs[budget] = names[0], min(names, key=median.__getitem__)
    contenders = sorted({name for chosen, best in pairs.values() if chosen != best for name in (chosen, best)})
    judging = rounds(programs, contenders, task["judging"] if contenders else 0, "judging")
    found = {
        "elements": elements,
        "pairs": pairs,
        "predicted": {name: each.seconds for name, each in priced.items()},
        "buckets": {name: each.bucket for name, each in priced.items()},
        "codec": {name: each * elements for name, each in codec.items()},
        "picking": picking,
        "judging": judging,
        "link": {name: [[row.bytes, row.seconds] for row in rows] for name, rows in link.measured.items()},
    }
    if process == 0:
        write_whole(Path(task["out"]), (json.dumps(found, indent=2) + "\n").encode())


def measured(budget: float) -> Link:
    """The link by what its collectives take, the same on both processes."""
    groups, rows = np.asarray(jax.devices()).reshape(1, 2), {}
    for name in COLLECTIVES:
        meter = Meter(budget / len(COLLECTIVES))
        ready = [meter.prepare(collective(name, groups, size)) for size in SIZES]
        spreads = meter.spreads(ready, lambda turn, turns: None)
        seconds = np.asarray(broadcast_one_to_all(np.array([each.seconds for each in spreads])))
        sizes = [bytes_of(2, size) for size in SIZES]
        rows[name] = tuple(
            Timing(ranks=2, bytes=size, seconds=float(each)) for size, each in zip(sizes, seconds, strict=True)
        )
    return Link(name="hosts", devices=2, bandwidth=1e9, measured=rows)


def sync_of(said: Communication, elements: int, mesh: Mesh) -> Compressed:
    """The exchange of one matrix of so many values."""
    model = {"w": jax.ShapeDtypeStruct((elements // WIDTH, WIDTH), jnp.float32)}
    return Compressed(scheme(said, 2), mesh, cut_leaves(model, mesh, (), "zone"), 100)


def codec_of(name: Any, elements: int, mesh: Mesh) -> float:
    """Seconds of encoding and decoding, while the other process does the same."""
    sync = sync_of(Communication(axis="zone", scheme=name), elements, mesh)
    sync_global_devices(f"codec {name}")
    return codec_seconds(sync.stages.move(0), "zone", 2, sync.buckets[0].size)


def program(priced: Priced, axis: Axis, mesh: Mesh, elements: int) -> Exchange:
    """One exchange of a rung in its bucket, from random gradients to their mean."""
    spec = P("zone")
    noise = np.random.default_rng(jax.process_index()).standard_normal((1, 2, elements // 2), np.float32)
    rows = jax.make_array_from_process_local_data(NamedSharding(mesh, spec), noise)
    if priced.rung.scheme == "none":
        move: Any = lambda x: jax.lax.psum(x, "zone") / 2
    else:
        exchanged = sync_of(communication(priced, axis), elements, mesh).stages.move(0)
        move = lambda x: exchanged(x).mean
    one = lambda x: move(x[0])[None]
    step = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)).lower(rows).compile()
    return lambda: jax.block_until_ready(step(rows))


def rounds(programs: dict[str, Exchange], names: Sequence[str], count: int, what: str) -> dict[str, list[float]]:
    """Seconds of each program in each round, the slower process's; both begin together, and every round begins with
    another program."""
    times = np.zeros((count, len(names)))
    for turn in range(count):
        for i in range(len(names)):
            at = (i + turn) % len(names)
            sync_global_devices(f"{what} {turn} {i}")
            began = time.perf_counter()
            programs[names[at]]()
            times[turn, at] = time.perf_counter() - began
    whole = np.asarray(process_allgather(times)).max(axis=0)
    return {name: whole[:, i].tolist() for i, name in enumerate(names)}


def slowest(value: float) -> float:
    """The larger of both processes' values, on both."""
    return float(np.asarray(process_allgather(np.array([value]))).max())


if __name__ == "__main__":
    main(sys.argv[1:])

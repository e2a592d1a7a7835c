"""Seconds of matrix products, of passes over memory and of collectives, measured on the devices of this job.

A program runs its operation n times in a loop on every device at once, as a training step does, and n is an argument of
the compiled program: the time of n = 0, what it costs to start a program, is taken off. All programs of a group are run
in turns, so a machine that slows down for a while slows all of them; the median of the turns stands.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

RUN_SECONDS = 4e-3
"""Seconds that one timed run of a program should last: a hundred times the jitter of a clock and of a dispatch."""

MOST_CALLS = 256
"""Calls of an operation in one timed run."""

ROUNDS = (5, 25)
"""Fewest and most turns: quartiles need five, and the median of 25 is within a quarter of the spread."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A measured time: median, and half of the interquartile range over it."""

    seconds: float
    noise: float


@dataclass(frozen=True)
class Program:
    """A compiled operation: `run(n)` does it n times and returns when every device of this process is done."""

    name: str
    run: Callable[[int], None]


class Meter:
    """Times programs in turns, all processes of the job in step; `budget` is in seconds, for one group of programs."""

    def __init__(self, budget: float, clock: Callable[[], float] = time.perf_counter):
        self.budget, self.clock = budget, clock

    def once(self, program: Program, calls: int) -> float:
        """Seconds of one run on this process."""
        began = self.clock()
        program.run(calls)
        return self.clock() - began

    def prepare(self, program: Program) -> "Prepared":
        """Warms a program up and finds how many calls make a run long enough; the same on every process."""
        program.run(1)  # compiles, allocates, connects
        calls = 1
        while True:
            seconds = agreed(min(self.once(program, calls), self.once(program, calls)))
            if seconds >= RUN_SECONDS or calls >= MOST_CALLS:
                break
            calls *= 4
        return Prepared(program, calls, seconds)

    def spreads(self, programs: Sequence["Prepared"], tick: Callable[[int, int], None]) -> list[Spread]:
        """Times every program in turns within the budget; `tick(turn, turns)` is called after each turn of all."""
        turn = sum(program.seconds + 1e-3 for program in programs)
        rounds = int(np.clip(agreed(self.budget / turn), *ROUNDS))
        times = np.empty((rounds, len(programs), 2))
        for number, row in enumerate(times):
            for i, one in enumerate(programs):
                row[i] = self.once(one.program, one.calls), self.once(one.program, 0)
            tick(number + 1, rounds)
        slowest = _over_processes(times)
        start = np.median(slowest[:, :, 1], axis=0)
        # Where starting takes longer than half of a run it cannot be told from the work, and half of it stays.
        work = np.maximum(slowest[:, :, 0] - start, slowest[:, :, 0] / 2)
        each = work / np.array([one.calls for one in programs])
        low, middle, high = np.percentile(each, [25, 50, 75], axis=0)
        return [Spread(float(m), float((h - l) / 2 / m)) for l, m, h in zip(low, middle, high, strict=True)]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A program that is compiled and warm, the calls of one timed run, and about how many seconds that takes."""

    program: Program
    calls: int
    seconds: float


def agreed(value: float) -> float:
    """The value of process 0, on every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return float(multihost_utils.broadcast_one_to_all(np.float64(value)))


def _over_processes(times: np.ndarray) -> np.ndarray:
    """The longest of all processes for every run."""
    if jax.process_count() == 1:
        return times
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(times)).max(axis=0)


def product(size: int, dtype: str) -> Program:
    """`size` x `size` matrices multiplied on every device at once. Raises JAX's error where the backend cannot."""
    mesh = _all_devices()
    whole = np.dtype(dtype) == np.int8
    rng = np.random.default_rng(0)
    # Random values: accelerators draw less power on zeros and then run faster.
    left = rng.integers(-4, 5, (size, size)) if whole else rng.standard_normal((size, size))
    right = rng.integers(-4, 5, (size, size)) if whole else rng.standard_normal((size, size)) / np.sqrt(size)
    out = jnp.int32 if whole else jnp.dtype(dtype)

    def body(x: jax.Array, w: jax.Array) -> jax.Array:
        y = lax.optimization_barrier(jnp.dot(x, w, preferred_element_type=out))
        return x.at[0, 0].set(y[0, 0].astype(x.dtype))

    arrays = [_replicated(mesh, np.asarray(a).astype(np.float32)).astype(dtype) for a in (left, right)]
    return _looped(f"{dtype} {size}", mesh, body, arrays, P(), P())


def memory_pass(size: int) -> Program:
    """Reads and writes `size` bytes together on every device at once."""
    mesh = _all_devices()
    array = _replicated(mesh, np.ones(max(size // 8, 1), np.float32))
    return _looped(f"memory {size}", mesh, lambda x: lax.optimization_barrier(x * 0.5 + 0.5), [array], P(), P())


def collective(name: str, groups: np.ndarray, size: int) -> Program:
    """One collective in all groups at once.

    Args:
        name: all_reduce, all_gather, reduce_scatter, all_to_all or permute.
        groups: devices [groups, ranks].
        size: bytes of the whole tensor: of a rank's input, of its output for all_gather.
    """
    ranks = groups.shape[1]
    mesh = Mesh(groups, ("groups", "ranks"))
    count = max(size // 4 // ranks, 1) * ranks

    def body(x: jax.Array) -> jax.Array:
        if name == "all_reduce":
            return lax.psum(x, "ranks")
        if name == "all_gather":
            whole = lax.optimization_barrier(lax.all_gather(x, "ranks", tiled=True))
            return whole[: count // ranks]
        if name == "reduce_scatter":
            return lax.dynamic_update_slice(x, lax.psum_scatter(x, "ranks", tiled=True), (0,))
        if name == "all_to_all":
            return lax.all_to_all(x, "ranks", 0, 0, tiled=True)
        return lax.ppermute(x, "ranks", [(i, (i + 1) % ranks) for i in range(ranks)])

    each = count // ranks if name == "all_gather" else count
    spread = P(("groups", "ranks"))
    shape = (each * groups.size,)
    zeros = jax.jit(lambda: jnp.zeros(shape, jnp.float32), out_shardings=NamedSharding(mesh, spread))()
    return _looped(f"{name} {ranks} x {size}", mesh, body, [zeros], spread, P())


def bytes_of(ranks: int, size: int) -> int:
    """Bytes that `collective` really moves when asked for `size`: whole float32 numbers, as many on every rank."""
    return max(size // 4 // ranks, 1) * ranks * 4


def _looped(
    name: str, mesh: Mesh, body: Callable[..., jax.Array], arrays: list[jax.Array], spec: P, rest: P
) -> Program:
    """`body` changes the first array, n times."""

    def local(n: jax.Array, x: jax.Array, *others: jax.Array) -> jax.Array:
        return lax.fori_loop(0, n, lambda _, x: body(x, *others), x)

    specs = (P(), spec, *(rest for _ in arrays[1:]))
    program = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=False))
    sharding = NamedSharding(mesh, P())
    number = lambda n: jax.make_array_from_callback((), sharding, lambda _: np.int32(n))
    counts: dict[int, jax.Array] = {}

    def run(calls: int) -> None:
        if calls not in counts:
            counts[calls] = number(calls)
        jax.block_until_ready(program(counts[calls], *arrays))

    return Program(name, run)


def _all_devices() -> Mesh:
    return Mesh(np.array(jax.devices()), ("devices",))


def _replicated(mesh: Mesh, value: np.ndarray) -> jax.Array:
    return jax.make_array_from_callback(value.shape, NamedSharding(mesh, P()), lambda index: value[index])


def host_processes() -> int:
    """Processes of this job on one host."""
    return jax.process_count() // len(set(_hosts()))


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """Devices that reach each other in one way: of one process, of one host, of the whole job.

    Attributes:
        name: what it is called.
        devices: in one group of this level.
        members: array of devices [groups, members]: one line per set of devices that only this level joins.
    """

    name: str
    devices: int
    members: Any

    def groups(self, ranks: int) -> np.ndarray:
        """Devices [groups, ranks], neighbours together."""
        return self.members.reshape(-1, ranks)

    def rank_counts(self) -> list[int]:
        """Powers of two up to all members, and all members."""
        most = self.members.shape[1]
        return sorted({2**n for n in range(1, most.bit_length()) if most % 2**n == 0} | {most})


def levels() -> list[Level]:
    """The levels of this job, innermost first; those that join one device are left out.

    Raises ValueError where processes have different numbers of devices, or hosts of processes.
    """
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    processes = jax.process_count()
    local = len(devices) // processes
    if any(sum(d.process_index == p for d in devices) != local for p in range(processes)):
        raise ValueError("the processes of this job have different numbers of devices: probe them apart")
    hosts = _hosts()
    per_host = processes // len(set(hosts))
    if any(hosts[i] != hosts[i // per_host * per_host] for i in range(processes)):
        raise ValueError("the processes of this job are not numbered host by host, equally many on each")
    found, inside = [], 1
    grid = np.array(devices)
    kinds = [("devices of one process", local), ("processes of one host", local * per_host), ("hosts", len(devices))]
    for name, reach in kinds:
        if reach > inside:
            members = grid.reshape(-1, reach // inside, inside).transpose(0, 2, 1).reshape(-1, reach // inside)
            found.append(Level(name, reach, members))
            inside = reach
    return found


def _hosts() -> list[int]:
    """A number for the host of every process, equal where they share one."""
    if jax.process_count() == 1:
        return [0]
    import hashlib
    import socket

    from jax.experimental import multihost_utils

    name = hashlib.sha256(socket.gethostname().encode()).digest()[:4]
    mine = np.frombuffer(name, np.int32)
    return [int(n) for n in np.asarray(multihost_utils.process_allgather(mine)).ravel()]

"""One training step in which every replica computes its own number of microbatches (eq. 5 with alpha as a share).

Loss and gradient are sums over microbatches, so it does not matter who computes which: the step equals that of even
shares, and shares move without compiling anything again, because they are data.

Two programs make a step. The first runs on each replica by itself: a loop over its own microbatches that holds no
collective between replicas, and leaves sums of its own. The second adds them up over replicas, once per step, and
updates the weights. Between the two lies the one moment at which a process can see, from outside and for nothing, when
its own devices are done and before they wait for others: a time stamp inside one program would need a callback from
the device to Python, which XLA will not keep in its compilation cache.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.collectives.sync import Objective
from jaxlm.data.fingerprint import LANES, fingerprint
from jaxlm.trainer.state import TrainState
from jaxlm.trainer.step import Metrics, Report, step_key, update
from planners.plan import REPLICA_AXES

M = TypeVar("M")
Pace = Callable[[int, int, float], None]
"""`pace(replica, microbatches, seconds)` is called when a device has computed its microbatches, and counts as part of
them: it makes a replica slow that is not, to see what becomes of it."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True)
class Sums:
    """What each replica has added up over its own microbatches; every leaf has a leading axis of replicas.

    Attributes:
        sums: those of the objective, and `loss`.
        gradients: of the summed loss.
        batch: hash of the rows that were computed, uint32 [replicas, LANES].
    """

    sums: dict[str, jax.Array]
    gradients: Any
    batch: jax.Array


def local_sums(objective: Objective, model: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> Sums:
    """Sums over the microbatches of each replica by itself; call inside `with jax.set_mesh(...)`.

    `batch` is what `jaxlm.data.feed.Shared` makes: arrays [replicas, slots, sequences, length], `rows` [replicas,
    slots, sequences] with the number of each row in the step's batch, and `shares` [replicas], of whose slots only the
    first are computed. The loop's length differs between replicas, so nothing in it may meet over their axes; axes
    inside a replica (fsdp, tensor) are the partitioner's, and all devices of a replica go round equally often.
    """

    def replica(model: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> Sums:
        mine = {name: leaf[0] for name, leaf in batch.items()}
        share, rows = mine.pop("shares"), mine.pop("rows")

        def piece(index: jax.Array) -> dict[str, jax.Array]:
            return {name: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False) for name, leaf in mine.items()}

        def add(carry: tuple[jax.Array, Sums]) -> tuple[jax.Array, Sums]:
            index, before = carry
            here, numbers = piece(index), jax.lax.dynamic_index_in_dim(rows, index, keepdims=False)
            # The number of the microbatch in the step: randomness does not depend on who computes it.
            noise = jax.random.fold_in(key, numbers[0] // numbers.shape[0])
            (loss, sums), gradients = jax.value_and_grad(objective, has_aux=True)(model, here, noise)
            more = Sums(sums | {"loss": loss}, gradients, fingerprint(here, jnp, rows=numbers))
            return index + 1, jax.tree.map(jnp.add, before, more)

        shapes = jax.eval_shape(objective, model, piece(jnp.zeros((), jnp.int32)), key)
        sums = {name: jnp.zeros(s.shape, s.dtype) for name, s in (shapes[1] | {"loss": shapes[0]}).items()}
        nothing = Sums(sums, jax.tree.map(jnp.zeros_like, model), jnp.zeros(LANES, jnp.uint32))
        first = (jnp.zeros((), jnp.int32), nothing)
        _, done = jax.lax.while_loop(lambda carry: carry[0] < share, add, first)
        return jax.tree.map(lambda leaf: leaf[None], done)

    # check_vma would have the gradient of a weight that all replicas hold summed over them, inside the loop.
    across = partial(jax.shard_map, axis_names=set(REPLICA_AXES), check_vma=False)
    return across(replica, in_specs=(P(), P(REPLICA_AXES), P()), out_specs=P(REPLICA_AXES))(model, batch, key)


def add_up(done: Sums) -> tuple[Metrics, Any, jax.Array]:
    """Over replicas: the sums, the gradient of the mean loss per unit of weight, and the hash of the batch."""
    with jax.named_scope("sum_over_replicas"):
        total: Sums = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0, dtype=leaf.dtype), done)
    with jax.named_scope("mean_gradient"):
        weight = jnp.maximum(total.sums["weight"], 1.0)
        return total.sums, jax.tree.map(lambda g: g / weight, total.gradients), total.batch


def make_balanced_programs(
    objective: Objective,
    tx: optax.GradientTransformation,
    *,
    seed: int = 0,
    report: Report = lambda step: {},
    layers: int = 0,
) -> tuple[Callable[..., Sums], Callable[..., tuple[TrainState[Any], Metrics]]]:
    """The two halves of the step, ready for jit: `compute(model, step, batch)` and `finish(state, sums, shares,
    seconds)`, the state donated. One after the other they do what `make_train_step` does, and report beside it `shares`
    and `replica_seconds` [replicas]: microbatches of each replica, and how long its slowest device was at them.

    `seconds` is given as [replicas, devices of a replica], each device's own on itself, so that no process needs to
    know another's. Every process gets the same maximum, and decides the same from it.
    """

    def compute(model: Any, step: jax.Array, batch: Mapping[str, jax.Array]) -> Sums:
        return local_sums(objective, model, batch, step_key(seed, step))

    def finish(
        state: TrainState[Any], done: Sums, shares: jax.Array, seconds: jax.Array
    ) -> tuple[TrainState[Any], Metrics]:
        sums, gradients, lanes = add_up(done)
        after, metrics = update(state, tx, sums, gradients, state.sync, layers=layers)
        mine = {"batch": lanes, "shares": shares, "replica_seconds": jnp.max(seconds, axis=1)}
        return after, {**metrics, **mine, **report(state.step)}

    return compute, finish


class BalancedStep:
    """`step(state, batch) -> (state, metrics)` for the training loop: both programs, and the clock between them.

    The first program of a step is on its way to the devices while the second of the step before still runs, and the
    numbers of that one are read (`meanwhile`) while the first computes, so all that the clock costs is the handing over
    of the second program: fractions of a millisecond per step.

    Args:
        compute, finish: the compiled halves.
        mesh: what they are compiled for.
        pace: slows replicas down, for experiments.
        clock: seconds.
    """

    def __init__(
        self,
        compute: jax.stages.Compiled,
        finish: jax.stages.Compiled,
        mesh: Mesh,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.compute, self.finish, self.pace, self.clock = compute, finish, pace, clock
        self.meanwhile: Callable[[], None] = lambda: None
        self.seconds = seconds_sharding(mesh)
        where = self.seconds.addressable_devices_indices_map(seconds_shape(mesh))
        self.replica = {device: (index or (slice(0),))[0].indices(mesh.size)[0] for device, index in where.items()}
        self.watchers = ThreadPoolExecutor(len(self.replica) + 1, thread_name_prefix="watch")
        self.before: Future[float] | None = None

    def __call__(self, state: TrainState[Any], batch: Mapping[str, jax.Array]) -> tuple[TrainState[Any], Metrics]:
        handed, before = self.clock(), self.before
        done = self.compute(state.model, state.step, batch)
        shares = {shard.device: shard.data for shard in batch["shares"].addressable_shards}
        taken = [
            self.watchers.submit(self._seconds, shard, shares[shard.device], handed, before)
            for shard in done.sums["weight"].addressable_shards
        ]
        self.meanwhile()
        local = [each.result() for each in taken]
        shape = seconds_shape(self.seconds.mesh)
        seconds = jax.make_array_from_single_device_arrays(shape, self.seconds, local)
        after, metrics = self.finish(state, done, batch["shares"], seconds)
        self.before = self.watchers.submit(self._when, metrics["weight"])
        return after, metrics

    def _when(self, value: jax.Array) -> float:
        """The moment at which `value` is there, on all devices of this process that hold it."""
        value.block_until_ready()
        return self.clock()

    def _seconds(self, sum: Any, share: jax.Array, handed: float, before: Future[float] | None) -> jax.Array:
        """How long a device was at its microbatches, [1, 1] on that device: from the moment at which it was asked and
        had finished the step before, to that at which its part of `sum` is there."""
        end, start = self._when(sum.data), handed if before is None else max(handed, before.result())
        if self.pace is not None:
            self.pace(self.replica[sum.device], int(share[0]), end - start)
            end = self.clock()
        return jax.device_put(np.full((1, 1), max(end - start, 1e-9), np.float32), sum.device)

    def as_text(self) -> str:
        """The optimised HLO of both programs."""
        return "\n".join(program.as_text() or "" for program in (self.compute, self.finish))

    def memory_analysis(self) -> Any:
        """What the step needs, without its batch: the arguments of the second program (state and sums of gradients),
        which lie there during the first one as well, and the larger temporaries. None where the compiler does not
        tell."""
        first, second = self.compute.memory_analysis(), self.finish.memory_analysis()
        if first is None or second is None:
            return None
        names = ("argument_size_in_bytes", "output_size_in_bytes", "alias_size_in_bytes")
        temporary = max(first.temp_size_in_bytes, second.temp_size_in_bytes)
        return SimpleNamespace(temp_size_in_bytes=temporary, **{name: getattr(second, name) for name in names})

    def close(self) -> None:
        self.watchers.shutdown()


def seconds_shape(mesh: Any) -> tuple[int, int]:
    """[replicas, devices of one replica]."""
    replicas = int(np.prod([mesh.shape[axis] for axis in REPLICA_AXES]))
    return replicas, mesh.size // replicas


def seconds_sharding(mesh: Any) -> NamedSharding:
    """One number on each device."""
    return NamedSharding(mesh, P(REPLICA_AXES, tuple(axis for axis in mesh.axis_names if axis not in REPLICA_AXES)))


def sums_sharding(mesh: Mesh, shapes: Sums, weights: Any) -> Sums:
    """Where the sums lie: each replica's on its own devices; gradients inside a replica as their weights do (`weights`:
    a tree of NamedSharding), so that no device ever holds them whole where weights are split."""
    each: Any = NamedSharding(mesh, P(REPLICA_AXES))
    split = jax.tree.map(lambda place: NamedSharding(mesh, P(REPLICA_AXES, *place.spec)), weights)
    return Sums(sums={name: each for name in shapes.sums}, gradients=split, batch=each)

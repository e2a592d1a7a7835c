"""Gradients whose slow leg is compressed: exact inside a node, codes between nodes, as a `GradSync`.

A step has two halves. In the first, each replica by itself adds up the gradients of its microbatches; the compiler
moves what fsdp and tensor parallelism need inside the replica. The second is manual over every mesh axis: the
replicas of a node add up and cut their sums between them (`psum_scatter`), each exchanges its shard with its
counterparts over the slow axis, and the node collects the result (`all_gather`). So every device sends 1/L of the
gradient over the slow link and remembers 1/L of the residuals.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.collectives import reduce
from jaxlm.collectives.buckets import Axes, Bucket, Leaf, buckets, leaf
from jaxlm.collectives.codecs import payload
from jaxlm.collectives.memory import Memory
from jaxlm.collectives.schemes import Scheme
from jaxlm.collectives.stages import Arrays, Packed, Stages, matrix, squares, two_legs
from jaxlm.collectives.sync import Objective, Sums, Synced, accumulated
from jaxlm.sharding import shardings
from jaxlm.tree import from_named, named_axes, named_leaves
from planners.plan import REPLICA_AXES, PlanError, Table

State = dict[str, Any]
LEADS = {"error": "worker", "velocity": "worker", "owner": "owner", "momentum": "node", "alive": "node"}
"""How each kind of memory lies: one per worker, one shard per worker, or the same on all workers."""


@dataclass(frozen=True)
class Compressed:
    """The sync of one scheme over one slow axis.

    Attributes:
        scheme: what is sent.
        mesh: where.
        leaves: how each weight is cut.
        steps: of the whole run, which the warm-up is a share of.
        decay: of the optimizer's momentum, where the scheme sends or corrects it.
        clip: the largest norm of a gradient, where the exchange has to clip it; 0 does not.
    """

    scheme: Scheme
    mesh: Mesh
    leaves: tuple[Leaf, ...]
    steps: int
    decay: float = 0.0
    clip: float = 0.0

    @cached_property
    def axes(self) -> Axes:
        return Axes.of(self.mesh, self.scheme.axis)

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        unit = max(self.scheme.codec.unit, self.scheme.dense.unit if self.scheme.lossy else 1)
        return buckets(self.leaves, self.axes, unit, round(self.scheme.bucket_mb * 2**18))

    @cached_property
    def small(self) -> tuple[Leaf, ...]:
        """What travels whole and exact."""
        return tuple(each for each in self.leaves if each.dim is None)

    @cached_property
    def cut(self) -> tuple[Leaf, ...]:
        return tuple(each for each in self.leaves if each.dim is not None)

    @cached_property
    def stages(self) -> Stages:
        return Stages(self.scheme, self.axes, self.buckets, self.decay, self.clip)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of memory that the scheme needs for what is cut."""
        scheme = self.scheme
        wanted = {
            "error": scheme.feedback,
            "owner": scheme.feedback and two_legs(scheme, self.axes.workers),
            "momentum": scheme.momentum,
            "alive": scheme.momentum and scheme.kind == "sign",
            "velocity": scheme.kind == "dgc",
        }
        return tuple(kind for kind, yes in wanted.items() if yes)

    @property
    def _keeps_small(self) -> bool:
        return self.scheme.momentum or self.scheme.kind == "dgc"

    def init(self, model: Any) -> State:
        """Nothing is owed yet. Memory by kind and by the name of the weight, and the exchange's own numbers."""
        state: State = {}
        for kind in self.kinds:
            dtype = jnp.bool_ if kind == "alive" else jnp.float32
            lead = (self.axes.workers,) if LEADS[kind] == "worker" else ()
            state[kind] = {each.name: jnp.zeros((*lead, *each.shape), dtype) for each in self.cut}
        if self._keeps_small:
            state["small"] = {each.name: jnp.zeros(each.shape, jnp.float32) for each in self.small}
        if self.scheme.kind == "powersgd":
            state["start"] = {each.name: self._start(each) for each in self.cut}
        if self.scheme.lossy:
            state["warmup"] = jnp.asarray(self.scheme.warm_steps(self.steps), jnp.int32)
            state["fallback"] = jnp.zeros((), jnp.bool_)
            state["loss"] = jnp.zeros((), jnp.float32)
            state["bounds"] = jnp.asarray(self.bounds, jnp.float32)
        if self.scheme.kind == "dgc":
            state["ramp"] = jnp.asarray(self.scheme.ramp_steps(self.steps), jnp.int32)
        return state

    @property
    def bounds(self) -> tuple[float, float, float]:
        """What a fallback was decided by: scheme (a number for its name, exact in float32), limit and spike."""
        return float(zlib.crc32(self.scheme.kind.encode()) >> 8), self.scheme.limit, self.scheme.spike

    def _start(self, each: Leaf) -> jax.Array:
        """Random factors, the same in every process."""
        return jax.random.normal(jax.random.key(zlib.crc32(each.name.encode())), self._start_shape(each))

    def _start_shape(self, each: Leaf) -> tuple[int, ...]:
        """[devices that hold other pieces, ..., n, r] of PowerSGD's right factor."""
        *lead, m, n = self._matrix_shape(each)
        pieces = self.axes.local * math.prod(self.mesh.shape[axis] for axis in each.axes)
        return (pieces, *lead, n, min(self.scheme.rank, m, n))

    def _left_shape(self, each: Leaf) -> tuple[int, ...]:
        *lead, m, n = self._matrix_shape(each)
        return (*lead, m, min(self.scheme.rank, m, n))

    def _matrix_shape(self, each: Leaf) -> tuple[int, ...]:
        piece = tuple(d // self.axes.local if i == each.dim else d for i, d in enumerate(each.local))
        return jax.eval_shape(lambda x: matrix(x, each), jax.ShapeDtypeStruct(piece, jnp.float32)).shape

    def specs(self) -> State:
        """The partition of each tensor of the state."""
        slow, fast = self.axes.slow, self.axes.fast
        how: dict[str, Callable[[Leaf], P]] = {
            "worker": lambda each: each.spec(*fast, lead=(slow,)),
            "owner": lambda each: each.spec(*fast, slow),
            "node": lambda each: each.spec(*fast),
        }
        specs: State = {kind: {each.name: how[LEADS[kind]](each) for each in self.cut} for kind in self.kinds}
        if self._keeps_small:
            specs["small"] = {each.name: each.spec() for each in self.small}
        if self.scheme.kind == "powersgd":
            specs["start"] = {each.name: P((*fast, *each.axes)) for each in self.cut}
        if self.scheme.lossy:
            specs |= {"warmup": P(), "fallback": P(), "loss": P(), "bounds": P()}
        if self.scheme.kind == "dgc":
            specs["ramp"] = P()
        return specs

    def places(self) -> State:
        """The sharding of each tensor of the state."""
        is_spec = lambda x: isinstance(x, P)
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), self.specs(), is_leaf=is_spec)

    def payload(self) -> tuple[int, int]:
        """Bytes of codes, and of what travels exact, that one device hands to the network in a step of the lossy stage,
        counted from the shapes, padding included: what it sends of its own, twice where owners encode again."""
        workers, codec = self.axes.workers, self.scheme.codec
        legs = 2 if two_legs(self.scheme, workers) or self.scheme.kind == "int8_shared" else 1
        others = workers - 1
        if self.scheme.kind == "powersgd":
            sizes = [math.prod(self._start_shape(each)[1:]) for each in self.cut]
            left = [math.prod(self._left_shape(each)) for each in self.cut]
            codes = 2 * 4 * (sum(sizes) + sum(left)) * others // workers
        else:
            sliced = [self.stages.slices(bucket) for bucket in self.buckets]
            codes = others * (2 if legs == 2 else workers) * sum(n * payload(codec, step) for n, step in sliced)
        exact = 2 * 4 * sum(math.prod(each.local) for each in self.small) * others // workers
        return codes, exact

    def float32_bytes(self) -> int:
        """Bytes that one device hands to the network where float32 sums go around a ring of the workers."""
        shards = sum(math.prod(each.local) // (1 if each.dim is None else self.axes.local) for each in self.leaves)
        return 2 * 4 * shards * (self.axes.workers - 1) // self.axes.workers

    def gradients(
        self, objective: Objective, model: Any, batch: Any, key: jax.Array, state: Any, step: jax.Array
    ) -> Synced:
        """As `GradSync` says. With dropout, every replica draws noise of its own."""

        def replica(model: Any, batch: Any, key: jax.Array) -> tuple[Sums, Any]:
            for axis in REPLICA_AXES:
                key = jax.random.fold_in(key, jax.lax.axis_index(axis))
            return jax.tree.map(lambda a: a[None], accumulated(objective, model, batch, key))

        local = partial(jax.shard_map, mesh=self.mesh, axis_names=set(REPLICA_AXES), check_vma=False)
        each = P(REPLICA_AXES)
        sums, gradients = local(replica, in_specs=(P(), P(None, REPLICA_AXES), P()), out_specs=each)(model, batch, key)
        specs = self.specs()
        exchange = jax.shard_map(
            self._exchange,
            mesh=self.mesh,
            in_specs=(each, {one.name: one.spec(lead=REPLICA_AXES) for one in self.leaves}, specs, P(), P()),
            out_specs=(P(), {one.name: one.spec() for one in self.leaves}, specs, P()),
            check_vma=False,
        )
        with jax.named_scope("exchange"):
            sums, named, state, report = exchange(sums, named_leaves(gradients), state, step, key)
        return Synced(sums, from_named(gradients, named), state, report)

    def _exchange(
        self, sums: Sums, gradients: Arrays, state: State, step: jax.Array, key: jax.Array
    ) -> tuple[Sums, Arrays, State, Sums]:
        """On each device: its own piece of everything, in and out."""
        inside = {name: g[0] for name, g in gradients.items()}
        rows = [self._scatter(bucket, inside) for bucket in self.buckets]
        small = {each.name: jax.lax.psum(inside[each.name], self.axes.fast) for each in self.small}
        memories = [self._memory(bucket, state) for bucket in self.buckets]
        facts, norm = self._facts(sums, inside, rows, small, memories)
        weight = jnp.maximum(facts["weight"], 1.0)
        # In units of the mean gradient from here on, whatever the loss was scaled with (rule S10): the mean over
        # workers of what each gives is the gradient of the mean loss.
        unit = self.axes.workers / weight
        given = Packed(
            rows=[x * unit for x in rows],
            small={name: x * unit for name, x in small.items()},
            memories=memories,
            kept=state.get("small", {}),
            starts={name: q[0] for name, q in state.get("start", {}).items()},
        )
        ratio = jnp.sqrt(facts["owed"]) / jnp.maximum(jnp.sqrt(facts["norm"]) * unit, 1e-30)
        noise = jax.random.fold_in(key, _NOISE) if self.scheme.stochastic else None
        state, got, dense = self._staged(state, given, norm * unit, ratio, facts["loss"] / weight, step, noise)
        named = dict(got.small)
        for bucket, mean in zip(self.buckets, got.rows, strict=True):
            named |= self._collect(bucket, mean)
        # A step that is not finite must be seen as such, also where a code hides it (rule S7); the trainer then keeps
        # weights and memory as they were.
        named = {name: jnp.where(facts["bad"] == 0.0, g, jnp.nan) for name, g in named.items()}
        report = {"dense": dense} if self.scheme.feedback or self.scheme.lossy else {}
        report |= {"residual_ratio": ratio} if self.scheme.feedback else {}
        report |= {"fallback": state["fallback"].astype(jnp.float32)} if self.scheme.lossy else {}
        return {name: facts[name] for name in sums}, named, self._state(state, got), report

    def _staged(
        self,
        state: State,
        given: Packed,
        norm: jax.Array,
        ratio: jax.Array,
        loss: jax.Array,
        step: jax.Array,
        key: jax.Array | None,
    ) -> tuple[State, Packed, jax.Array]:
        """The exchange in the stage that this step is in, the state with that decided, and 1.0 where it is dense."""
        scheme, alone = self.scheme, self.axes.workers == 1
        if not scheme.lossy:
            stage = "dense" if alone else "lossy"
            return state, self.stages(stage, given, norm, step, key), jnp.asarray(float(alone))
        warm = step < state["warmup"]
        fallback = state["fallback"] | (~warm & self._out_of_bounds(state["loss"], ratio, loss))
        mean = jnp.where(state["loss"] == 0.0, loss, 0.95 * state["loss"] + 0.05 * loss)
        state = state | {"fallback": fallback, "loss": mean}
        after = step - state["warmup"]
        run = lambda stage: lambda given: self.stages(stage, given, norm, after, key, state.get("ramp"))
        dense = warm | fallback | alone
        branches = [run("lossy"), run("dense"), run("warm")]
        chosen = jnp.where(dense, jnp.where(warm, 2, 1), 0)
        if not scheme.momentum:  # nothing differs in the warm-up
            branches, chosen = branches[:2], jnp.minimum(chosen, 1)
        if alone:
            branches, chosen = branches[1:], chosen - 1
        got = jax.lax.switch(chosen, branches, given) if len(branches) > 1 else branches[0](given)
        return state, got, dense.astype(jnp.float32)

    def _out_of_bounds(self, mean: jax.Array, ratio: jax.Array, loss: jax.Array) -> jax.Array:
        """Whether what is owed, or the loss, has left its bounds (rule S15): from then on steps are dense."""
        owed = ratio > self.scheme.limit if self.scheme.limit else jnp.zeros((), jnp.bool_)
        spike = (mean > 0.0) & (loss > self.scheme.spike * mean) if self.scheme.spike else jnp.zeros((), jnp.bool_)
        return owed | spike

    def _facts(
        self, sums: Sums, inside: Arrays, rows: list[jax.Array], small: Arrays, memories: list[Memory]
    ) -> tuple[Sums, jax.Array]:
        """Over all workers, as one small exact exchange: the objective's sums, `bad` (devices with something that is
        not finite), `norm` and `owed` (squared norms of all workers' gradients and residuals). And this worker's own
        gradient norm."""
        axes = self.axes
        others = tuple(axis for axis in self.mesh.axis_names if axis != axes.slow)
        finite = [jnp.all(jnp.isfinite(x)) for x in (*inside.values(), *sums.values())]
        bad = jax.lax.psum(1.0 - jnp.all(jnp.stack(finite)).astype(jnp.float32), others)
        facts = {name: jax.lax.psum(value[0], axes.fast) for name, value in sums.items()} | {"bad": bad}
        zero = jnp.zeros((), jnp.float32)
        wanted = self.scheme.feedback or bool(self.clip)
        facts["norm"] = self._squares(rows, small) if wanted else zero
        owed = [memory["error"] for memory in memories] if self.scheme.feedback else []
        facts["owed"] = squares(owed, {}, self.buckets, axes) if owed else zero
        norm = jnp.sqrt(facts["norm"])
        total = reduce.exact_sum(jnp.stack([*facts.values()]).astype(jnp.float32), axes.slow, axes.workers)
        # What is not finite somewhere may have become anything in a sum.
        return dict(zip(facts, total, strict=True)), norm

    def _squares(self, rows: list[jax.Array], small: Arrays) -> jax.Array:
        """The squared norm of this worker's gradient."""
        total = squares(rows, {}, self.buckets, self.axes)
        for each in self.small:
            mine = jnp.sum(jnp.square(small[each.name]))
            total = total + (jax.lax.psum(mine, each.axes) if each.axes else mine)
        return total

    def _scatter(self, bucket: Bucket, inside: Arrays) -> jax.Array:
        """This device's shard of the node's sum of a bucket, [H, n]."""
        axes = self.axes
        packed = bucket.pack(inside, (axes.local, axes.workers))
        return packed[0] if axes.local == 1 else jax.lax.psum_scatter(packed, axes.fast, scatter_dimension=0)

    def _collect(self, bucket: Bucket, mean: jax.Array) -> Arrays:
        """The node's shards of a bucket put together, as gradients by name."""
        axes = self.axes
        packed = mean[None] if axes.local == 1 else jax.lax.all_gather(mean, axes.fast)
        return bucket.unpack(packed, (axes.local, axes.workers))

    def _parts(self, kind: str) -> tuple[int, ...]:
        return () if LEADS[kind] == "owner" else (self.axes.workers,)

    def _memory(self, bucket: Bucket, state: State) -> Memory:
        """What is remembered of a bucket, packed."""

        def pieces(kind: str) -> Arrays:
            held = {each.name: state[kind][each.name] for each in bucket.leaves}
            return {name: x[0] for name, x in held.items()} if LEADS[kind] == "worker" else held

        return {kind: bucket.pack(pieces(kind), self._parts(kind)) for kind in self.kinds}

    def _state(self, state: State, got: Packed) -> State:
        """The state with what is remembered now."""
        after = dict(state)
        for kind in self.kinds:
            named: Arrays = {}
            for bucket, memory in zip(self.buckets, got.memories, strict=True):
                named |= bucket.unpack(memory[kind], self._parts(kind))
            after[kind] = {name: x[None] for name, x in named.items()} if LEADS[kind] == "worker" else named
        if self._keeps_small:
            after["small"] = got.kept
        if self.scheme.kind == "powersgd":
            after["start"] = {name: q[None] for name, q in got.starts.items()}
        return after


_NOISE = 0x5EED
"""Folded into a step's key for rounding, so that it is independent of dropout."""


def cut_leaves(model: Any, mesh: Mesh, table: Table, slow: str) -> tuple[Leaf, ...]:
    """How the weights of a model (arrays or shapes) are cut on a mesh. Raises PlanError where none can be."""
    places, axes, replicas = named_leaves(shardings(model, mesh, table)), named_axes(model), Axes.of(mesh, slow)
    leaves = tuple(
        leaf(name, each.shape, places[name].spec, axes[name], mesh, replicas)
        for name, each in named_leaves(model).items()
    )
    if not any(each.dim is not None for each in leaves):
        parts = replicas.workers * replicas.local
        raise PlanError(f"communication.{slow}: no weight has a dimension that {parts} replicas divide")
    return leaves

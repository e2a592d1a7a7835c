"""Local steps: every worker trains weights of its own for a while, then the workers exchange how far they came.

DiLoCo (Douillard et al., 2023, https://arxiv.org/abs/2311.08105): the mean difference to the common weights is the
gradient of an outer SGD with Nesterov momentum. The difference may be exchanged in few bits with error feedback, or as
top-K (SparseLoCo, https://arxiv.org/abs/2508.15706), whose residual then decays, since it carries old learning rates
(rule S9). This is the frequency delta_ij of eq. 7: H steps share one exchange.

The common weights are the model of the training state; what each worker has is state of the exchange.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.collectives.buckets import Axes, Bucket, Leaf, buckets
from jaxlm.collectives.reduce import exact_sum
from jaxlm.collectives.schemes import Scheme
from jaxlm.collectives.stages import Arrays, Packed, Stages
from jaxlm.collectives.sync import Objective, Sums, accumulated
from jaxlm.sharding import shardings
from jaxlm.tree import from_named, named_leaves
from planners.plan import Table

State = dict[str, Any]


@dataclass(frozen=True)
class LocalSteps:
    """The exchange of one scheme of local steps, and the training between exchanges.

    Attributes:
        scheme: how often, in what, and the outer optimizer.
        mesh: where.
        leaves: how each weight is cut.
        steps: of the whole run; the last one exchanges too.
        tx: the inner optimizer.
        optimizer: where the inner optimizer's state lies.
    """

    scheme: Scheme
    mesh: Mesh
    leaves: tuple[Leaf, ...]
    steps: int
    tx: optax.GradientTransformation
    optimizer: Table

    @cached_property
    def axes(self) -> Axes:
        return Axes.of(self.mesh, self.scheme.axis)

    @property
    def feedback(self) -> bool:
        """From four bits down (rule S2)."""
        return self.scheme.bits in (4, 0)

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        return buckets(self.leaves, self.axes, self.scheme.codec.unit, round(self.scheme.bucket_mb * 2**18))

    @cached_property
    def stages(self) -> Stages:
        # The exchange itself is that of a gradient: two legs, or sparse codes to everybody.
        kind = "topk" if self.scheme.bits == 0 else "exact"
        inner = dataclasses.replace(self.scheme, kind=kind, feedback=self.feedback, momentum=False)
        return Stages(inner, self.axes, self.buckets, 0.0, 0.0, codec=self.scheme.codec)

    def init(self, model: Any) -> State:
        """Every worker begins with the common weights."""
        workers = self.axes.workers
        stacked = lambda tree: jax.tree.map(lambda a: jnp.broadcast_to(a[None], (workers, *a.shape)), tree)
        state: State = {
            "model": stacked(model),
            "opt": stacked(self.tx.init(model)),
            "outer": jax.tree.map(jnp.zeros_like, model),
        }
        cut = [e for e in self.leaves if e.dim is not None]
        lead = {"error": (workers,), "owner": ()}
        return state | {kind: {e.name: jnp.zeros((*lead[kind], *e.shape)) for e in cut} for kind in self._owed()}

    def places(self, model: Any) -> State:
        """The sharding of each tensor of the state; `model` holds arrays or shapes."""
        slow, on = self.axes.slow, lambda spec: NamedSharding(self.mesh, spec)
        weights = from_named(model, {e.name: on(e.spec()) for e in self.leaves})
        moments = shardings(jax.eval_shape(self.tx.init, model), self.mesh, self.optimizer)
        lead = lambda tree: jax.tree.map(lambda place: on(P((slow,), *place.spec)), tree)
        places: State = {"model": lead(weights), "opt": lead(moments), "outer": weights}
        return places | {kind: {e: on(spec) for e, spec in specs.items()} for kind, specs in self._owed().items()}

    def _owed(self) -> dict[str, dict[str, P]]:
        """The partitions of what is owed: by each worker, and where owners encode again, by them (rule S3)."""
        axes, cut = self.axes, [e for e in self.leaves if e.dim is not None]
        error = {e.name: e.spec(*axes.fast, lead=(axes.slow,)) for e in cut}
        owner = {e.name: e.spec(*axes.fast, axes.slow) for e in cut}
        return ({"error": error} if self.feedback else {}) | ({"owner": owner} if self.scheme.bits == 4 else {})

    def train(self, objective: Objective, state: State, batch: Any, key: jax.Array) -> tuple[Sums, State, jax.Array]:
        """One step of every worker by itself: sums over all of them, their state, and the norm of each gradient tensor,
        float32 [tensors], the mean over workers."""
        axes = self.axes

        def worker(model: Any, opt: Any, batch: Any, key: jax.Array) -> Any:
            key = jax.random.fold_in(key, jax.lax.axis_index(axes.slow))
            model, opt = jax.tree.map(lambda a: a[0], (model, opt))
            sums, gradients = accumulated(objective, model, batch, key)
            weight = jnp.maximum(sums["weight"], 1.0)
            gradients = jax.tree.map(lambda g: g / weight, gradients)
            norms = jnp.stack([jnp.linalg.norm(g.astype(jnp.float32).reshape(-1)) for g in jax.tree.leaves(gradients)])
            updates, opt = self.tx.update(gradients, opt, model)
            model = optax.apply_updates(model, updates)
            return jax.tree.map(lambda a: a[None], (sums, model, opt, norms))

        each, cut = P((axes.slow,)), P(None, (axes.slow,))
        sums, model, opt, norms = jax.shard_map(
            worker, mesh=self.mesh, axis_names={axes.slow}, check_vma=False,
            in_specs=(each, each, cut, P()), out_specs=each,
        )(state["model"], state["opt"], batch, key)  # fmt: skip
        names = sorted(sums)
        facts = jnp.concatenate([jnp.stack([sums[name] for name in names], axis=1), norms], axis=1)
        add = lambda mine: exact_sum(mine[0], axes.slow, axes.workers)
        total = jax.shard_map(add, mesh=self.mesh, in_specs=each, out_specs=P(), check_vma=False)(facts)
        found = {name: total[i] for i, name in enumerate(names)}
        return found, state | {"model": model, "opt": opt}, total[len(names) :] / axes.workers

    def exchange(self, model: Any, state: State, step: jax.Array) -> tuple[Any, State]:
        """The common weights and the state after `step` steps are done: an exchange where one is due."""
        due = (step % self.scheme.every == 0) | (step == self.steps)
        meet: Callable[..., Any] = lambda model, state: self._meet(model, state)
        return jax.lax.cond(due, meet, lambda model, state: (model, state), model, state)

    def _meet(self, model: Any, state: State) -> tuple[Any, State]:
        slow, scheme = self.axes.slow, self.scheme
        weights = {e.name: e.spec() for e in self.leaves}
        apart = {e.name: P((slow,), *e.spec()) for e in self.leaves}
        owed = self._owed()
        mean, left = jax.shard_map(
            self._mean, mesh=self.mesh, check_vma=False,
            in_specs=(weights, apart, owed), out_specs=(weights, owed),
        )(named_leaves(model), named_leaves(state["model"]), {kind: state[kind] for kind in owed})  # fmt: skip
        outer, after = {}, {}
        for name, weight in named_leaves(model).items():
            # Nesterov, as optax.sgd(rate, momentum, nesterov=True).
            outer[name] = scheme.outer_momentum * named_leaves(state["outer"])[name] + mean[name]
            step = scheme.outer_momentum * outer[name] + mean[name]
            after[name] = weight - scheme.outer_rate * step
        common = from_named(model, after)
        apart_again = jax.tree.map(lambda a: jnp.broadcast_to(a[None], (self.axes.workers, *a.shape)), common)
        state = state | {"model": apart_again, "outer": from_named(state["outer"], outer)}
        return common, state | left

    def _mean(self, common: Arrays, apart: Arrays, owed: dict[str, Arrays]) -> tuple[Arrays, dict[str, Arrays]]:
        """On each device: the mean over workers of how far they went, its own pieces."""
        axes = self.axes
        gone = {name: common[name] - x[0] for name, x in apart.items()}
        here = jax.lax.axis_index(axes.fast)
        parts = (axes.local, axes.workers)
        rows = [bucket.pack(gone, parts)[here] for bucket in self.buckets]
        mine = {kind: {n: self.scheme.decay * e for n, e in errors.items()} for kind, errors in owed.items()}
        if "error" in mine:
            mine["error"] = {name: e[0] for name, e in mine["error"].items()}
        cuts: dict[str, tuple[int, ...]] = {"error": (axes.workers,), "owner": ()}
        held = [{kind: bucket.pack(mine[kind], cuts[kind]) for kind in mine} for bucket in self.buckets]
        small = {e.name: gone[e.name] for e in self.leaves if e.dim is None}
        given = Packed(rows, small, held, {}, {})
        zero = jnp.zeros((), jnp.int32)
        stage = "dense" if axes.workers == 1 else "lossy"
        got = self.stages(stage, given, jnp.zeros(()), zero, None)
        named, left = dict(got.small), {kind: {} for kind in mine}
        for bucket, mean, memory in zip(self.buckets, got.rows, got.memories, strict=True):
            packed = mean[None] if axes.local == 1 else jax.lax.all_gather(mean, axes.fast)
            named |= bucket.unpack(packed, parts)
            for kind in mine:
                lead = (lambda x: x[None]) if kind == "error" else (lambda x: x)
                left[kind] |= {n: lead(x) for n, x in bucket.unpack(memory[kind], cuts[kind]).items()}
        return named, left


def shared(saved: Mapping[str, jax.Array], like: Mapping[str, Any]) -> dict[str, jax.Array]:
    """What other workers left, for as many as there are now: weights, moments and residuals are the mean of theirs,
    counts the first one's."""

    def fit(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        if array.shape == shape:
            return array
        whole = jnp.issubdtype(array.dtype, jnp.floating)
        one = jnp.mean(array, axis=0, keepdims=True) if whole else array[:1]
        return jnp.broadcast_to(one, shape).astype(array.dtype)

    places = {name: leaf.sharding for name, leaf in like.items()}
    build = lambda saved: {name: fit(saved[name], leaf.shape) for name, leaf in like.items()}
    return jax.jit(build, out_shardings=places)(dict(saved))

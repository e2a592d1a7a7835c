"""The pieces that training, evaluation and generation share: corpus, model, plan, mesh and state, put together."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from jaxlm import syncing
from jaxlm.checkpoints.errors import CheckpointError
from jaxlm.checkpoints.store import Store
from jaxlm.collectives.local import LocalSteps
from jaxlm.collectives.schemes import Scheme
from jaxlm.collectives.sync import GradSync, Objective
from jaxlm.config import Run
from jaxlm.data.feed import Feed, Shared
from jaxlm.data.loader import Loader
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.decode import ConfigError
from jaxlm.fairness.turns import taking_turns
from jaxlm.model.attention import Kernel, choose_kernel
from jaxlm.model.config import ModelConfig
from jaxlm.model.describe import describe
from jaxlm.model.transformer import Execution
from jaxlm.privacy.feed import PoissonFeed, Sampled
from jaxlm.privacy.sampling import Secret
from jaxlm.runtime.distributed import cores
from jaxlm.sharding import Rules, batch_sharding, make_mesh, replicated, shardings
from jaxlm.task import batch_kinds, classes_of, model_of, objective_of
from jaxlm.trainer.balanced import (
    BalancedStep,
    Pace,
    Sums,
    make_balanced_programs,
    seconds_shape,
    seconds_sharding,
    sums_sharding,
)
from jaxlm.trainer.local import make_local_step
from jaxlm.trainer.private import Noise, PrivateStep, make_private_programs
from jaxlm.trainer.private import Sums as PrivateSums
from jaxlm.trainer.state import TrainState, init_state
from jaxlm.trainer.step import make_train_step
from jaxlm.tree import from_named, named_leaves
from planners.layout import rules
from planners.machines.cluster_file import load_cluster
from planners.machines.presets import local_cluster
from planners.machines.topology import Cluster
from planners.plan import BATCH_AXES, MESH_AXES, Batch, Plan, PlanError, Segment, Workload


def local_machine() -> Cluster:
    """The devices of this job as the planner sees them."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    return local_cluster(device.device_kind, jax.device_count(), stats.get("bytes_limit"), jax.process_count(), cores())


def described_machine(file: Path) -> Cluster:
    """This job as a cluster file describes it, such as `jaxlm probe` writes. Raises PlanError where it is another."""
    here, found = local_machine(), load_cluster(file)
    if found.count != here.count or (found.device.kind == "cpu") != (here.device.kind == "cpu"):
        raise PlanError(
            f"--cluster {file} describes {found.describe()}, but this job has {here.describe()}; probe it again: "
            f"jaxlm probe --out {file}"
        )
    return found


def expected_vocab(run: Run) -> int:
    """Tokens of the tokenizer that the data will have, known before any text is read."""
    tokenizer = run.data.tokenizer
    return Tokenizer.load(tokenizer.path).vocab if tokenizer.path else tokenizer.vocab


def resolve(run: Run, vocab: int) -> ModelConfig:
    """The model with its vocabulary and position table filled in. Raises ConfigError where they do not fit."""
    model = run.model
    if model.vocab and model.vocab < vocab:
        raise ConfigError(
            f"model.vocab={model.vocab} is smaller than the tokenizer's {vocab} tokens; "
            f"set model.vocab to 0 or at least {vocab}, or data.tokenizer.vocab to at most {model.vocab}"
        )
    positions = model.positions or run.data.sequence
    return dataclasses.replace(model, vocab=model.vocab or vocab, positions=positions)


BFLOAT16 = (8, 0)
"""The first compute capability that multiplies bfloat16 matrices: a V100 (7.0) has tensor cores for float16 only,
https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#arithmetic-instructions, and `auto` means float32."""


@dataclass(frozen=True, slots=True)
class Numerics:
    """The two choices that depend on the platform: compute dtype and attention kernel."""

    platform: str
    dtype: str
    kernel: Kernel


def numerics(
    model: ModelConfig, platform: str, *, elsewhere: bool = False, capability: tuple[int, int] | None = None
) -> Numerics:
    """Raises ConfigError when the configured kernel cannot run; it is never replaced silently.

    Args:
        model: what is to be computed.
        platform: `cpu` or `gpu`.
        elsewhere: on a machine other than this one.
        capability: the compute capability of the GPUs there; None where it is not known.
    """
    capability = capability if elsewhere else _capability()
    tensor_cores = platform != "cpu" and (capability is None or capability >= BFLOAT16)
    dtype = model.dtype if model.dtype != "auto" else ("bfloat16" if tensor_cores else "float32")
    try:
        return Numerics(platform, dtype, choose_kernel(model, platform, dtype, capability))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _capability() -> tuple[int, int] | None:
    """The compute capability of this machine's GPU, None where there is none."""
    if jax.default_backend() != "gpu":
        return None
    major, minor = jax.local_devices()[0].compute_capability.split(".")
    return int(major), int(minor)


def workload_of(run: Run, model: ModelConfig, how: Numerics) -> Workload:
    work = describe(
        model,
        run.optim.build(run.train.steps),
        batch=run.train.batch,
        sequence=run.data.sequence,
        kernel=how.kernel,
        dtype=how.dtype,
        packed=run.apart,
        classes=classes_of(run),
    )
    private = documents_at_once(run, work.parameter_count) if run.privacy.enabled else 0
    return dataclasses.replace(work, trained_by=run.optim.kind, documents=private)


GRADIENTS = 1 << 30
"""Bytes of gradients of single documents that a device holds at once, where privacy.examples does not say."""


def documents_at_once(run: Run, parameters: int) -> int:
    """Documents of which a device holds the float32 gradients at once, as far as a microbatch has so many."""
    return run.privacy.examples or max(1, GRADIENTS // (4 * parameters))


FREEZE = "opt/adam/freeze"
"""The step at which the optimizer of a compressed momentum freezes its variance."""


def require_known(step: int, saved: Mapping[str, Any], known: set[str]) -> None:
    """Raises CheckpointError for tensors of a checkpoint that this model does not have."""
    if strange := sorted(set(saved) - known):
        shown = ", ".join(strange[:5]) + (f" and {len(strange) - 5} more" if len(strange) > 5 else "")
        raise CheckpointError(
            f"checkpoint {step} does not fit this model: it has {shown}, this model does not\n"
            "use the configuration that it was trained with: config.yaml of its run"
        )


def _like(batch: Any) -> Any:
    """The batch as shapes with shardings."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), batch)


def inference_plan(model: ModelConfig, devices: int, batch: int) -> Plan:
    """Weights spread over all devices, the batch with them; for evaluation and generation."""
    mesh = dict.fromkeys(MESH_AXES, 1) | {"fsdp": devices}
    return Plan(
        mesh=mesh,
        rules=rules(mesh),
        batch=Batch(sequences=batch, microbatch=batch, accumulation=1),
        remat=(Segment(layers=model.layers),),
    )


@dataclass(frozen=True)
class Session:
    """A model on a mesh, as a Plan says. Use inside `with jax.set_mesh(session.mesh)`.

    `devices` are those of this job unless others are given, such as GPUs that can be compiled for and nothing else.
    """

    run: Run
    model: ModelConfig
    how: Numerics
    plan: Plan
    devices: tuple[Any, ...] = ()

    @cached_property
    def mesh(self) -> jax.sharding.Mesh:
        return make_mesh(self.plan, self.devices)

    @cached_property
    def scheme(self) -> Scheme | None:
        """How gradients travel over a slow axis; None where they travel exactly."""
        return syncing.asked(self.run, self.plan)

    @cached_property
    def tx(self) -> optax.GradientTransformation:
        tx = syncing.optimizer(self.run, self.scheme)
        return tx if self.run.fairness is None else taking_turns(tx, self.run.fairness)

    @cached_property
    def sync(self) -> GradSync | LocalSteps:
        shapes = jax.eval_shape(lambda: model_of(self.run, self.model, self.execution, jax.random.key(0)))
        return syncing.sync_of(self.run, self.plan, self.scheme, self.mesh, shapes)

    @cached_property
    def execution(self) -> Execution:
        shard = Rules(self.plan.rules.activations, rest=self.plan.rules.parameters)
        if self.run.privacy.enabled:  # each row is differentiated by itself, and rows lie along the batch's axes
            shard = Rules(tuple((name, to) for name, to in self.plan.rules.activations if name != "batch"))
        return Execution(
            shard=shard,
            kernel=self.how.kernel,
            dtype=self.how.dtype,
            remat=self.plan.remat,
            unroll=self.plan.compile.unroll,
            loss_chunks=self.plan.compile.loss_chunks,
            microbatches=self.plan.batch.accumulation,
        )

    @property
    def logs_layers(self) -> int:
        """After how many steps each time the step computes the norms that the audit trail logs of every tensor; 0:
        never."""
        return self.run.governance.layers_every if self.run.governance.enabled else 0

    @cached_property
    def objective(self) -> Objective:
        """What is learned: sums over a batch of its loss, and to report."""
        return objective_of(self.run)

    def _init(self, key: jax.Array) -> TrainState[Any]:
        return init_state(model_of(self.run, self.model, self.execution, key), self.tx, self.sync)

    @cached_property
    def abstract(self) -> TrainState[Any]:
        """The training state as shapes with shardings: nothing is allocated."""
        state = jax.eval_shape(lambda: self._init(jax.random.key(0)))
        places = shardings(state, self.mesh, self.plan.rules.parameters)
        opt = shardings(state.opt, self.mesh, self.plan.rules.optimizer)
        sync = syncing.places(self.sync, state.model)
        places = dataclasses.replace(places, opt=opt, sync=sync)
        with_sharding = lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p)
        return jax.tree.map(with_sharding, state, places)

    @cached_property
    def places(self) -> Any:
        """The sharding of every tensor of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    def fresh(self, begins: Callable[[Any], Any] | None = None) -> TrainState[Any]:
        """A new state, born sharded: no device ever holds a full replica. `begins` may change its weights."""
        state = jax.jit(self._init, out_shardings=self.places)(jax.random.key(self.run.seed))
        if begins is None or (model := begins(state.model)) is state.model:
            return state
        return dataclasses.replace(state, model=model, sync=self.begun(model, state.sync))

    def restore(self, store: Store, step: int) -> tuple[TrainState[Any], dict[str, Any]]:
        """The state saved after `step` steps, laid out for this plan, and the facts saved with it."""
        like, saved = named_leaves(self.abstract), store.names(step)
        ours = {name: leaf for name, leaf in like.items() if not name.startswith("sync/")}
        theirs = {name for name in saved if name.startswith("sync/")}
        # The step of the freeze is there from the first plan on that compresses the momentum.
        if FREEZE not in ours and FREEZE in saved:
            theirs.add(FREEZE)
        missing = {FREEZE} & (ours.keys() - saved.keys())
        wanted = {name: leaf for name, leaf in ours.items() if name not in missing} | syncing.readable(
            self.sync, saved, self.abstract.model
        )
        if theirs:
            require_known(step, saved, {*wanted, *theirs})
        named, facts = store.restore(step, wanted, partial=bool(theirs))
        if missing:
            warm = self.scheme.warm_steps(self.run.train.steps) if self.scheme else 0
            named[FREEZE] = jax.device_put(jnp.asarray(warm, jnp.int32), replicated(self.mesh))
        sync, said = syncing.restored(self.sync, saved, named, step, self.abstract.model)
        facts = facts if said is None else {**facts, "residuals": said}
        state = from_named(dataclasses.replace(self.abstract, sync=()), named)
        state = dataclasses.replace(state, sync=sync)
        # A run that stopped at a step that was not finite goes on from the last good state.
        finite = jax.device_put(jnp.ones((), jnp.bool_), replicated(self.mesh))
        return dataclasses.replace(state, finite=finite), facts

    def begun(self, model: Any, sync: Any) -> Any:
        """The state of a sync that begins with these weights: workers that train apart have copies of them."""
        if not isinstance(self.sync, LocalSteps):
            return sync
        return jax.jit(self.sync.init, out_shardings=self.places.sync)(model)

    def restore_model(self, store: Store, step: int) -> Any:
        """The weights alone."""
        like = {f"model/{name}": leaf for name, leaf in named_leaves(self.abstract.model).items()}
        named, _ = store.restore(step, like, partial=True)
        return from_named(self.abstract.model, {name.removeprefix("model/"): leaf for name, leaf in named.items()})

    def feed(self, source: Any, accumulation: int, sequences: int, *, packed: bool | None = None) -> Feed:
        packed = self.run.apart if packed is None else packed
        return Feed(source, batch_sharding(self.mesh), accumulation, sequences, packed=packed)

    @cached_property
    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The batch of one training step as shapes with shardings."""
        rows = (self.plan.batch.accumulation, self.plan.batch.microbatch)
        place = batch_sharding(self.mesh)
        kinds = batch_kinds(self.run, rows)
        return {name: jax.ShapeDtypeStruct(shape, kind, sharding=place) for name, (shape, kind) in kinds.items()}

    def shared_feed(self, source: Any, slots: int, sequences: int, shares: Callable[[], Sequence[int]]) -> Shared:
        """Batches for `compile_balanced`: at most `slots` microbatches of `sequences` for each replica."""
        packed = self.run.apart
        return Shared(source, self.mesh, slots, sequences, shares, packed=packed)

    def compile_step(self, batch: Any) -> jax.stages.Compiled:
        """The training step, compiled once, ahead of the first step. Raises ConfigError for an unknown XLA option."""
        rate = self.run.optim.rate(self.run.train.steps)
        how: dict[str, Any] = {
            "seed": self.run.seed,
            "report": lambda s: {"lr": rate(s)},
            "layers": self.logs_layers,
        }
        if isinstance(self.sync, LocalSteps):
            step = make_local_step(self.objective, self.sync, **how)
        else:
            step = make_train_step(self.objective, self.tx, self.sync, **how)
        return self._compiled(step, (self.abstract, _like(batch)), (self.places, replicated(self.mesh)), donate=(0,))

    def compile_balanced(self, batch: Any, pace: Pace | None = None) -> BalancedStep:
        """The training step whose replicas compute unequal shares, of batches from `shared_feed`. Raises likewise."""
        rate = self.run.optim.rate(self.run.train.steps)
        compute, finish = make_balanced_programs(
            self.objective, self.tx, seed=self.run.seed, report=lambda s: {"lr": rate(s)}, layers=self.logs_layers
        )
        like, state = _like(batch), self.abstract
        shapes: Sums = jax.eval_shape(compute, state.model, state.step, like)
        places = sums_sharding(self.mesh, shapes, self.places.model)
        first = self._compiled(compute, (state.model, state.step, like), places)
        sums = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)
        seconds = jax.ShapeDtypeStruct(seconds_shape(self.mesh), jnp.float32, sharding=seconds_sharding(self.mesh))
        given = (state, sums, like["shares"], seconds)
        second = self._compiled(finish, given, (self.places, replicated(self.mesh)), donate=(0,))
        return BalancedStep(first, second, self.mesh, pace)

    @property
    def private_rows(self) -> int:
        """Documents whose gradients are computed at once, over all devices."""
        shards = self.plan.replicas
        parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.abstract.model))
        return shards * min(documents_at_once(self.run, parameters), -(-self.plan.batch.microbatch // shards))

    def poisson_feed(self, loader: Loader, secret: Secret) -> PoissonFeed:
        """Samples for `compile_private`."""
        (part,) = loader.parts
        rate = self.run.train.batch / len(part.rows)
        return PoissonFeed(
            part.rows,
            secret,
            rate,
            self.mesh,
            rows=self.private_rows,
            sequence=self.run.data.sequence,
            pad=part.stream.pad,
        )

    def compile_private(self, sampled: Sampled, multiplier: float) -> PrivateStep:
        """The training step with differential privacy, of samples from `poisson_feed`. Raises likewise."""
        rate, run = self.run.optim.rate(self.run.train.steps), self.run
        places = self.places.model
        compute, finish = make_private_programs(
            self.objective,
            self.tx,
            Noise(run.privacy, multiplier, run.train.batch, float(run.train.batch * run.data.sequence)),
            axes=BATCH_AXES,
            place=lambda gradients: jax.lax.with_sharding_constraint(gradients, places),
            seed=run.seed,
            report=lambda s: {"lr": rate(s)},
            layers=self.logs_layers,
        )
        state, chunk = self.abstract, _like(sampled.chunks[0])
        sums: Any = PrivateSums(places, cast(Any, replicated(self.mesh)))
        first = self._compiled(compute, (state.model, state.step, chunk), sums)
        shapes = jax.eval_shape(compute, state.model, state.step, chunk)
        done = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, sums)
        given = (state, done, _like(sampled.key))
        return PrivateStep(first, self._compiled(finish, given, (self.places, replicated(self.mesh)), donate=(0,)))

    def _compiled(self, program: Any, given: Any, out: Any, donate: tuple[int, ...] = ()) -> jax.stages.Compiled:
        options = dict(self.plan.compile.options)
        jitted = jax.jit(program, donate_argnums=donate, out_shardings=out, compiler_options=options or None)
        try:
            return jitted.lower(*given).compile()
        except jax.errors.JaxRuntimeError as error:
            if "No such compile option" not in str(error):
                raise
            name = str(error).split("option:")[-1].strip().strip("'\"")
            raise ConfigError(
                f"plan.options: this jaxlib ({version('jaxlib')}) knows no XLA option {name!r}; "
                f"remove it or check its spelling (options given: {', '.join(sorted(options))})"
            ) from None

    def sums(self) -> Callable[[Any, Any], dict[str, jax.Array]]:
        """`(model, batch [1, B, T]) -> nll and weight`, for evaluation."""

        def evaluate(model: Any, batch: Any) -> dict[str, jax.Array]:
            return self.objective(model, jax.tree.map(lambda leaf: leaf[0], batch), None)[1]

        return jax.jit(evaluate, out_shardings=replicated(self.mesh))

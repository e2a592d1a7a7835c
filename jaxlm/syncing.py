"""What a Plan's `communication` makes of a run: its gradient sync, its optimizer, and what it refuses."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlm.collectives import adopt
from jaxlm.collectives.compressed import Compressed, cut_leaves
from jaxlm.collectives.local import LocalSteps, shared
from jaxlm.collectives.schemes import Scheme, check, compressed, scheme
from jaxlm.collectives.sync import GradSync, Implicit
from jaxlm.config import Run
from jaxlm.optim import AdamW, Sgd
from jaxlm.tree import from_named, named_leaves
from planners.plan import Plan, PlanError

Facts = tuple[tuple[int, ...], Any]
"""Shape and dtype of a tensor in a checkpoint."""

CLIPS = ("sign", "topk", "dgc")
"""Schemes that clip each worker's gradient before anything is stored; a clip after the exchange would see bursts of
what was stored (rule S6)."""


def asked(run: Run, plan: Plan) -> Scheme | None:
    """The scheme of the plan's slow axis; None where gradients travel exactly. Raises PlanError for one that cannot
    work here, or is known to spoil training and not allowed."""
    said = compressed(plan.communication)
    if run.privacy.enabled and (said is not None or plan.batch.balance is not None):
        what = "plan.balance" if said is None else f"communication.{said.axis}"
        raise PlanError(
            f"privacy.enabled and {what}: the noise covers sums of clipped gradients that all replicas add up exactly, "
            "once per step; leave communication out and set plan.balance to never"
        )
    if said is None:
        return None
    workers = plan.mesh.get(said.axis, 1)
    made = scheme(said, workers)
    momentum = run.optim.momentum if isinstance(run.optim, Sgd) else 0.0
    check(made, run.optim.kind, workers, momentum=momentum, allow_unsafe=run.plan.allow_unsafe)
    if plan.batch.balance is not None:
        raise PlanError(
            f"communication.{said.axis} and plan.balance: replicas with unequal shares add up their gradients exactly, "
            "once per step; set plan.balance to never"
        )
    if run.train.replan.enabled:
        raise PlanError(
            f"communication.{said.axis} and train.replan: residuals belong to the workers of one mesh; turn one of the "
            "two off"
        )
    return made


def optimizer(run: Run, made: Scheme | None) -> optax.GradientTransformation:
    """The run's optimizer, as its exchange needs it: what the exchange does itself is left out."""
    steps = run.train.steps
    if made is not None and made.kind == "local_sgd":
        return optax.identity()  # each worker has its own, which is state of the exchange
    if made is None or made.kind not in CLIPS:
        return run.optim.build(steps)
    if made.momentum and isinstance(run.optim, AdamW):
        return run.optim.frozen(steps, made.warm_steps(steps))
    if made.kind == "dgc" and isinstance(run.optim, Sgd):
        return dataclasses.replace(run.optim, clip_norm=0.0, momentum=0.0).build(steps)
    return dataclasses.replace(run.optim, clip_norm=0.0).build(steps)


def sync_of(run: Run, plan: Plan, made: Scheme | None, mesh: Mesh, model: Any) -> GradSync | LocalSteps:
    """The sync of a model, given as arrays or shapes."""
    if made is None:
        return Implicit()
    leaves = cut_leaves(model, mesh, plan.rules.parameters, made.axis)
    if made.kind == "local_sgd":
        inner = run.optim.build(run.train.steps)
        return LocalSteps(made, mesh, leaves, run.train.steps, inner, plan.rules.optimizer)
    optim, decay = run.optim, 0.0
    if isinstance(optim, AdamW) and made.momentum:
        decay = optim.b1
    elif isinstance(optim, Sgd) and made.kind == "dgc":
        decay = optim.momentum
    clip = optim.clip_norm if made.kind in CLIPS else 0.0
    return Compressed(made, mesh, leaves, run.train.steps, decay=decay, clip=clip)


def describe(sync: GradSync | LocalSteps) -> str | None:
    """One line on what travels; None where all is exact."""
    if isinstance(sync, LocalSteps):
        scheme = sync.scheme
        told = f"top {scheme.density:.2%}" if scheme.bits == 0 else f"{scheme.bits} bits"
        return (
            f"weights: {sync.axes.workers} workers along {scheme.axis} train apart and exchange their difference in "
            f"{told} every {scheme.every} steps; what is evaluated and generated from is what they have in common"
        )
    if not isinstance(sync, Compressed):
        return None
    kind, axis, workers = sync.scheme.kind, sync.scheme.axis, sync.axes.workers
    if workers == 1:
        return f"gradients: {kind} along {axis}, which has one worker: nothing is compressed"
    sent, exact = sync.payload()
    share = sum(math.prod(each.shape) for each in sync.cut) / sum(math.prod(each.shape) for each in sync.leaves)
    warm = f", dense for the first {sync.scheme.warm_steps(sync.steps)} steps" if sync.scheme.warmup else ""
    whole = [each for each in sync.small if len(each.shape) - each.stacked > 1]
    uncut = f"; exact, because no dimension divides: {', '.join(each.name for each in whole)}" if whole else ""
    return (
        f"gradients: {kind} along {axis} among {workers} workers, {share:.1%} of weights compressed, {sent:,} bytes of "
        f"codes and {exact:,} of exact values per device and step by count (float32: {sync.float32_bytes():,}){warm}"
        f"{uncut}"
    )


def held_bytes(sync: GradSync | LocalSteps, state: Any) -> int:
    """Bytes that a sync's state (shapes with shardings) takes of each device beside one model and one optimizer state,
    which the planner counts."""
    counted = isinstance(sync, LocalSteps)  # its optimizer's state is the only one there is
    leaves = jax.tree.leaves({name: x for name, x in state.items() if name != "opt"} if counted else state)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def places(sync: GradSync | LocalSteps, model: Any) -> Any:
    """The sharding of each tensor of a sync's state; `model` holds arrays or shapes."""
    if isinstance(sync, LocalSteps):
        return sync.places(model)
    return sync.places() if isinstance(sync, Compressed) else ()


def readable(sync: GradSync | LocalSteps, names: Mapping[str, Facts], model: Any) -> dict[str, Any]:
    """What the sync of a model (arrays or shapes) takes over of a checkpoint whose tensors are `names`, by the names it
    has there, as shapes."""
    if isinstance(sync, LocalSteps):
        return local_readable(sync, model, names)
    if not isinstance(sync, Compressed):
        return {}
    return {f"{PREFIX}{name}": shape for name, shape in adopt.readable(sync, _of_sync(names)).items()}


def _local(sync: LocalSteps, model: Any) -> tuple[Any, dict[str, Any]]:
    """The state of local steps as shapes with shardings: as a tree, and by name."""
    with_place = lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p)
    state = jax.tree.map(with_place, jax.eval_shape(sync.init, model), sync.places(model))
    return state, named_leaves(state)


def local_readable(sync: LocalSteps, model: Any, names: Mapping[str, Facts]) -> dict[str, Any]:
    """As `readable`. Raises PlanError where the run was not one of local steps."""
    saved, found = _of_sync(names), {}
    for name, leaf in _local(sync, model)[1].items():
        if name not in saved and name.startswith(("error/", "owner/")):
            raise PlanError(
                f"communication.{sync.scheme.axis}: bits={sync.scheme.bits} remembers what an exchange did not say of "
                f"each weight, and this checkpoint holds no {PREFIX}{name}: its exchanges lost too little to remember, "
                "or its mesh cut other weights. Keep its bits and mesh, or begin another run from its weights: "
                "--from RUN"
            )
        if name not in saved:
            raise PlanError(
                f"communication.{sync.scheme.axis}: this run began without local steps (its checkpoint has no "
                f"{PREFIX}{name}); begin another one with local_sgd, from its weights: --from RUN"
            )
        shape, dtype = saved[name]
        place, same = leaf.sharding, shape == leaf.shape
        spec = place.spec if same or shape[0] % sync.axes.workers == 0 else P(None, *place.spec[1:])
        found[f"{PREFIX}{name}"] = jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(sync.mesh, spec))
    return found


def restored(
    sync: GradSync | LocalSteps, names: Mapping[str, Facts], read: Mapping[str, Any], step: int, model: Any
) -> tuple[Any, str | None]:
    """The state of the sync after `step` steps from what was `read` of a checkpoint whose tensors are `names`, and what
    there is to say about it. Raises PlanError where the sync cannot begin here."""
    saved, got = _of_sync(names), _of_sync(read)
    owed = [name for name in saved if name.startswith(("error/", "owner/"))]
    lead = [saved[name][0][0] for name in owed if name.startswith("error/")]
    lost = sorted({name.split("/", 1)[1] for name in owed if name not in got})
    said: list[str] = []
    if owed and not any(name in got for name in owed):
        said.append("what workers still owed from compressed steps is dropped: nothing is remembered from now on")
    elif lost:
        shown = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        said.append(f"what workers still owed to {shown} is dropped: it is cut or sent in another way now")
    if any(name in got for name in owed) and lead and lead[0] != _workers(sync):
        said.append(f"residuals of {lead[0]} workers are shared by {_workers(sync)}, their mean as it was")
    if isinstance(sync, LocalSteps):
        tree, like = _local(sync, model)
        return from_named(tree, shared(got, like)), _lines(said)
    if not isinstance(sync, Compressed):
        return (), _lines(said)
    state = adopt.adopted(sync, got, step)
    was = "fallback" in got and bool(got["fallback"])
    if fallen_back(state):
        said.append(
            "this run has fallen back to dense gradients, and stays there; another scheme, limit or spike tries again"
        )
    elif was:
        said.append("this run had fallen back to dense gradients; under another scheme, limit or spike it tries again")
    return state, _lines(said)


def _lines(said: list[str]) -> str | None:
    return "\n".join(said) or None


def _workers(sync: GradSync | LocalSteps) -> int:
    """Workers among whom codes travel; 1 where none do."""
    return sync.axes.workers if isinstance(sync, Compressed | LocalSteps) else 1


def fallen_back(state: Any) -> bool:
    """Whether a sync's state says that steps are dense for good (rule S15)."""
    return isinstance(state, dict) and "fallback" in state and bool(state["fallback"])


def _of_sync(named: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(PREFIX): value for name, value in named.items() if name.startswith(PREFIX)}


PREFIX = "sync/"
"""How the names of a sync's state begin in a checkpoint."""

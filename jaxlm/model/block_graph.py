"""What one block computes, as a graph of operations between values: read off the jaxpr that autodiff makes of it.

    graph = block_graph(config, kernel, dtype, sequence, packed)
    graph.operations, graph.values, graph.kept          # planners.plan.Operation, Tensor, and names

A value is what the model has named, or what has no name and is kept for the backward pass or used twice
(`residual_3`). An operation is all that is computed to get from values to the next value: elementwise work is taken to
be fused, so that only what goes in and comes out crosses the memory bus. Values that do not depend on the block's
input (rotary angles, cast weights) are not in the graph.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Jaxpr, JaxprEqn, Var

from jaxlm.model.attention import STATISTICS, Kernel
from jaxlm.model.block import Block
from jaxlm.model.config import ModelConfig
from jaxlm.sharding import Rules
from planners.plan import BYTES, Operation, Tensor

UNNAMED = "residual_"
MOVES = {
    "transpose",
    "reshape",
    "broadcast_in_dim",
    "squeeze",
    "name",
    "copy",
    "stop_gradient",
    "convert_element_type",
    "split",
}
"""Primitives that XLA folds into what comes before or after them."""


@dataclass(frozen=True, slots=True)
class Graph:
    """The forward pass of one block for one sequence.

    `values` are in the order in which they are computed; `kept` are the names of those that the backward pass reads
    when nothing is rematerialised.
    """

    operations: tuple[Operation, ...]
    values: tuple[Tensor, ...]
    kept: tuple[str, ...]


class _Naming(Rules):
    """Rules that constrain nothing, name values in the jaxpr, and write down their logical axes."""

    __slots__ = ("axes",)

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "axes", {})

    def __call__(self, x: jax.Array, *names: str | None, name: str | None = None) -> jax.Array:
        if name is None:
            return x
        self.axes[name] = names  # pyright: ignore
        return checkpoint_name(x, name)


@dataclass(slots=True)
class _Step:
    """An operation under construction: the variables that it makes and reads."""

    makes: list[Var]
    reads: list[Var]
    flops: float = 0.0
    works: bool = False
    products: int = 0
    equations: list[JaxprEqn] = field(default_factory=list)


def block_graph(config: ModelConfig, kernel: Kernel, dtype: str, sequence: int, packed: bool) -> Graph:
    """The graph of one block; a fused kernel's attention is one operation with its softmax statistics beside it."""
    traced, axes = _trace(config, dtype, sequence, packed)
    own = _depending(traced.jaxpr, traced.jaxpr.invars[-1:])
    names = {e.outvars[0]: e.params["name"] for e in traced.jaxpr.eqns if e.primitive.name == "name"}
    carry = traced.jaxpr.invars[-1]
    same = _turned(traced.jaxpr, own)
    outputs = [same.get(v, v) for v in traced.jaxpr.outvars[1:] if isinstance(v, Var) and v in own]
    kept = [v for v in dict.fromkeys(outputs) if v is not carry]
    reads = {id(e): [same.get(v, v) for v in e.invars if isinstance(v, Var) and v in own] for e in traced.jaxpr.eqns}
    uses = Counter(v for e in traced.jaxpr.eqns if e.outvars[0] not in same for v in set(reads[id(e)]))
    steps: dict[Var, _Step] = {}
    made: list[_Step] = []
    for equation in traced.jaxpr.eqns:
        outs = [v for v in equation.outvars if v in own]
        if not outs or outs[0] in same:
            continue
        step = _Step(outs, [], equations=[equation])
        step.flops, step.products = _flops(equation), _products(equation)
        step.works = equation.primitive.name not in MOVES
        for v in dict.fromkeys(reads[id(equation)]):
            before = steps.get(v)
            if before is None or v in names or v in kept or uses[v] > 1 or len(before.makes) > 1:
                step.reads.append(v)
            else:  # computed for this alone: one operation
                made.remove(before)
                step.reads += before.reads
                step.flops, step.products = step.flops + before.flops, step.products + before.products
                step.works |= before.works
                step.equations = before.equations + step.equations
        made.append(step)
        steps |= dict.fromkeys(outs, step)
    wanted = {*names, *kept}
    made = _needed(made, wanted)
    called = _call(made, names, carry, kept)
    operations = [_operation(step, called, axes, config) for step in made]
    values = [_tensor(v, called[v], axes, config, sequence) for step in made for v in step.makes if v in called]
    graph = Graph(tuple(operations), tuple(values), tuple(called[v] for v in kept))
    return graph if kernel == "xla" else _fused(graph, config, kernel, sequence)


def _trace(config: ModelConfig, dtype: str, sequence: int, packed: bool) -> tuple[Any, dict[str, tuple[Any, ...]]]:
    """The jaxpr of positions, segments, block and input -> output and what autodiff keeps; axes of named values."""
    shard = _Naming()
    x = jax.ShapeDtypeStruct((1, sequence, config.embed), jnp.dtype(dtype))
    ids = jax.ShapeDtypeStruct((1, sequence), jnp.int32)
    # Abstract evaluation never reaches a kernel, so cuDNN's limits are checked where the step is compiled.
    block = jax.eval_shape(lambda key: Block(config, shard, "xla", key=key), jax.random.key(0))

    def keep(positions: jax.Array, segments: jax.Array, block: Block, x: jax.Array) -> Any:
        return jax.vjp(lambda b, x: b(x, positions, segments if packed else None), block, x)

    return jax.make_jaxpr(keep)(ids, ids, block, x), shard.axes  # pyright: ignore


def _depending(jaxpr: Jaxpr, on: Sequence[Var]) -> set[Var]:
    """The variables that depend on some of the inputs, those included."""
    found = set(on)
    for equation in jaxpr.eqns:
        if any(isinstance(v, Var) and v in found for v in equation.invars):
            found.update(equation.outvars)
    return found


def _turned(jaxpr: Jaxpr, own: set[Var]) -> dict[Var, Var]:
    """Values that are another one with its dimensions turned or cut otherwise -> that other one."""
    found: dict[Var, Var] = {}
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("reshape", "transpose", "squeeze") and equation.outvars[0] in own:
            source = equation.invars[0]
            if isinstance(source, Var):
                found[equation.outvars[0]] = found.get(source, source)
    return found


def _needed(steps: list[_Step], wanted: set[Var]) -> list[_Step]:
    """The steps that lead to what is wanted, in their order."""
    found, reached = [], set(wanted)
    for step in reversed(steps):
        if any(v in reached for v in step.makes):
            reached.update(step.reads)
            found.append(step)
    return found[::-1]


def _call(steps: list[_Step], names: dict[Var, str], carry: Var, kept: Sequence[Var]) -> dict[Var, str]:
    """A name for every value between steps; aliases that only move a value share nothing, they are values too."""
    read = {v for step in steps for v in step.reads} | set(kept)
    called, count = {carry: "carry"}, 0
    for step in steps:
        for v in step.makes:
            if v in names:
                called[v] = names[v]
            elif v in read:
                called[v] = f"{UNNAMED}{count}"
                count += 1
    return called


def _operation(step: _Step, called: dict[Var, str], axes: dict[str, tuple[Any, ...]], config: ModelConfig) -> Operation:
    outputs = [v for v in step.makes if v in called]
    inputs = tuple(dict.fromkeys(called[v] for v in step.reads))
    out = sum(_bytes(v) for v in outputs)
    # After a matrix product the elementwise rest reads and writes its result; without one it reads what goes in.
    through = sum(_bytes(v) for v in dict.fromkeys(step.reads)) if not step.products else out
    moved = out + through if step.works and (not step.products or _elementwise(step)) else 0.0
    where = axes.get(called[outputs[0]]) or _guess(_aval(outputs[0]).shape, config)
    return Operation(
        outputs=tuple(called[v] for v in outputs), inputs=inputs, flops=step.flops, moved=float(moved), axes=where
    )


def _elementwise(step: _Step) -> bool:
    """Whether a step with matrix products does anything else."""
    return any(
        e.primitive.name not in MOVES and not _flops(e) for e in step.equations if e.primitive.name != "dot_general"
    )


def _tensor(v: Var, name: str, axes: dict[str, tuple[Any, ...]], config: ModelConfig, sequence: int) -> Tensor:
    shape = _aval(v).shape
    return Tensor(
        name=name, shape=shape, dtype=str(_aval(v).dtype), axes=axes.get(name) or _guess(shape, config, sequence)
    )


def _guess(shape: tuple[int, ...], config: ModelConfig, sequence: int = 0) -> tuple[str | None, ...]:
    """Logical axes of a value without a name, by size: each of them once."""
    sizes = {sequence: "length", config.mlp: "mlp", config.heads: "heads", config.groups: "kv_heads"}
    found: list[str | None] = []
    for i, dim in enumerate(shape):
        axis = "batch" if i == 0 and dim == 1 else sizes.get(dim)
        found.append(axis if axis not in found and dim != config.embed else None)
    return tuple(found)


def _aval(v: Any) -> Any:
    """Its shape and dtype, which the type of an abstract value does not promise."""
    return v.aval


def _bytes(v: Var) -> int:
    return math.prod(_aval(v).shape) * BYTES[str(_aval(v).dtype)]


def _inner(equation: JaxprEqn) -> Iterator[Jaxpr]:
    for value in equation.params.values():
        inner = getattr(value, "jaxpr", value)
        if isinstance(inner, Jaxpr):
            yield inner


def _flops(equation: JaxprEqn) -> float:
    """Of the matrix products of one equation, those inside it included; outer products have none."""
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        summed = math.prod(_aval(equation.invars[0]).shape[i] for i in contracted)
        return 2.0 * summed * math.prod(_aval(equation.outvars[0]).shape) if contracted else 0.0
    return float(sum(_flops(each) for inner in _inner(equation) for each in inner.eqns))


def _products(equation: JaxprEqn) -> int:
    return int(_flops(equation) > 0)


def _fused(graph: Graph, config: ModelConfig, kernel: Kernel, sequence: int) -> Graph:
    """With all between q, k, v and context as one operation; cuDNN's plain kernel also gives the statistics that its
    backward pass reads, one number per query and head, float32."""
    start = {"q", "k", "v"}
    inside: set[str] = set()
    region: list[Operation] = []
    for operation in graph.operations:
        feeds = set(operation.inputs)
        if not inside & feeds and not start & feeds:
            continue
        region.append(operation)
        if "context" in operation.outputs:
            break
        inside.update(operation.outputs)
    context = next(value for value in graph.values if value.name == "context")
    shape, where = (1, sequence, config.heads, 1), ("batch", "length", "heads", None)
    statistics = Tensor(name=STATISTICS, shape=shape, dtype="float32", axes=where)
    has = kernel == "cudnn"
    one = Operation(
        outputs=("context", STATISTICS) if has else ("context",),
        inputs=("q", "k", "v"),
        flops=sum(operation.flops for operation in region),
        axes=context.axes,
        attention=True,
    )
    at = graph.operations.index(region[-1])
    rest = lambda operations: [operation for operation in operations if operation not in region]
    operations = (*rest(graph.operations[:at]), one, *rest(graph.operations[at:]))
    values = [value for value in graph.values if value.name not in inside]
    if has:
        values.insert(values.index(context) + 1, statistics)
    read = {*(name for name in graph.kept if name not in inside), *one.inputs, *one.outputs}
    return Graph(operations, tuple(values), tuple(value.name for value in values if value.name in read))

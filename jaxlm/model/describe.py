"""The model describes itself to the planner: shapes, named activations and FLOPs by abstract evaluation.

Nothing here is a hand-kept table of layer sizes: parameters come from `eval_shape` of the model, activations from
the residuals that autodiff keeps for one block, optimizer state from `eval_shape` of the optimizer.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import Jaxpr, Var

from jaxlm.model.attention import Kernel
from jaxlm.model.block import Block
from jaxlm.model.classifier import Classifier
from jaxlm.model.config import ModelConfig
from jaxlm.model.packed_attention import DOCUMENTS
from jaxlm.model.transformer import Execution, Transformer, Trunk
from jaxlm.sharding import Rules
from jaxlm.tree import named_axes, named_leaves
from planners.plan import Tensor, Workload

Shape = tuple[int, ...]
Kept = tuple[Shape, str, tuple[str | None, ...]]


class _Recorder(Rules):
    """Rules that constrain nothing and write down every named value with its logical axes."""

    __slots__ = ("named",)

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "named", {})

    def __call__(self, x: jax.Array, *names: str | None, name: str | None = None) -> jax.Array:
        if name is not None:
            self.named[name] = Tensor(name=name, shape=x.shape, dtype=str(x.dtype), axes=names)  # pyright: ignore
        return x


def tensors(tree: Any) -> tuple[Tensor, ...]:
    """Every leaf of an abstract tree as a Tensor of the planning contract."""
    axes = named_axes(tree)
    return tuple(
        Tensor(name=name, shape=leaf.shape, dtype=str(leaf.dtype), axes=axes[name])
        for name, leaf in named_leaves(tree).items()
    )


def _is_matrix(tensor: Tensor) -> bool:
    return len(tensor.shape) > 2 and not tensor.name.endswith("bias")


def describe(
    config: ModelConfig,
    tx: optax.GradientTransformation,
    *,
    batch: int,
    sequence: int,
    kernel: Kernel,
    dtype: str,
    packed: bool,
    classes: int | None = None,
) -> Workload:
    """One training step of this model as the planner sees it. `packed`: rows hold several documents.

    With `classes`, of a classifier that many labels wide, which has one output per row instead of one per token.
    """
    execution = Execution(kernel=kernel, dtype=dtype)

    def make(key: jax.Array) -> Trunk:
        if classes is None:
            return Transformer(config, execution, key=key)
        return Classifier(config, execution, classes=classes, key=key)

    model = jax.eval_shape(make, jax.random.key(0))
    parameters = tensors(model)
    # The planner counts optimizer state by the tensor it belongs to; scalars such as Adam's count weigh nothing.
    optimizer = tuple(t for t in tensors(jax.eval_shape(tx.init, model)) if t.shape)
    block = sum(t.size for t in parameters if t.name.startswith("blocks/") and _is_matrix(t))
    width = config.heads * config.per_head
    return Workload(
        name=config.preset or f"the model ({config.layers} layers of width {config.embed})",
        parameters=parameters,
        optimizer=optimizer,
        activations=_activations(config, kernel, dtype, sequence, packed),
        carry=Tensor(name="carry", shape=(1, sequence, config.embed), dtype=dtype, axes=("batch", "length", "embed")),
        logits=_logits(config, sequence, classes),
        layers=config.layers,
        batch=batch,
        sequence=sequence,
        block_flops=2.0 * block,
        head_flops=2.0 * config.embed * (config.padded_vocab if classes is None else classes / sequence),
        attention_flops=4.0 * config.layers * width * sequence,
        compute_dtype=dtype,
        kernel=kernel,
        causal=config.causal,
        scratch=_scratch(config, kernel, sequence) if packed else (),
    )


def _logits(config: ModelConfig, sequence: int, classes: int | None) -> Tensor:
    """The output of the head for one row."""
    if classes is not None:
        return Tensor(name="logits", shape=(1, classes), dtype="float32", axes=("batch", "classes"))
    shape = (1, sequence, config.padded_vocab)
    return Tensor(name="logits", shape=shape, dtype="float32", axes=("batch", "length", "vocab"))


def _scratch(config: ModelConfig, kernel: Kernel, T: int) -> tuple[Tensor, ...]:
    """What a fused kernel needs to keep the documents of one packed row apart (seen in steps compiled for H100).

    By mask: a number for each pair of positions, and their gradient, which nobody reads. By offsets: statistics for
    as many documents as a call takes, and keys and values repeated for each query head, with their gradients.
    """
    if kernel == "xla":
        return ()
    if kernel == "cudnn":
        axes = ("batch", None, "length", None)
        return tuple(Tensor(name=n, shape=(1, 1, T, T), dtype="bfloat16", axes=axes) for n in ("mask", "mask_gradient"))
    N, K, H = config.heads, config.groups, config.per_head
    statistics = Tensor(
        name="statistics", shape=(1, DOCUMENTS, N, T), dtype="float32", axes=("batch", None, "heads", "length")
    )
    repeated = ("keys", "values", "keys_gradient", "values_gradient") if K < N else ()
    axes = ("batch", "length", "heads", None)
    return (statistics, *(Tensor(name=n, shape=(1, T, N, H), dtype="bfloat16", axes=axes) for n in repeated))


def _activations(config: ModelConfig, kernel: Kernel, dtype: str, sequence: int, packed: bool) -> tuple[Tensor, ...]:
    """What the backward pass of one block keeps of one sequence: autodiff's own residuals, named where tagged."""
    named, shapes = _residuals(config, dtype, 1, sequence, packed)
    # Dimensions that grow with the batch or the length are found by growing them: sizes alone may coincide.
    batches, lengths = (_residuals(config, dtype, *how, packed)[1] for how in ((2, sequence), (1, 2 * sequence)))
    kept = []
    for (shape, kind), (wider, _), (longer, _) in zip(shapes, batches, lengths, strict=True):
        batch, length = _grown(shape, wider), _grown(shape, longer)
        # Weights that autodiff keeps do not grow, and are no activations; a fused kernel keeps no scores.
        if batch and length and not (kernel == "cudnn" and len(length) > 1):
            kept.append((shape, kind, _axes(shape, config, batch, length)))
    if kernel != "xla":
        kept = _fused(kept, kernel)
    waiting = Counter((shape, kind) for shape, kind, _ in kept)
    found = []
    for tensor in named:
        if waiting[tensor.shape, tensor.dtype]:
            waiting[tensor.shape, tensor.dtype] -= 1
            found.append(tensor)
    for shape, kind, axes in kept:
        if waiting[shape, kind]:
            waiting[shape, kind] -= 1
            found.append(Tensor(name=f"residual_{len(found)}", shape=shape, dtype=kind, axes=axes))
    return tuple(found)


def _fused(kept: list[Kept], kernel: Kernel) -> list[Kept]:
    """What a fused kernel keeps of the softmax: one number per query, where XLA's has two, a maximum and a sum; by
    segment offsets none, for its backward pass runs the forward kernel again."""
    statistics = [each for each in kept if each[1] == "float32" and each[0][-1] == 1]
    dropped = statistics if kernel == "cudnn_segments" else statistics[1:]
    return [each for each in kept if not any(each is other for other in dropped)]


def _residuals(
    config: ModelConfig, dtype: str, batch: int, sequence: int, packed: bool
) -> tuple[list[Tensor], list[tuple[Shape, str]]]:
    """The named values of one block, and shape and dtype of all that its backward pass keeps for this block alone:
    what depends on positions only (rotary angles) is the same for every block, and kept once."""
    recorder = _Recorder()
    x = jax.ShapeDtypeStruct((batch, sequence, config.embed), jnp.dtype(dtype))
    ids = jax.ShapeDtypeStruct((batch, sequence), jnp.int32)
    # Abstract evaluation never reaches a kernel, so cuDNN's limits are checked where the step is compiled.
    abstract: Kernel = "xla"
    block = jax.eval_shape(lambda key: Block(config, recorder, abstract, key=key), jax.random.key(0))

    def keep(positions: jax.Array, segments: jax.Array, block: Block, x: jax.Array) -> Any:
        return jax.vjp(lambda b, x: b(x, positions, segments if packed else None), block, x)[1]

    traced = jax.make_jaxpr(keep)(ids, ids, block, x).jaxpr
    own = _depending(traced, traced.invars[2:])
    leaves: list[Any] = [v.aval for v in traced.outvars if isinstance(v, Var) and v in own]
    return list(recorder.named.values()), [(leaf.shape, str(leaf.dtype)) for leaf in leaves]


def _depending(jaxpr: Jaxpr, on: Sequence[Var]) -> set[Var]:
    """The variables that depend on some of the inputs, those included."""
    found = set(on)
    for equation in jaxpr.eqns:
        if any(isinstance(v, Var) and v in found for v in equation.invars):
            found.update(equation.outvars)
    return found


def _grown(shape: Shape, larger: Shape) -> list[int]:
    return [i for i, (before, after) in enumerate(zip(shape, larger, strict=True)) if before != after]


def _axes(shape: Shape, config: ModelConfig, batch: list[int], length: list[int]) -> tuple[str | None, ...]:
    """Logical axes of an untagged residual: batch and length are known, the others guessed by size, else replicated."""
    sizes = {config.mlp: "mlp", config.heads: "heads", config.groups: "kv_heads"}
    axes: list[str | None] = []
    for i, dim in enumerate(shape):
        axis = "batch" if i in batch else "length" if i == length[0] else sizes.get(dim)
        known = axis in ("batch", "length")
        axes.append(axis if known or (axis not in axes and dim != config.embed) else None)
    return tuple(axes)

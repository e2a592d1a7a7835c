"""The model describes itself to the planner: shapes, named activations and FLOPs by abstract evaluation.

Nothing here is a hand-kept table of layer sizes: parameters come from `eval_shape` of the model, activations from
the residuals that autodiff keeps for one block (`block_graph`), optimizer state from `eval_shape` of the optimizer.
"""

from typing import Any

import jax
import optax

from jaxlm.model import plain_attention
from jaxlm.model.attention import Kernel
from jaxlm.model.block_graph import block_graph
from jaxlm.model.classifier import Classifier
from jaxlm.model.config import ModelConfig
from jaxlm.model.packed_attention import DOCUMENTS
from jaxlm.model.transformer import Execution, Transformer, Trunk
from jaxlm.tree import named_axes, named_leaves
from planners.plan import Tensor, Workload


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
    carry = Tensor(name="carry", shape=(1, sequence, config.embed), dtype=dtype, axes=("batch", "length", "embed"))
    graph = block_graph(config, kernel, dtype, sequence, packed)
    return Workload(
        name=config.preset or f"the model ({config.layers} layers of width {config.embed})",
        parameters=parameters,
        optimizer=optimizer,
        activations=(carry, *(value for value in graph.values if value.name in graph.kept)),
        carry=carry,
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
        scratch=_scratch(config, kernel, dtype, sequence, packed),
        operations=graph.operations,
        values=graph.values,
    )


def _logits(config: ModelConfig, sequence: int, classes: int | None) -> Tensor:
    """The output of the head for one row."""
    if classes is not None:
        return Tensor(name="logits", shape=(1, classes), dtype="float32", axes=("batch", "classes"))
    shape = (1, sequence, config.padded_vocab)
    return Tensor(name="logits", shape=shape, dtype="float32", axes=("batch", "length", "vocab"))


def _scratch(config: ModelConfig, kernel: Kernel, dtype: str, T: int, packed: bool) -> tuple[Tensor, ...]:
    """What attention needs for one block at a time.

    Ours of float32 three numbers for each pair of the positions that it computes together: scores, shares and their
    gradient. A fused kernel what keeps the documents of one packed row apart (seen in steps compiled for H100). By
    mask: a number for each pair of positions, and their gradient, which nobody reads. By offsets: statistics for as
    many documents as a call takes, and keys and values repeated for each query head, with their gradients.
    """
    if kernel == "xla" and dtype == "float32":
        shape = (1, config.heads, T // plain_attention.blocks_of(T, causal=config.causal), T)
        pairs = ("scores", "shares", "shares_gradient")
        return tuple(Tensor(name=n, shape=shape, dtype=dtype, axes=("batch", "heads", "length", None)) for n in pairs)
    if kernel == "xla" or not packed:
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

"""What is alive on a GPU in each phase of one step, as XLA's buffer assignment of compiled steps shows it.

A step allocates one block for all that lives during it, as large as its worst moment. Four moments compete:

    loss      all blocks have run forward; logits, and the head's weights or their gradient
    backward  one block goes back: its weights, its activations, the gradients of both, and room for those of all
    embedding the gradients of all blocks, and that of the embedding twice where devices sum it
    update    every gradient in float32

Read off the live ranges of steps compiled for H100 and A100 with jax 0.10.2; `experiments/benchmarks/memory.py`
compares them with new ones. Small whole numbers below count values of one kind that are alive together. What is not
foreseen are gaps: XLA puts each buffer at one place for all of its life, and what lies between may be of no use.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from planners.candidates import Candidates
from planners.plan import Workload
from planners.prices.footprint import Footprint
from planners.work import Number

Phase: TypeAlias = dict[str, Number]
"""Bytes by part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What XLA may order as it likes; the same step of another model, or by another version, may come out otherwise.

    Attributes:
        block: factor on what a block in flight needs.
    """

    block: float = 1.0


def phases(
    step: Footprint, workload: Workload, candidates: Candidates, habits: Mapping[str, Habits] | None = None
) -> dict[str, Phase]:
    """Bytes that live during the step only, by phase and part. `habits` are by rematerialisation policy."""
    habit = [(habits or {}).get(name, Habits()) for name in candidates.remats]
    sizes = candidates.sizes
    fsdp, tensor = sizes["fsdp"] > 1, sizes["tensor"]
    none = candidates.remat == candidates.remats.index("none")
    chunked = candidates.loss_chunks > 1
    accumulates = (candidates.microbatch < workload.batch) | (workload.documents > 0)
    factor = np.asarray([each.block for each in habit])[candidates.remat]

    sequences = workload.at_once(candidates.microbatch // candidates.replicas)
    split = np.where(candidates.sequence, tensor, 1)
    carry = sequences * step.carry / split
    kept = sequences * (step.activations - step.whole * (1 - 1 / split))
    wide, logits, head = sequences * step.largest, sequences * step.logits, step.vocabulary
    always: Phase = {
        "activations": workload.layers * np.where(none, kept, carry),
        "cast_weights": np.where(none & step.casts, step.cast_layers, 0),
        "gradient_accumulator": np.where(accumulates, step.accumulator, 0),
        "turned_weights": np.where(fsdp & ~none & ~accumulates, step.turned_cast, 0)
        + np.where(fsdp & accumulates, step.turned_layers + step.turned_others, 0),
        "attention_scratch": sequences * step.scratch,
    }
    loss: Phase = {
        # In one piece also float32 sums of 256 logits each; the gradient of the head as a whole, while it travels to
        # where it rests, and there; and the input of the head with its gradient, which waits where more replicas sum.
        # In pieces float32 sums of the head's gradient, and the part of one piece.
        "logits": np.where(chunked, logits / candidates.loss_chunks, logits * (1 + 1 / 128)),
        "working_parameters": head,
        "head_gradient": np.where(chunked, 3 * head, head + np.where(fsdp, step.vocabulary_rest, 0)),
        "block_transient": np.where(chunked, 3, np.where(fsdp & (sizes["data"] > 1), 1, 2)) * carry,
    }
    again = _block_again(step, wide, kept, carry, fsdp, tensor)
    backward: Phase = {
        "gradients": step.block_gradients,
        "document_gradients": apart(workload, sequences),
        "block_transient": np.where(none, _block(step, fsdp, wide, carry), again) * factor,
        "head_gradient": step.vocabulary_rest,
    }
    embedding: Phase = {
        "gradient_accumulator": always["gradient_accumulator"],
        "gradients": step.block_gradients,
        "head_gradient": step.vocabulary_rest,
        # Whole, as long as what becomes of it is on its way: its part where fsdp splits it, all of it elsewhere.
        "embedding_gradient": head + np.where(candidates.replicas > 1, np.where(fsdp, step.vocabulary_rest, head), 0),
        "block_transient": 2 * carry,
    }
    return {
        "loss": always | loss,
        "backward": always | backward,
        "embedding": embedding,
        "update": {"gradients": step.accumulator},
    }


def apart(workload: Workload, sequences: np.ndarray) -> Number:
    """Gradients in float32 that are kept apart until they are clipped, whole: rows are split over devices, and tensors
    are not."""
    return 4 * workload.parameter_count * sequences if workload.documents else 0


def _block(step: Footprint, fsdp: np.ndarray, wide: Number, carry: Number) -> np.ndarray:
    """Going back through one block that has kept all it needs: the worst of three moments.

    The gradient of the last matrix, while the weights of the feed-forward part are gathered; the gradients of its
    wide activations; the end, when the gradients of all weights wait to be scattered together.
    """
    gathered = np.where(fsdp, step.mlp, 0)
    last = gathered + np.where(fsdp, step.query, 0) + step.down + wide + 5 * carry
    middle = gathered - np.where(fsdp, step.down, 0) + 3 * wide + 7 * carry
    end = np.where(fsdp, step.layer + 2 * step.query, 0) + 6 * carry
    return np.maximum(np.maximum(last, middle), end)


def _block_again(
    step: Footprint, wide: Number, kept: Number, carry: Number, fsdp: np.ndarray, tensor: np.ndarray
) -> np.ndarray:
    """Going back through one block that is computed again first: the worse of two moments.

    All weights and activations are there, and the gradient of one activation; or the last weights have done their
    work, and the gradients of two wide activations are there. Where tensor splits the wide ones the second is less.
    Where no weights are gathered nothing waits for them: the gradient of one wide activation is there, no more.
    """
    first, second = step.layer + kept + 3 * carry, step.layer - step.down + kept + wide + 5 * carry
    alone = np.where(fsdp, np.maximum(first, second), step.layer + kept + wide)
    return np.where(tensor > 1, first, alone)


def worst(found: Mapping[str, Phase], rows: int) -> dict[str, np.ndarray]:
    """The parts of the phase that needs most, for each of `rows` candidates."""
    names = list(dict.fromkeys(name for phase in found.values() for name in phase))
    empty = np.zeros(rows)
    table = {name: np.stack([empty + phase.get(name, 0) for phase in found.values()]) for name in names}
    peak = np.argmax(np.sum(list(table.values()), axis=0), axis=0)
    return {name: part[peak, np.arange(rows)] for name, part in table.items()}


def temporaries(found: Mapping[str, Phase], rows: int) -> np.ndarray:
    """Bytes that the step allocates for itself, for each of `rows` candidates."""
    return np.sum(list(worst(found, rows).values()), axis=0)

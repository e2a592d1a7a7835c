"""Bytes that the seconds of a published run depend on, worked out from its printed dimensions."""

from dataclasses import dataclass

from planners.work import Number


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepBytes:
    """What `planners.prices.footprint.Footprint` says of a plan, as far as step time depends on it; one entry per run.

    Attributes:
        parameters: at rest, sharded.
        optimizer: likewise, before ZeRO-1.
        gradients: likewise.
        layer: weights of one layer in the compute dtype, gathered over fsdp.
        others: weights outside the layers, likewise.
        activations: what the backward pass of one block keeps of ONE sequence.
        carry: the input of one block, likewise.
        logits: the output of the head in the compute dtype, likewise.
    """

    parameters: Number
    optimizer: Number
    gradients: Number
    layer: Number
    others: Number
    activations: Number
    carry: Number
    logits: Number

"""Seconds of one block of a model on one device for one microbatch: products, attention, memory traffic, launches."""

from dataclasses import dataclass

import numpy as np

from planners.machines.topology import Device
from planners.prices.assumptions import Assumptions
from planners.prices.compute import matmul_seconds, memory_seconds, product_seconds, rate
from planners.work import Number, Work

RECOMPUTED = {"none": (0.0, 0.0), "full": (1.0, 1.0), "selective": (0.0, 1.0)}
"""Rematerialisation -> the shares of a block's products with weights and of its attention that run once more.

`selective` recomputes scores, softmax and weighted values only (Korthikanti et al., arXiv:2205.05198, section 5).
"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """Seconds of one block for one microbatch, one entry per candidate.

    Attributes:
        products: matrix products with weights and of attention, forward and backward.
        elementwise: what crosses the memory bus besides, forward and backward.
        recompute: whatever of the forward pass runs once more.
        attention_forward: the part of `products` that is the forward pass of attention.
        attention_backward: likewise of its backward pass.
        kernels: kernels issued.
    """

    products: Number
    elementwise: Number
    recompute: Number
    attention_forward: Number
    attention_backward: Number
    kernels: Number


def block(
    work: Work,
    device: Device,
    *,
    tokens: Number,
    sequences: Number,
    tensor: Number,
    kept: Number,
    weights_again: Number,
    attention_again: Number,
    assumptions: Assumptions,
) -> Block:
    """Prices a block.

    Args:
        work: the model.
        device: what it runs on.
        tokens: of one microbatch on one device.
        sequences: of one microbatch on one device.
        tensor: ranks of the tensor axis.
        kept: bytes that the backward pass of the block keeps, scores included.
        weights_again: share of the products with weights that is recomputed.
        attention_again: share of the attention that is recomputed.
        assumptions: the constants.
    """
    a = assumptions
    forward, backward = _weights(work, device, tokens, tensor, a)
    attention, attention_backward = _attention(work, device, tokens, sequences, tensor, a)
    scores = tokens * work.scores_bytes / tensor
    rest = np.maximum(kept - scores, 0.0)

    def moved(passes: float, size: Number) -> Number:
        return memory_seconds(passes * size, device, a)

    again = weights_again * (forward + moved(0.4 * a.activation_passes, rest)) + attention_again * (
        attention + moved(0.4 * a.scores_passes, scores)
    )
    once = a.kernels * (3.0 + np.where(weights_again > 0, 1.0, 0.3 * attention_again))
    return Block(
        products=forward + backward + attention + attention_backward,
        elementwise=moved(a.activation_passes, rest) + moved(a.scores_passes, scores),
        recompute=again,
        attention_forward=attention,
        attention_backward=attention_backward,
        kernels=once,
    )


def _weights(work: Work, device: Device, tokens: Number, tensor: Number, a: Assumptions) -> tuple[Number, Number]:
    """Seconds of the products with the weights of one block: forward, and both gradients of each."""
    dtype = work.compute_dtype
    if not work.matmuls:
        flops = tokens * work.block_flops / work.layers / tensor
        seconds = matmul_seconds(flops, 2.0 * tokens * work.width * work.width / tensor, device, dtype, a)
        return seconds, 2.0 * seconds
    forward: Number = 0.0
    backward: Number = 0.0
    for matmul in work.matmuls:
        inputs, outputs = matmul.shard(tensor)
        forward = forward + product_seconds(tokens, outputs, inputs, device, dtype, a)
        backward = backward + product_seconds(tokens, inputs, outputs, device, dtype, a)
        backward = backward + product_seconds(inputs, outputs, tokens, device, dtype, a)
    return forward, backward


def _attention(
    work: Work, device: Device, tokens: Number, sequences: Number, tensor: Number, a: Assumptions
) -> tuple[Number, Number]:
    """Seconds of scores and weighted values of one block: forward and backward."""
    dtype = work.compute_dtype
    flops = tokens * work.attention_flops / work.layers / tensor
    if work.fused_attention:
        flops = flops * (0.5 if work.causal else 1.0)
        backward = a.flash_backward + (1.0 if work.kernel == "cudnn_segments" else 0.0)
        if device.units:
            forward = flops / (rate(device, dtype) * a.flash_efficiency)
        else:
            product = 2.0 * tokens * work.width * work.width / tensor
            forward = matmul_seconds(flops, product, device, dtype, a)
        return forward, backward * forward
    if not np.any(np.asarray(work.heads) > 0) or not device.units:
        product = 2.0 * tokens * work.width * work.width / tensor
        seconds = matmul_seconds(flops, product, device, dtype, a)
        return seconds, 2.0 * seconds
    pieces = sequences * work.heads / tensor
    length = tokens / sequences
    head = work.attention_flops / work.layers / (4.0 * work.heads * work.sequence)
    scores = product_seconds(length, work.sequence, head, device, dtype, a, pieces=pieces)
    values = product_seconds(length, head, work.sequence, device, dtype, a, pieces=pieces)
    return scores + values, 2.0 * (scores + values)

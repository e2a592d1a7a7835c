"""Seconds of work on one device: matrix products by the tiles they are cut into, the rest at memory speed."""

import numpy as np

from planners.machines.device_table import copy_rate, product_rate
from planners.machines.topology import Device
from planners.plan import BYTES
from planners.prices.assumptions import Assumptions
from planners.work import Number

TILES = ((256, 128, 1), (128, 256, 1), (128, 128, 1), (128, 64, 2), (64, 64, 4))
"""Rows and columns of the result that one thread block computes, and how many such blocks one multiprocessor holds.

The kernels of cuBLAS and CUTLASS: NVIDIA, "Matrix Multiplication Background User's Guide", sections 3.2 and 4,
https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication/
"""


def rate(device: Device, dtype: str) -> float:
    """Peak dense FLOP/s of the dtype, or where unknown the device's nominal rate (good for ranking only)."""
    return device.peak.get(dtype, device.nominal)


def efficiency(flops: Number, peak: float, assumptions: Assumptions) -> Number:
    """Share of the peak that one matrix product of `flops` reaches: e_max g / (g + g0) (planners.md 3.4)."""
    return assumptions.matmul_efficiency * flops / (flops + assumptions.matmul_half_seconds * peak)


def matmul_seconds(flops: Number, product: Number, device: Device, dtype: str, assumptions: Assumptions) -> Number:
    """Seconds of `flops` done in matrix products of `product` FLOPs each: at the measured rate where there is one."""
    if rows := device.products.get(dtype):
        return np.asarray(flops) / product_rate(rows, product)
    peak = rate(device, dtype)
    return np.where(np.asarray(flops) > 0, flops / (peak * efficiency(product, peak, assumptions)), 0.0)


def product_seconds(
    rows: Number,
    outputs: Number,
    inputs: Number,
    device: Device,
    dtype: str,
    assumptions: Assumptions,
    *,
    pieces: Number = 1.0,
) -> Number:
    """Seconds of `pieces` products [rows, inputs] x [inputs, outputs] in one kernel.

    Where the device has multiprocessors and no measured products, the result is cut into tiles, the tiles are handed
    out in waves, and the kernel takes the longest of its waves and of its bytes over the memory bus. The shape of the
    tiles is the fastest of `TILES`. `wave_share` says how much of a last wave that is not full is lost. A dtype that is
    computed in another one is converted before: both factors are read in the one and written in the other.
    """
    a = assumptions
    flops = 2.0 * rows * outputs * inputs
    if not device.units or device.products.get(dtype):
        return matmul_seconds(pieces * flops, flops, device, dtype, a)
    one = rate(device, dtype) / device.units
    shares = (1.0, 1.0, a.tile_128, a.tile_64, a.tile_small)
    best: Number = np.inf
    for (height, width, held), share in zip(TILES, shares, strict=True):
        waves = pieces * np.ceil(rows / height) * np.ceil(outputs / width) / (device.units * held)
        rounds = a.wave_share * np.ceil(waves) + (1.0 - a.wave_share) * np.maximum(waves, 1.0)
        work = 2.0 * height * width * held * (inputs + a.tile_fill)
        best = np.minimum(best, rounds * work / (one * share * a.matmul_efficiency))
    own, factors = device.emulated.get(dtype, dtype), rows * inputs + inputs * outputs
    size = BYTES[own] * pieces * (factors + rows * outputs)
    converted = (BYTES[dtype] + BYTES[own]) * pieces * factors if own != dtype else 0.0
    return np.maximum(best, memory_seconds(size, device, a)) + memory_seconds(converted, device, a) + a.launch


def memory_seconds(moved: Number, device: Device, assumptions: Assumptions) -> Number:
    """Seconds to move `moved` bytes to or from the device's memory, at the rate of its largest measured copy if any."""
    if device.copies:
        return moved / copy_rate(device.copies, np.inf)
    return moved / (device.bandwidth * assumptions.memory_efficiency)

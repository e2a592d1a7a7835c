"""Seconds of work on one device: matrix products at a size-dependent efficiency, the rest at memory speed."""

import numpy as np

from planners.assumptions import Assumptions
from planners.device_table import copy_rate, product_rate
from planners.topology import Device
from planners.work import Number


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


def memory_seconds(moved: Number, device: Device, assumptions: Assumptions) -> Number:
    """Seconds to move `moved` bytes to or from the device's memory, at the rate of its largest measured copy if any."""
    if device.copies:
        return moved / copy_rate(device.copies, np.inf)
    return moved / (device.bandwidth * assumptions.memory_efficiency)

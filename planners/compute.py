"""Seconds of work on one device: matrix products at a size-dependent efficiency, the rest at memory speed."""

from planners.assumptions import Assumptions
from planners.topology import Device


def rate(device: Device, dtype: str) -> float:
    """Peak dense FLOP/s of the dtype, or where unknown the device's nominal rate (good for ranking only)."""
    return device.peak.get(dtype, device.nominal)


def efficiency(flops: float, peak: float, assumptions: Assumptions) -> float:
    """Share of the peak that one matrix product of `flops` reaches: e_max g / (g + g0) (planners.md 3.4)."""
    return assumptions.matmul_efficiency * flops / (flops + assumptions.matmul_half_seconds * peak)


def matmul_seconds(flops: float, product: float, device: Device, dtype: str, assumptions: Assumptions) -> float:
    """Seconds of `flops` done in matrix products of `product` FLOPs each."""
    if flops <= 0:
        return 0.0
    peak = rate(device, dtype)
    return flops / (peak * efficiency(product, peak, assumptions))


def memory_seconds(moved: float, device: Device, assumptions: Assumptions) -> float:
    """Seconds to move `moved` bytes to or from the device's memory."""
    return moved / (device.bandwidth * assumptions.memory_efficiency)

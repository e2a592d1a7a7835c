"""Values that wait in host memory: fewer bytes on the device, and a copy out and back over the host link.

A copy out runs beside the forward pass of the next layer, the copy in beside the backward pass of the layer after; what
is longer than these is waited for. It depends only on how many bytes wait on the host, so that of each set kept on the
device the best set for the host is found by trying: every pair of disjoint sets up to EXACT names, and with more names
only splits of the sets that are best without a host.
"""

from dataclasses import dataclass

import numpy as np

from planners.remat.block import Block, unbeaten

EXACT = 12
"""Names of which every split over device, host and recomputation is tried: 531,441 of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The link to host memory as one layer uses it.

    Attributes:
        bandwidth: bytes per second, one direction.
        forward: seconds of a layer's forward pass, beside which a copy out is free.
        backward: seconds of a layer's backward pass, beside which a copy in is free.
    """

    bandwidth: float
    forward: float = 0.0
    backward: float = 0.0

    def waiting(self, size: np.ndarray) -> np.ndarray:
        """Seconds that a layer waits for the copies of so many bytes."""
        copy = size / self.bandwidth
        return np.maximum(copy - self.forward, 0.0) + np.maximum(copy - self.backward, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """One way to keep a block's values: on the device ([name]), on the host ([name]), and which operations
    ([operation]) run once more for the rest; `waiting`: seconds that the layer waits for its copies."""

    device: np.ndarray
    away: np.ndarray
    again: np.ndarray
    waiting: float


def splits(block: Block, host: Host) -> list[Split]:
    """The ways with anything on the host that no other beats in bytes on the device and seconds, fewest bytes first."""
    device, away = _splits(block)
    possible = ~torn(block, device, away)
    device, away = device[possible], away[possible]
    again = block.reruns(device | away)
    waiting = host.waiting(away @ block.sizes)
    rows = unbeaten(
        device @ block.sizes,
        again @ block.seconds + waiting,
        away.sum(axis=1) * len(block.names) + device.sum(axis=1),
    )
    return [
        Split(device=device[row], away=away[row], again=again[row], waiting=float(waiting[row]))
        for row in rows
        if away[row].any()
    ]


def torn(block: Block, device: np.ndarray, away: np.ndarray) -> np.ndarray:
    """[set] whether one of the attention kernel's results would wait on the host although all of them are kept. To
    spare its rerun they are kept as it gives them, on the device: names, by which values go to the host, come later."""
    at = {name: column for column, name in enumerate(block.names)}
    found = np.zeros(len(device), bool)
    for operation in block.operations:
        columns = [at[name] for name in operation.outputs if name in at]
        if operation.attention and len(columns) > 1:
            kept, gone = (device | away)[:, columns], away[:, columns]
            found |= kept.all(axis=1) & gone.any(axis=1)
    return found


def _splits(block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of disjoint sets: kept on the device, and on the host."""
    if len(block.names) <= EXACT:
        digits = np.arange(3 ** len(block.names))[:, None] // 3 ** np.arange(len(block.names)) % 3
        return digits == 1, digits == 2
    device, away = [], []
    for kept in block.front():
        names = np.flatnonzero(kept)
        if len(names) <= EXACT:
            sets = np.zeros((2 ** len(names), len(kept)), bool)
            sets[:, names] = (np.arange(2 ** len(names))[:, None] >> np.arange(len(names))) & 1
        else:
            # Only whole prefixes by size, largest first.
            order = names[np.argsort(-block.sizes[names])]
            sets = np.zeros((len(names) + 1, len(kept)), bool)
            for many in range(len(names) + 1):
                sets[many, order[:many]] = True
        away.append(sets)
        device.append(kept & ~sets)
    return np.concatenate(device), np.concatenate(away)

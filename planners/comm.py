"""Seconds of collectives on the links a mesh axis crosses: measured, or a latency plus bytes over bandwidth."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from planners.link_table import Collective, collective_seconds, moved
from planners.plan import MESH_AXES
from planners.topology import Cluster, Link
from planners.work import Number


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """The ranks of one mesh axis, and their nested rings: (ranks, link) from the innermost tier outwards.

    One entry per candidate; a tier that a candidate's axis does not cross has 1 rank there and costs nothing.
    """

    ranks: np.ndarray
    rings: tuple[tuple[np.ndarray, Link], ...]

    def all_gather(self, size: Number) -> np.ndarray:
        """Seconds to gather a tensor of `size` bytes (whole) from its equal shards.

        Hierarchical: each tier gathers what its inner tiers leave to it, (n - 1) / n of it per device
        (planners.md 3.5).
        """
        return self._nested(size, "all_gather")

    def reduce_scatter(self, size: Number) -> np.ndarray:
        """Seconds to sum `size` bytes (whole) and leave each rank its shard: an all-gather backwards."""
        return self._nested(size, "reduce_scatter")

    def all_reduce(self, size: Number) -> np.ndarray:
        """Seconds to sum `size` bytes on every rank: reduce-scatter and all-gather, one call on each tier.

        `latency` was fitted to whole all-reduce calls, so it is paid once per tier.
        """
        return self._nested(size, "all_reduce")

    def sent(self, size: Number) -> np.ndarray:
        """Bytes one device sends to gather or reduce-scatter `size` bytes; an all-reduce takes twice that."""
        return (self.ranks - 1) / self.ranks * size

    def _nested(self, size: Number, collective: Collective) -> np.ndarray:
        seconds = np.zeros(len(self.ranks))
        left = np.broadcast_to(np.asarray(size, dtype=float), self.ranks.shape)
        for ranks, link in self.rings:
            seconds += link_seconds(link, collective, ranks, left)
            left = left / ranks
        return seconds


def link_seconds(link: Link, collective: Collective, ranks: Number, size: Number) -> np.ndarray:
    """Seconds of one call on one tier: read off what was measured there, else a latency plus bytes over bandwidth."""
    if rows := link.measured.get(collective):
        return collective_seconds(rows, collective, np.asarray(ranks), size)
    latency = link.latency + link.doubling * np.log2(ranks)
    return np.where(np.asarray(ranks) > 1, latency + moved(collective, ranks) * size / link.bandwidth, 0.0)


def group(cluster: Cluster, sizes: Mapping[str, Number], axis: str) -> Group:
    """The ranks of `axis`, when devices are numbered with the last mesh axis fastest.

    `sizes` holds a number, or one number per candidate, for every mesh axis.
    """
    columns = dict(zip(MESH_AXES, np.broadcast_arrays(*(np.atleast_1d(sizes[a]) for a in MESH_AXES)), strict=True))
    size = columns[axis]
    stride = np.ones_like(size)
    for name in MESH_AXES[MESH_AXES.index(axis) + 1 :]:
        stride = stride * columns[name]
    rings: list[tuple[np.ndarray, Link]] = []
    left, inside = size, np.ones_like(size)
    for index, tier in enumerate(cluster.tiers):
        if index == len(cluster.tiers) - 1:
            ranks = left
        else:
            reach = np.clip(tier.devices // stride, 1, size)
            ranks = np.minimum(np.maximum(reach // inside, 1), left)
        rings.append((ranks, tier))
        inside = inside * ranks
        left = -(-left // ranks)
    return Group(ranks=size, rings=tuple(rings))

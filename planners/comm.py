"""Seconds of collectives on the links a mesh axis crosses: a latency per call plus bytes over bandwidth."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from planners.plan import MESH_AXES
from planners.topology import Cluster, Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The ranks of one mesh axis, and their nested rings: (ranks, link) from the innermost tier outwards."""

    ranks: int
    rings: tuple[tuple[int, Link], ...]

    def all_gather(self, size: float) -> float:
        """Seconds to gather a tensor of `size` bytes (whole) from its equal shards.

        Hierarchical: each tier gathers what its inner tiers leave to it, (n - 1) / n of it per device
        (planners.md 3.5).
        """
        seconds = 0.0
        for ranks, link in self.rings:
            latency = link.latency + link.doubling * math.log2(ranks)
            seconds += latency + (ranks - 1) / ranks * size / link.bandwidth
            size /= ranks
        return seconds

    def reduce_scatter(self, size: float) -> float:
        """Seconds to sum `size` bytes (whole) and leave each rank its shard: an all-gather backwards."""
        return self.all_gather(size)

    def all_reduce(self, size: float) -> float:
        """Seconds to sum `size` bytes on every rank: reduce-scatter and all-gather, one call on each tier.

        `latency` was fitted to whole all-reduce calls, so it is paid once per tier.
        """
        seconds = 0.0
        for ranks, link in self.rings:
            latency = link.latency + link.doubling * math.log2(ranks)
            seconds += latency + 2 * (ranks - 1) / ranks * size / link.bandwidth
            size /= ranks
        return seconds

    def sent(self, size: float) -> float:
        """Bytes one device sends to gather or reduce-scatter `size` bytes; an all-reduce takes twice that."""
        return (self.ranks - 1) / self.ranks * size


def group(cluster: Cluster, mesh: Mapping[str, int], axis: str) -> Group:
    """The ranks of `axis`, when devices are numbered with the last mesh axis fastest."""
    size = mesh[axis]
    stride = math.prod(mesh[name] for name in MESH_AXES[MESH_AXES.index(axis) + 1 :])
    rings: list[tuple[int, Link]] = []
    left, inside = size, 1
    for index, tier in enumerate(cluster.tiers):
        outermost = index == len(cluster.tiers) - 1
        reach = size if outermost else min(max(tier.devices // stride, 1), size)
        ranks = left if outermost else min(max(reach // inside, 1), left)
        if ranks > 1:
            rings.append((ranks, tier))
            inside *= ranks
            left = -(-left // ranks)
    return Group(ranks=size, rings=tuple(rings))

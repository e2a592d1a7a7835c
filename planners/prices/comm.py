"""Seconds of collectives on the links a mesh axis crosses: measured, or a latency plus bytes over bandwidth."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planners.machines.link_table import Collective, collective_seconds, moved
from planners.machines.topology import Cluster, Link
from planners.plan import MESH_AXES
from planners.prices.assumptions import Assumptions
from planners.work import Number


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """The ranks of one mesh axis, and their nested rings: (ranks, link) from the innermost tier outwards.

    One entry per candidate; a tier that a candidate's axis does not cross has 1 rank there and costs nothing.
    """

    ranks: np.ndarray
    rings: tuple[tuple[np.ndarray, Link], ...]

    def all_gather(self, size: Number) -> np.ndarray:
        """Seconds to gather a tensor of `size` bytes (whole) from its equal shards, nested or in one ring, whichever
        is faster.

        Nested: each tier gathers what its inner tiers leave to it, (n - 1) / n of it per device (planners.md 3.5).
        One ring over all ranks: every tier carries all of it at once, and each device of a node that takes part
        brings its own way out of the node, so the slowest tier decides.
        """
        return self._fastest(size, "all_gather")

    def reduce_scatter(self, size: Number) -> np.ndarray:
        """Seconds to sum `size` bytes (whole) and leave each rank its shard: an all-gather backwards."""
        return self._fastest(size, "reduce_scatter")

    def all_reduce(self, size: Number) -> np.ndarray:
        """Seconds to sum `size` bytes on every rank: reduce-scatter and all-gather, one call on each tier.

        `latency` was fitted to whole all-reduce calls, so it is paid once per tier.
        """
        return self._fastest(size, "all_reduce")

    def hop(self, size: Number) -> np.ndarray:
        """Seconds to hand `size` bytes to the next rank of the axis, over the outermost tier that the axis crosses."""
        seconds = np.zeros(len(self.ranks))
        for ranks, link in self.rings:
            seconds = np.where(ranks > 1, link_seconds(link, "permute", np.full_like(ranks, 2), size), seconds)
        return seconds

    def sent(self, size: Number) -> np.ndarray:
        """Bytes one device sends to gather or reduce-scatter `size` bytes; an all-reduce takes twice that."""
        return (self.ranks - 1) / self.ranks * size

    def _fastest(self, size: Number, collective: Collective) -> np.ndarray:
        whole = np.broadcast_to(np.asarray(size, dtype=float), self.ranks.shape)
        nested = self._nested(whole, collective)
        crossed = [np.asarray(ranks) > 1 for ranks, _ in self.rings]
        if any(link.measured for _, link in self.rings) or not np.any(np.sum(crossed, axis=0) > 1):
            return nested
        calls, slowest, inside = np.zeros(len(self.ranks)), np.full(len(self.ranks), np.inf), np.ones(len(self.ranks))
        for ranks, link in self.rings:
            calls = calls + np.where(ranks > 1, link.latency + link.doubling * np.log2(ranks), 0.0)
            slowest = np.where(ranks > 1, np.minimum(slowest, link.bandwidth * inside), slowest)
            inside = inside * ranks
        return np.minimum(nested, calls + moved(collective, self.ranks) * whole / slowest)

    def _nested(self, size: np.ndarray, collective: Collective) -> np.ndarray:
        seconds = np.zeros(len(self.ranks))
        left = size
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


def calibrated(cluster: Cluster, assumptions: Assumptions) -> Cluster:
    """The cluster with the links that the assumptions make of its figures; measured tables stay as they are."""
    a = assumptions

    def link(tier: Link, share: float) -> Link:
        return dataclasses.replace(
            tier, bandwidth=tier.bandwidth * share, latency=tier.latency * a.latency, doubling=tier.doubling * a.latency
        )

    shares = (a.link_efficiency, *(a.network_efficiency for _ in cluster.tiers[1:]))
    return dataclasses.replace(cluster, tiers=tuple(map(link, cluster.tiers, shares)))


def group(cluster: Cluster, sizes: Mapping[str, Number], axis: str, order: Sequence[str] = MESH_AXES) -> Group:
    """The ranks of `axis`, when devices are numbered with the last axis of `order` fastest.

    `sizes` holds a number, or one number per candidate, for every mesh axis.
    """
    columns = dict(zip(MESH_AXES, np.broadcast_arrays(*(np.atleast_1d(sizes[a]) for a in MESH_AXES)), strict=True))
    size = columns[axis]
    stride = np.ones_like(size)
    for name in order[order.index(axis) + 1 :]:
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

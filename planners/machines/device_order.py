"""Which device sits where on the mesh, so that slow links lie on the outer axes, and what the links are worth then.

A ring runs through its ranks in the order of their numbers, so a link between two members costs only where they are
neighbours. Members of a tier are therefore ordered so that each follows the one that it reaches fastest.
"""

import dataclasses
import math

from planners.machines.topology import Cluster, Link


def arranged(cluster: Cluster) -> tuple[Cluster, tuple[int, ...]]:
    """The cluster as it is priced, its tiers as fast as the slowest link that the order cannot avoid, and the order:
    physical device at each position. The order is empty for a cluster without links of their own."""
    if not cluster.edges:
        return cluster, ()
    order = list(range(cluster.count))
    tiers: list[Link] = []
    for index, tier in enumerate(cluster.tiers):
        inside = cluster.tiers[index - 1].devices if index else 1
        outermost = index == len(cluster.tiers) - 1
        each = cluster.members(index) if outermost else max(tier.devices // inside, 1)
        slow = _speeds(cluster, tier)
        if not slow:
            tiers.append(tier)
            continue
        blocks = [order[start : start + inside] for start in range(0, cluster.count, inside)]
        rings = [
            _follow(list(range(start, min(start + each, len(blocks)))), tier, slow)
            for start in range(0, len(blocks), each)
        ]
        order = [device for ring in rings for member in ring for device in blocks[member]]
        tiers += _worth(tier, inside, rings, slow)
    latency = {edge.tier: edge.latency for edge in cluster.edges if edge.latency is not None}
    tiers = [dataclasses.replace(t, latency=max(t.latency, latency.get(t.name, 0.0))) for t in tiers]
    plain = dataclasses.replace(cluster, tiers=tuple(tiers), edges=())
    return plain, tuple(order) if order != list(range(cluster.count)) else ()


def _speeds(cluster: Cluster, tier: Link) -> dict[tuple[int, ...], float]:
    """Bandwidth of the tier's links of their own, by their members."""
    return {tuple(sorted(edge.between)): edge.bandwidth for edge in cluster.edges if edge.tier == tier.name}


def _speed(one: int, other: int, tier: Link, slow: dict[tuple[int, ...], float]) -> float:
    pair = (min(one, other), max(one, other))
    ends = min(slow.get((one,), math.inf), slow.get((other,), math.inf))
    return min(slow.get(pair, tier.bandwidth), ends)


def _follow(members: list[int], tier: Link, slow: dict[tuple[int, ...], float]) -> list[int]:
    """The members in an order in which each follows the one that it reaches fastest, the lowest number first."""
    found = [members[0]]
    left = members[1:]
    while left:
        following = max(left, key=lambda member: (_speed(found[-1], member, tier, slow), -member))
        found.append(following)
        left.remove(following)
    return found


def _worth(tier: Link, inside: int, rings: list[list[int]], slow: dict[tuple[int, ...], float]) -> list[Link]:
    """The tier at the speed of its slowest neighbours; cut in two where slow links lie only between equal runs."""
    count = len(rings[0])
    for run in (size for size in range(count - 1, 1, -1) if count % size == 0):
        runs = [ring[start : start + run] for ring in rings for start in range(0, count, run)]
        if _slowest(runs, tier, slow) >= tier.bandwidth:
            inner = dataclasses.replace(tier, name=f"{tier.name}, within {run}", devices=run * inside)
            outer = dataclasses.replace(tier, bandwidth=_slowest(rings, tier, slow), measured={})
            return [inner, outer] if outer.bandwidth < tier.bandwidth else [tier]
    speed = _slowest(rings, tier, slow)
    return [tier if speed >= tier.bandwidth else dataclasses.replace(tier, bandwidth=speed, measured={})]


def _slowest(rings: list[list[int]], tier: Link, slow: dict[tuple[int, ...], float]) -> float:
    """Of all neighbours in the rings, each closed."""
    return min(
        (_speed(ring[at - 1], ring[at], tier, slow) for ring in rings for at in range(len(ring)) if len(ring) > 1),
        default=tier.bandwidth,
    )

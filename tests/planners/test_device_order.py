"""Slow links lie between the outer axes, a fault that an order can avoid costs nothing, one that it cannot does."""

import dataclasses
from pathlib import Path

import workloads

from planners.machines.cluster_file import load_cluster
from planners.machines.device_order import arranged
from planners.machines.presets import nodes
from planners.machines.topology import Cluster, Edge
from planners.search import plan, price
from planners.wishes import Search

NETWORK = nodes("H100", 64).tiers[1]


def with_edges(*edges: Edge, count: int = 64) -> Cluster:
    return dataclasses.replace(nodes("H100", count), edges=edges)


def slow(*between: int, bandwidth: float = 1e9) -> Edge:
    return Edge(tier=NETWORK.name, between=between, bandwidth=bandwidth)


def node_order(order: tuple[int, ...]) -> list[int]:
    return [device // 8 for device in order[::8]]


def test_without_edges_nothing_changes() -> None:
    cluster = nodes("H100", 64)
    assert arranged(cluster) == (cluster, ())


def test_a_slow_link_between_two_nodes_is_avoided_at_no_cost() -> None:
    cluster, order = arranged(with_edges(slow(1, 2)))
    ring = node_order(order)
    assert sorted(order) == list(range(64))
    assert abs(ring.index(1) - ring.index(2)) > 1
    assert cluster.tiers == nodes("H100", 64).tiers
    work, mesh = workloads.llama_7b(64), {"fsdp": 16, "data": 4}
    healthy, faulty = (price(work, c, Search(), mesh, 64) for c in (nodes("H100", 64), with_edges(slow(1, 2))))
    assert healthy == faulty


def test_a_slow_node_cannot_be_avoided() -> None:
    cluster, _ = arranged(with_edges(slow(5)))
    assert cluster.tiers[1].bandwidth == 1e9
    work = workloads.llama_7b(64)
    fast, lame = (price(work, c, Search(), {"data": 64}, 64) for c in (nodes("H100", 64), with_edges(slow(5))))
    assert lame.step_seconds > fast.step_seconds


def test_zones_found_among_the_links_become_a_tier_and_lie_outside() -> None:
    """Odd and even nodes stand in two zones: numbered as they are, every neighbour is far away."""
    far = [slow(one, other) for one in range(0, 8, 2) for other in range(1, 8, 2)]
    cluster, order = arranged(with_edges(*far))
    assert node_order(order) in ([0, 2, 4, 6, 1, 3, 5, 7], [0, 2, 4, 6, 7, 5, 3, 1])
    assert [tier.devices for tier in cluster.tiers] == [8, 32, 64]
    assert [tier.bandwidth for tier in cluster.tiers[1:]] == [NETWORK.bandwidth, 1e9]
    made = plan(workloads.llama_7b(64), with_edges(*far), Search())
    assert made.device_order == order


def test_the_shipped_faulty_cluster_plans() -> None:
    cluster = load_cluster(Path(__file__).parents[2] / "configs" / "clusters" / "slow-link-a100.yaml")
    made = plan(workloads.llama_7b(64), cluster, Search())
    ring = node_order(made.device_order)
    assert abs(ring.index(1) - ring.index(2)) > 1

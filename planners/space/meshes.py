"""Every mesh of a cluster that obeys the user and divides the work, and why the others do not."""

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from planners.layout import divides, indivisible, rules, ways
from planners.machines.topology import Cluster
from planners.plan import BATCH_AXES, MESH_AXES, PlanError, Workload
from planners.wishes import Search


def meshes(workload: Workload, cluster: Cluster, search: Search, axes: Sequence[str]) -> dict[str, np.ndarray]:
    """Sizes of every mesh axis, one entry per mesh that can be. `axes` are searched, the others are 1 unless fixed.

    Raises PlanError, naming the numbers, when the fixed axes do not make a mesh of the cluster or nothing divides.
    """
    free = [axis for axis in axes if axis not in search.mesh and (axis != "zone" or zones(cluster) > 1)]
    fixed = math.prod(search.mesh.values())
    rows = factorizations(cluster.count // fixed, len(free)) if cluster.count % fixed == 0 else np.zeros((0, 0), int)
    if not len(rows):
        usual = ("data", "fsdp", "tensor")
        named = " x ".join(f"{axis}={size}" for axis, size in search.mesh.items() if axis in usual or size > 1)
        complete = not free
        raise PlanError(
            f"mesh {named} makes {fixed} devices, {cluster.name} has {cluster.count}"
            + ("" if complete else f"; the fixed axes must multiply to a divisor of {cluster.count}")
        )
    columns = dict(zip(free, rows.T, strict=True))
    ones = np.ones(len(rows), int)
    sizes = {axis: columns.get(axis, ones * search.mesh.get(axis, 1)) for axis in MESH_AXES}
    if "zone" in free:
        sizes = _take(sizes, (sizes["zone"] == 1) | (sizes["zone"] == zones(cluster)))
    replicas = np.prod([sizes[axis] for axis in BATCH_AXES], axis=0)
    splits = workload.batch % replicas == 0
    if search.microbatch:
        splits &= search.microbatch % replicas == 0
    good = splits & divides(workload, sizes)
    if not good.any():
        raise PlanError(_why_none(workload, cluster, search, sizes))
    return _take(sizes, good)


def zones(cluster: Cluster) -> int:
    """Groups that the outermost tier joins, where there are tiers beyond nodes and their network; else 1."""
    if len(cluster.pools) > 1 and all(pool.count == cluster.pools[0].count for pool in cluster.pools):
        return len(cluster.pools)
    return cluster.members(len(cluster.tiers) - 1) if len(cluster.tiers) > 2 else 1


@functools.cache
def factorizations(number: int, parts: int) -> np.ndarray:
    """Every way to write `number` as an ordered product of `parts` whole numbers: [ways, parts]."""
    if parts == 0:
        return np.ones((1 if number == 1 else 0, 0), int)
    if parts == 1:
        return np.array([[number]])
    found = []
    for first in divisors(number):
        rest = factorizations(number // first, parts - 1)
        found.append(np.column_stack([np.full(len(rest), first), rest]))
    return np.concatenate(found)


def divisors(number: int) -> list[int]:
    """In rising order."""
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def say_indivisible(logical: str, size: int, axes: tuple[str, ...], mesh: Mapping[str, int], count: int) -> str:
    """The sentence for one row of `indivisible` on `count` devices."""
    label = " x ".join(f"{axis}={mesh[axis]}" for axis in axes)
    sizes = ", ".join(str(divisor) for divisor in divisors(size) if divisor <= count)
    return f"{logical}={size} is not divisible by {label}; {' x '.join(axes)} can be {sizes}"


def _take(sizes: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    return {axis: size[rows] for axis, size in sizes.items()}


def _why_none(workload: Workload, cluster: Cluster, search: Search, sizes: dict[str, np.ndarray]) -> str:
    reasons: dict[str, str] = {}
    count = len(sizes["data"])
    for row in range(count):
        mesh = {axis: int(size[row]) for axis, size in sizes.items()}
        for subject, reason in _obstacles(workload, cluster, search, mesh).items():
            reasons.setdefault(subject, reason)
    shown = "; ".join(reasons.values())
    return shown if count == 1 else f"no mesh of {cluster.count} devices divides {workload.name}: {shown}"


def _obstacles(workload: Workload, cluster: Cluster, search: Search, mesh: dict[str, int]) -> dict[str, str]:
    """Why this mesh cannot split this work, a sentence for each quantity; empty when it can."""
    replicas = ways(BATCH_AXES, mesh)
    found: dict[str, str] = {}
    if workload.batch % replicas:
        below = workload.batch // replicas * replicas
        sizes = ", ".join(str(size) for size in (below, below + replicas) if size)
        found["batch"] = (
            f"batch {workload.batch} cannot be split over {replicas} replicas; batch sizes that work: {sizes}"
        )
    elif search.microbatch and search.microbatch % replicas:
        sizes = ", ".join(str(size) for size in divisors(workload.batch) if size % replicas == 0)
        found["microbatch"] = (
            f"microbatch {search.microbatch} cannot be split over {replicas} replicas; it can be {sizes}"
        )
    for logical, size, axes in indivisible(workload, rules(mesh), mesh):
        found[logical] = say_indivisible(logical, size, axes, mesh, cluster.count)
    return found

"""The search space: every mesh, microbatch, remat and loss chunking that divides, with its price."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from planners.assumptions import Assumptions
from planners.candidates import REMATS, Candidates
from planners.cost import price
from planners.layout import check_executable, indivisible, rules, ways
from planners.memory import Remat
from planners.plan import BATCH_AXES, MESH_AXES, PlanError, Prediction, Search, Workload
from planners.topology import Cluster

SEARCHED = ("data", "fsdp", "tensor")
"""Mesh axes that this planner decides; the others stay 1 until the trainer can execute them."""

CHUNKS = (1, 2, 4, 8, 16, 32, 64)
"""Pieces of the loss that are tried, fewest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One point of the search space and what it is predicted to cost."""

    mesh: dict[str, int]
    microbatch: int
    remat: Remat
    loss_chunks: int
    predicted: Prediction

    @property
    def axes(self) -> int:
        return sum(size > 1 for size in self.mesh.values())


def summarise(choice: Choice, workload: Workload) -> str:
    """One line: mesh, batch split, rematerialisation and loss pieces."""
    axes = " ".join(f"{axis}={size}" for axis, size in choice.mesh.items() if size > 1) or "one device"
    pieces = f", loss in {choice.loss_chunks} pieces" if choice.loss_chunks > 1 else ""
    times = workload.batch // choice.microbatch
    return f"{axes} | {times} x {choice.microbatch} sequences | remat {choice.remat}{pieces}"


def enumerate_choices(workload: Workload, cluster: Cluster, search: Search, assumptions: Assumptions) -> list[Choice]:
    """Every choice that divides and obeys the search; of the loss chunks only the fewest that fit, else the
    most.

    Raises PlanError, naming the numbers, when the search contradicts itself or nothing divides.
    """
    candidates = enumerate_candidates(workload, cluster, search)
    prices = price(workload, cluster, candidates, unroll=search.unroll, assumptions=assumptions)
    rows = _fewest_chunks(candidates, prices.memory_bytes <= cluster.device.memory * search.memory_fraction)
    return [
        Choice(
            mesh=candidates.mesh(row),
            microbatch=int(candidates.microbatch[row]),
            remat=REMATS[candidates.remat[row]],
            loss_chunks=int(candidates.loss_chunks[row]),
            predicted=prices.prediction(row),
        )
        for row in rows
    ]


def enumerate_candidates(workload: Workload, cluster: Cluster, search: Search) -> Candidates:
    """Every combination that divides and obeys the search, the loss chunks of one choice next to each other, fewest
    first. Raises PlanError, naming the numbers, when the search contradicts itself or nothing divides."""
    _check_search(workload, search)
    remats = range(len(REMATS)) if search.remat == "auto" else [REMATS.index(search.remat)]
    chunks = [n for n in CHUNKS if workload.sequence % n == 0]
    chunks = [search.loss_chunks] if search.loss_chunks else chunks
    microbatches = [search.microbatch] if search.microbatch else divisors(workload.batch)
    meshes = np.array([list(mesh.values()) for mesh in _meshes(workload, cluster, search)])
    mesh, *columns = np.meshgrid(np.arange(len(meshes)), microbatches, list(remats), chunks, indexing="ij")
    sizes = dict(zip(MESH_AXES, meshes[mesh.ravel()].T, strict=True))
    microbatch, remat, loss_chunks = (column.ravel() for column in columns)
    every = Candidates.of(sizes, microbatch=microbatch, remat=remat, loss_chunks=loss_chunks)
    return every.take(every.microbatch % every.replicas == 0)


def _fewest_chunks(candidates: Candidates, fits: np.ndarray) -> np.ndarray:
    """Rows: of each run of choices that differ in their loss chunks only, the first that fits, else the last."""
    keys = np.stack([*candidates.sizes.values(), candidates.microbatch, candidates.remat])
    starts = np.flatnonzero(np.append(True, np.any(keys[:, 1:] != keys[:, :-1], axis=0)))
    ends = np.append(starts[1:], len(candidates))
    following = np.where(fits, np.arange(len(candidates)), len(candidates))
    first = np.minimum.accumulate(following[::-1])[::-1][starts]
    return np.where(first < ends, first, ends - 1)


def _meshes(workload: Workload, cluster: Cluster, search: Search) -> list[dict[str, int]]:
    """Meshes of the whole cluster that obey the search and divide the work; PlanError if none does."""
    possible = [
        mesh
        for data, fsdp in itertools.product(divisors(cluster.count), repeat=2)
        if cluster.count % (data * fsdp) == 0
        for mesh in [_mesh(data=data, fsdp=fsdp, tensor=cluster.count // (data * fsdp))]
        if all(mesh[axis] == size for axis, size in search.mesh.items())
    ]
    if not possible:
        fixed = " x ".join(f"{axis}={size}" for axis, size in search.mesh.items() if axis in SEARCHED)
        product = ways(search.mesh, search.mesh)
        complete = all(axis in search.mesh for axis in SEARCHED)
        raise PlanError(
            f"mesh {fixed} makes {product} devices, {cluster.name} has {cluster.count}"
            + ("" if complete else f"; the fixed axes must multiply to a divisor of {cluster.count}")
        )
    reasons: dict[str, str] = {}
    good: list[dict[str, int]] = []
    for mesh in possible:
        found = _obstacles(workload, cluster, search, mesh)
        for subject, reason in found.items():
            reasons.setdefault(subject, reason)
        if not found:
            good.append(mesh)
    if not good:
        shown = "; ".join(reasons.values())
        raise PlanError(
            shown if len(possible) == 1 else f"no mesh of {cluster.count} devices divides {workload.name}: {shown}"
        )
    return good


def _mesh(**sizes: int) -> dict[str, int]:
    return {axis: sizes.get(axis, 1) for axis in MESH_AXES}


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


def say_indivisible(logical: str, size: int, axes: tuple[str, ...], mesh: Mapping[str, int], count: int) -> str:
    """The sentence for one row of `indivisible` on `count` devices."""
    label = " x ".join(f"{axis}={mesh[axis]}" for axis in axes)
    sizes = ", ".join(str(divisor) for divisor in divisors(size) if divisor <= count)
    return f"{logical}={size} is not divisible by {label}; {' x '.join(axes)} can be {sizes}"


def _check_search(workload: Workload, search: Search) -> None:
    for axis, size in search.mesh.items():
        if size < 1:
            raise PlanError(f"mesh {axis}={size} must be at least 1; leave it out to let the planner decide")
    check_executable(search.mesh)
    if search.microbatch is not None and (search.microbatch < 1 or workload.batch % search.microbatch):
        sizes = ", ".join(map(str, divisors(workload.batch)))
        raise PlanError(f"microbatch {search.microbatch} does not divide batch {workload.batch}; it can be {sizes}")
    if search.loss_chunks and workload.sequence % search.loss_chunks:
        raise PlanError(
            f"loss_chunks={search.loss_chunks} does not divide sequence={workload.sequence}; "
            f"it can be {', '.join(str(n) for n in CHUNKS if workload.sequence % n == 0)}"
        )


def divisors(number: int) -> list[int]:
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})

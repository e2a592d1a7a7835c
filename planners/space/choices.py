"""The search space: every mesh, microbatch, remat, optimizer split and loss chunking that divides, with its price."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from planners.candidates import REMATS, Candidates
from planners.findings import Prediction
from planners.layout import EXECUTABLE, check_executable, divides
from planners.machines.device_order import arranged
from planners.machines.topology import Cluster
from planners.plan import BATCH_AXES, PlanError, Segment, Workload, describe
from planners.prices.assumptions import Assumptions
from planners.prices.cost import Prices, price
from planners.prices.device_memory import device_memory
from planners.space.meshes import divisors, meshes
from planners.wishes import Search

CHUNKS = (1, 2, 4, 8, 16, 32, 64)
"""Pieces of the loss that are tried, fewest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One point of the search space and what it is predicted to cost."""

    mesh: dict[str, int]
    microbatch: int
    remat: str
    loss_chunks: int
    predicted: Prediction
    zero: bool = False
    virtual: int = 1
    segments: tuple[Segment, ...] = ()

    @property
    def axes(self) -> int:
        return sum(size > 1 for size in self.mesh.values())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choices:
    """All choices of one search: the decisions, their prices, and the bytes that each device may use.

    `mixes` are the rows that are rematerialised by layer and value (`planners.space.mixes`), and how.
    """

    candidates: Candidates
    prices: Prices
    budget: float
    mixes: Mapping[int, tuple[Segment, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.candidates)

    def __getitem__(self, row: int | np.integer) -> Choice:
        at, segments = self.candidates, self.mixes.get(int(row), ())
        return Choice(
            mesh=at.mesh(int(row)),
            microbatch=int(at.microbatch[row]),
            remat=", ".join(map(describe, segments)) if segments else at.remats[at.remat[row]],
            loss_chunks=int(at.loss_chunks[row]),
            predicted=self.prices.prediction(int(row)),
            zero=bool(at.zero[row]),
            virtual=int(at.virtual[row]),
            segments=segments,
        )

    def take(self, rows: np.ndarray) -> "Choices":
        """Those at these positions."""
        at = {int(row): index for index, row in enumerate(rows)}
        return Choices(
            candidates=self.candidates.take(rows),
            prices=self.prices.take(rows),
            budget=self.budget,
            mixes={at[row]: segments for row, segments in self.mixes.items() if row in at},
        )

    @property
    def fits(self) -> np.ndarray:
        """Whether each is predicted to fit."""
        return self.prices.memory_bytes <= self.budget


def summarise(choice: Choice, workload: Workload) -> str:
    """One line: mesh, batch split, rematerialisation, optimizer split and loss pieces."""
    axes = " ".join(f"{axis}={size}" for axis, size in choice.mesh.items() if size > 1) or "one device"
    rest = f", {choice.virtual} turns round the stages" if choice.virtual > 1 else ""
    rest += ", optimizer state over data" if choice.zero else ""
    rest += f", loss in {choice.loss_chunks} pieces" if choice.loss_chunks > 1 else ""
    times = workload.batch // choice.microbatch
    return f"{axes} | {times} x {choice.microbatch} sequences | remat {choice.remat}{rest}"


def priced_choices(
    workload: Workload,
    cluster: Cluster,
    search: Search,
    assumptions: Assumptions,
    axes: Sequence[str] = EXECUTABLE,
) -> Choices:
    """Every choice that divides, obeys the search and fits, priced; of the loss chunks only the fewest that fit. Of
    those that do not fit the plain ones too (no stages, no context axis, whole optimizer state) with the most chunks,
    to tell what lacked memory; all of them where there is no other. `axes` are the mesh axes to search; any other
    stays 1.

    Raises PlanError, naming the numbers, when the search contradicts itself or nothing divides.
    """
    check_search(workload, search, axes)
    cluster, _ = arranged(cluster)
    candidates = enumerate_candidates(workload, cluster, search, axes)
    budget = cluster.device.memory * search.fraction(cluster.device.memory)
    chunks = [search.loss_chunks] if search.loss_chunks else [n for n in CHUNKS if workload.sequence % n == 0]
    candidates, fits = _fewest_chunks(workload, cluster, candidates, chunks, budget, search.unroll, assumptions)
    # What does not fit is priced only to say what it would have gained, so only where the trainer could execute it.
    plain = (candidates.sizes["stage"] == 1) & (candidates.sizes["context"] == 1) & ~candidates.zero
    kept = candidates.take(fits | plain if (fits | plain).any() else np.ones(len(candidates), bool))
    prices = price(workload, cluster, kept, unroll=search.unroll, assumptions=assumptions)
    return Choices(candidates=kept, prices=prices, budget=budget)


def enumerate_candidates(
    workload: Workload, cluster: Cluster, search: Search, axes: Sequence[str] = EXECUTABLE
) -> Candidates:
    """Every combination that divides and obeys the search, the loss in one piece. Raises PlanError when nothing
    divides."""
    sizes = meshes(workload, cluster, search, axes)
    remats = [REMATS.index(search.remat)] if search.remat in REMATS else range(len(REMATS))
    microbatches = [search.microbatch] if search.microbatch else divisors(workload.batch)
    splits = [False, True] if search.shard_optimizer is None else [search.shard_optimizer]
    turns = divisors(workload.layers) if np.any(sizes["stage"] > 1) else [1]

    mesh, microbatch = (
        grid.ravel() for grid in np.meshgrid(np.arange(len(sizes["data"])), microbatches, indexing="ij")
    )
    replicas = np.prod([sizes[axis] for axis in BATCH_AXES], axis=0)
    mesh, microbatch = (column[microbatch % replicas[mesh] == 0] for column in (mesh, microbatch))
    rows, remat, zero, virtual = (
        grid.ravel() for grid in np.meshgrid(np.arange(len(mesh)), list(remats), splits, turns, indexing="ij")
    )
    mesh, microbatch = mesh[rows], microbatch[rows]
    shard = divides(workload, sizes, zero=True) & (sizes["data"] > 1)
    stage = sizes["stage"][mesh]
    # Interleaving sends the microbatches round in groups of as many as there are stages (arXiv:2104.04473, 2.2).
    turn = (stage > 1) & (workload.layers // stage % virtual == 0) & (workload.batch // microbatch % stage == 0)
    good = (~zero | shard[mesh]) & ((virtual == 1) | turn)
    if not good.any():
        raise PlanError(
            "plan.shard_optimizer=true needs a data axis of at least 2 that, with fsdp, divides the model's width"
        )
    return Candidates.of(
        {axis: size[mesh[good]] for axis, size in sizes.items()},
        microbatch=microbatch[good],
        remat=remat[good],
        zero=zero[good],
        virtual=virtual[good],
    )


def _fewest_chunks(
    workload: Workload,
    cluster: Cluster,
    candidates: Candidates,
    chunks: Sequence[int],
    budget: float,
    unroll: int,
    assumptions: Assumptions,
) -> tuple[Candidates, np.ndarray]:
    """The candidates with the fewest loss chunks that fit, or the most where none does; and which fit.

    One piece is tried first, then the most, then the numbers between, halving what is left of them: from two pieces
    on, more of them never need more memory.
    """

    def fits(rows: np.ndarray, pieces: np.ndarray) -> np.ndarray:
        tried = _with_chunks(candidates.take(rows), pieces)
        parts = device_memory(workload, cluster.device, tried, unroll=unroll, assumptions=assumptions)
        return np.sum(list(parts.values()), axis=0) <= budget

    options = np.asarray(chunks)
    last = len(options) - 1
    every = np.arange(len(candidates))
    good = fits(every, np.full(len(every), options[0]))
    chosen = np.where(good, 0, last)
    if last and not good.all():
        left = every[~good]
        left = left[fits(left, np.full(len(left), options[-1]))]
        good[left] = True
        low, high = np.ones(len(left), int), np.full(len(left), last)
        while np.any(low < high):
            middle = (low + high) // 2
            enough = fits(left, options[middle])
            low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
            low = np.minimum(low, high)
        chosen[left] = high
    return _with_chunks(candidates, options[chosen]), good


def _with_chunks(candidates: Candidates, chunks: np.ndarray) -> Candidates:
    return Candidates(
        sizes=candidates.sizes,
        microbatch=candidates.microbatch,
        remat=candidates.remat,
        loss_chunks=chunks,
        zero=candidates.zero,
        sequence=candidates.sequence,
        virtual=candidates.virtual,
        remats=candidates.remats,
    )


def check_search(workload: Workload, search: Search, axes: Sequence[str]) -> None:
    """Raises PlanError when the search contradicts itself or the work, or fixes an axis that may not be used."""
    for axis, size in search.mesh.items():
        if size < 1:
            raise PlanError(f"mesh {axis}={size} must be at least 1; leave it out to let the planner decide")
    check_executable({axis: size for axis, size in search.mesh.items() if axis not in axes})
    if search.microbatch is not None and (search.microbatch < 1 or workload.batch % search.microbatch):
        sizes = ", ".join(map(str, divisors(workload.batch)))
        raise PlanError(f"microbatch {search.microbatch} does not divide batch {workload.batch}; it can be {sizes}")
    if search.loss_chunks and workload.sequence % search.loss_chunks:
        raise PlanError(
            f"loss_chunks={search.loss_chunks} does not divide sequence={workload.sequence}; "
            f"it can be {', '.join(str(n) for n in CHUNKS if workload.sequence % n == 0)}"
        )

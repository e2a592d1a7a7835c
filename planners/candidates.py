"""Many choices at once: one array per decision, one entry per candidate plan."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from planners.plan import BATCH_AXES, MESH_AXES

REMATS: tuple[Literal["none"], Literal["full"]] = ("none", "full")
"""Rematerialisation that a candidate chooses from, by position."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The decisions of n candidates as arrays of n entries.

    Attributes:
        sizes: of every mesh axis.
        microbatch: sequences per microbatch over all devices.
        remat: position in `remats`.
        loss_chunks: pieces in which the logits are computed.
        zero: whether the optimizer state is split over the data axis too (ZeRO-1).
        sequence: whether the activations between blocks are split over the tensor axis.
        virtual: stages that each device holds (interleaved pipeline); 1 without interleaving.
        remats: names of the rematerialisation choices.
    """

    sizes: dict[str, np.ndarray]
    microbatch: np.ndarray
    remat: np.ndarray
    loss_chunks: np.ndarray
    zero: np.ndarray
    sequence: np.ndarray
    virtual: np.ndarray
    remats: tuple[str, ...] = field(default=REMATS)

    def __post_init__(self) -> None:
        if tuple(self.sizes) != MESH_AXES:
            raise ValueError(f"candidates name mesh axes {tuple(self.sizes)}, they must be {MESH_AXES}")

    @classmethod
    def of(
        cls,
        sizes: Mapping[str, Any],
        *,
        microbatch: Any,
        remat: Any = 0,
        loss_chunks: Any = 1,
        zero: Any = False,
        sequence: Any = False,
        virtual: Any = 1,
        remats: Sequence[str] = REMATS,
    ) -> "Candidates":
        """Candidates from numbers and arrays, broadcast to one length; mesh axes that `sizes` leaves out are 1."""
        whole = [*(sizes.get(axis, 1) for axis in MESH_AXES), microbatch, remat, loss_chunks, virtual]
        columns = np.broadcast_arrays(*map(np.atleast_1d, [*whole, zero, sequence]))
        numbers = [np.asarray(column, dtype=np.int64) for column in columns[:-2]]
        flags = [np.asarray(column, dtype=bool) for column in columns[-2:]]
        axes, (pieces, kept, chunks, interleaved) = numbers[: len(MESH_AXES)], numbers[len(MESH_AXES) :]
        return cls(
            sizes=dict(zip(MESH_AXES, axes, strict=True)),
            microbatch=pieces,
            remat=kept,
            loss_chunks=chunks,
            zero=flags[0],
            sequence=flags[1],
            virtual=interleaved,
            remats=tuple(remats),
        )

    def __len__(self) -> int:
        return len(self.microbatch)

    def take(self, rows: np.ndarray) -> "Candidates":
        """The candidates at these positions (or where this mask holds)."""
        columns = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        picked = {name: column[rows] for name, column in columns.items() if name not in ("sizes", "remats")}
        return Candidates(sizes={axis: size[rows] for axis, size in self.sizes.items()}, **picked, remats=self.remats)

    @property
    def replicas(self) -> np.ndarray:
        """Ways in which the batch is split."""
        return np.prod([self.sizes[axis] for axis in BATCH_AXES], axis=0)

    @property
    def devices(self) -> np.ndarray:
        return np.prod(list(self.sizes.values()), axis=0)

    def mesh(self, row: int) -> dict[str, int]:
        """The mesh of one candidate."""
        return {axis: int(size[row]) for axis, size in self.sizes.items()}

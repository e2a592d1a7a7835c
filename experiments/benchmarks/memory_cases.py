"""The steps whose memory is compiled and predicted: those that the rules were read off, and others to judge them by.

`DEVELOPMENT` are the steps whose live ranges were looked at while `planners.memory_phases` was written; `CALIBRATION`
are two of them for each model and policy. `JUDGED` were written down before any of them was compiled, and nothing in
the planner was changed after they were.
"""

import dataclasses
from dataclasses import dataclass

from planners.plan import MESH_AXES


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One training step. `mesh` names the axes in use: `fsdp=8 tensor=4`; `microbatch` counts all devices."""

    preset: str
    mesh: str
    remat: str
    microbatch: int
    sequence: int
    accumulation: int = 1
    loss_chunks: int = 1
    packed: bool = False
    chip: str = "H100"

    @property
    def sizes(self) -> dict[str, int]:
        named = (part.split("=") for part in self.mesh.split())
        return dict.fromkeys(MESH_AXES, 1) | {axis: int(size) for axis, size in named}

    def __str__(self) -> str:
        extras = {
            f"x {self.accumulation}": self.accumulation > 1,
            f"{self.loss_chunks} chunks": self.loss_chunks > 1,
            "packed": self.packed,
            self.chip: self.chip != "H100",
        }
        words = [self.preset, self.mesh, self.remat, f"{self.microbatch} x {self.sequence}"]
        return ", ".join([*words, *(word for word, said in extras.items() if said)])


def _both(preset: str, mesh: str, microbatch: int, sequence: int, **other: object) -> tuple[Case, Case]:
    case = Case(preset=preset, mesh=mesh, remat="full", microbatch=microbatch, sequence=sequence, **other)  # pyright: ignore
    return case, dataclasses.replace(case, remat="none")


CALIBRATION: tuple[Case, ...] = (
    *_both("gpt2-124m", "fsdp=8", 8, 1024),
    *_both("gpt2-124m", "data=8", 64, 1024),
    *_both("gpt2-350m", "data=1", 4, 1024),
    *_both("gpt2-350m", "fsdp=8", 32, 1024),
    *_both("gpt2-774m", "fsdp=8", 8, 1024, accumulation=4),
    *_both("gpt2-774m", "data=2 fsdp=4", 16, 1024),
    *_both("gpt2-1558m", "fsdp=16", 32, 1024),
    *_both("gpt2-1558m", "data=8", 8, 1024, loss_chunks=4, chip="A100-80"),
    *_both("llama-1b", "data=8", 16, 2048),
    *_both("llama-1b", "data=4 tensor=2", 8, 4096),
    *_both("llama-7b", "fsdp=64", 64, 4096),
    *_both("llama-7b", "fsdp=8 tensor=4", 8, 2048),
    *_both("llama-8b", "fsdp=256", 256, 8192),
    *_both("llama-8b", "fsdp=8 tensor=2", 16, 4096, loss_chunks=8),
    *_both("llama-13b", "fsdp=64", 64, 2048),
    *_both("llama-13b", "fsdp=8 tensor=8", 8, 4096),
    *_both("llama-70b", "fsdp=512", 512, 4096),
    *_both("llama-70b", "fsdp=64 tensor=8", 64, 4096),
)

DEVELOPMENT: tuple[Case, ...] = (
    *CALIBRATION,
    *_both("gpt2-124m", "data=1", 8, 1024),
    *_both("llama-1b", "data=1", 1, 2048),
    *_both("llama-1b", "fsdp=8", 32, 2048, loss_chunks=8),
    *_both("llama-7b", "fsdp=8", 8, 2048),
    *_both("llama-7b", "fsdp=8", 16, 2048),
    *_both("llama-7b", "fsdp=8", 8, 2048, packed=True),
    *_both("llama-7b", "tensor=8", 1, 2048),
    *_both("llama-7b", "data=4 fsdp=8", 64, 2048, accumulation=2, chip="A100-80"),
    *_both("llama-8b", "fsdp=8", 8, 4096),
    *_both("llama-8b", "fsdp=8", 8, 4096, loss_chunks=8),
    *_both("llama-8b", "fsdp=8", 8, 4096, accumulation=4),
    *_both("llama-70b", "data=2 fsdp=32 tensor=8", 128, 2048, accumulation=4, chip="A100-80"),
)

JUDGED: tuple[Case, ...] = (
    *_both("gpt2-124m", "fsdp=16", 16, 1024),
    *_both("gpt2-124m", "data=2 fsdp=8", 32, 1024),
    *_both("gpt2-124m", "data=1", 16, 1024, loss_chunks=4),
    *_both("gpt2-350m", "fsdp=16", 16, 1024),
    *_both("gpt2-350m", "data=2 fsdp=8", 32, 1024),
    *_both("gpt2-350m", "data=4 fsdp=4", 64, 1024),
    *_both("gpt2-774m", "fsdp=16", 16, 1024),
    *_both("gpt2-774m", "data=2 fsdp=8", 32, 1024),
    *_both("gpt2-774m", "data=8", 32, 1024, chip="A100-80"),
    *_both("gpt2-1558m", "fsdp=16", 16, 1024),
    *_both("gpt2-1558m", "data=2 fsdp=8", 32, 1024),
    *_both("gpt2-1558m", "fsdp=8", 16, 1024, accumulation=2),
    *_both("llama-1b", "fsdp=16", 16, 2048),
    *_both("llama-1b", "data=2 fsdp=8", 32, 2048),
    *_both("llama-1b", "fsdp=4 tensor=2", 8, 4096),
    *_both("llama-1b", "data=16", 16, 2048, packed=True),
    *_both("llama-7b", "fsdp=16", 16, 2048),
    *_both("llama-7b", "data=2 fsdp=8", 32, 2048),
    *_both("llama-7b", "fsdp=16", 16, 4096, accumulation=4),
    *_both("llama-7b", "tensor=4", 2, 2048),
    *_both("llama-8b", "fsdp=16", 16, 4096),
    *_both("llama-8b", "data=2 fsdp=8", 32, 4096),
    *_both("llama-8b", "data=2 fsdp=8", 16, 8192, loss_chunks=16),
    *_both("llama-8b", "fsdp=64 tensor=8", 64, 8192),
    *_both("llama-13b", "fsdp=32", 32, 2048),
    *_both("llama-13b", "data=2 fsdp=8", 32, 2048),
    *_both("llama-13b", "fsdp=16 tensor=4", 32, 2048, packed=True),
    *_both("llama-70b", "fsdp=256", 256, 4096),
    *_both("llama-70b", "fsdp=32 tensor=8", 64, 4096),
    *_both("llama-70b", "fsdp=64 tensor=8", 128, 4096, accumulation=2),
)

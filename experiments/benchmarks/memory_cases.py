"""The steps whose memory is compiled and predicted: those that the rules were read off, and others to judge them by.

`DEVELOPMENT` are the steps that were looked at while `planners.prices.memory_phases` was written; `CALIBRATION` are two
of them for each model and policy. `JUDGED` were written down before any of them was compiled, and no rule was changed
after one was looked at. `SMALL` are the layers of the two compiles that calibrate the plan of one judged step.
"""

import dataclasses
from dataclasses import dataclass

from planners.plan import MESH_AXES


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One training step. `mesh` names the axes in use: `fsdp=8 tensor=4`; `microbatch` counts all devices;
    `layers` 0 means as many as the model has."""

    preset: str
    mesh: str
    remat: str
    microbatch: int
    sequence: int
    accumulation: int = 1
    loss_chunks: int = 1
    packed: bool = False
    chip: str = "H100"
    layers: int = 0

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
            f"{self.layers} layers": self.layers > 0,
        }
        words = [self.preset, self.mesh, self.remat, f"{self.microbatch} x {self.sequence}"]
        return ", ".join([*words, *(word for word, said in extras.items() if said)])


def _full(preset: str, mesh: str, microbatch: int, sequence: int, **other: object) -> Case:
    return _both(preset, mesh, microbatch, sequence, **other)[0]


def _none(preset: str, mesh: str, microbatch: int, sequence: int, **other: object) -> Case:
    return _both(preset, mesh, microbatch, sequence, **other)[1]


def _both(preset: str, mesh: str, microbatch: int, sequence: int, **other: object) -> tuple[Case, Case]:
    case = Case(preset=preset, mesh=mesh, remat="full", microbatch=microbatch, sequence=sequence, **other)  # pyright: ignore
    return case, dataclasses.replace(case, remat="none")


SMALL = (4, 8)

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
    # Judged by the rules as they first were, then learned from.
    *_both("gpt2-124m", "fsdp=16", 16, 1024),
    *_both("gpt2-124m", "data=2 fsdp=8", 32, 1024),
    _none("gpt2-124m", "data=1", 16, 1024, loss_chunks=4),
    _none("gpt2-350m", "fsdp=16", 16, 1024),
    *_both("gpt2-350m", "data=2 fsdp=8", 32, 1024),
    _none("gpt2-350m", "data=4 fsdp=4", 64, 1024),
    _none("gpt2-774m", "fsdp=16", 16, 1024),
    *_both("gpt2-774m", "data=2 fsdp=8", 32, 1024),
    _none("gpt2-774m", "data=8", 32, 1024, chip="A100-80"),
    *_both("gpt2-1558m", "data=2 fsdp=8", 32, 1024),
    _full("gpt2-1558m", "fsdp=8", 16, 1024, accumulation=2),
    _none("llama-1b", "fsdp=16", 16, 2048),
    *_both("llama-1b", "data=2 fsdp=8", 32, 2048),
    *_both("llama-1b", "fsdp=4 tensor=2", 8, 4096),
    _none("llama-7b", "data=2 fsdp=8", 32, 2048),
    *_both("llama-7b", "fsdp=16", 16, 4096, accumulation=4),
    *_both("llama-7b", "tensor=4", 2, 2048),
    _full("llama-8b", "fsdp=16", 16, 4096),
    _full("llama-8b", "data=2 fsdp=8", 32, 4096),
    _none("llama-8b", "data=2 fsdp=8", 16, 8192, loss_chunks=16),
    *_both("llama-8b", "fsdp=64 tensor=8", 64, 8192),
    *_both("llama-13b", "fsdp=32", 32, 2048),
    _full("llama-13b", "data=2 fsdp=8", 32, 2048),
    _none("llama-13b", "fsdp=16 tensor=4", 32, 2048, packed=True),
    *_both("llama-70b", "fsdp=256", 256, 4096),
    _none("llama-70b", "fsdp=32 tensor=8", 64, 4096),
    *_both("llama-70b", "fsdp=64 tensor=8", 128, 4096, accumulation=2),
)

JUDGED: tuple[Case, ...] = (
    _full("gpt2-124m", "data=1", 16, 1024, loss_chunks=4),
    _full("gpt2-350m", "fsdp=16", 16, 1024),
    _full("gpt2-350m", "data=4 fsdp=4", 64, 1024),
    _full("gpt2-774m", "fsdp=16", 16, 1024),
    _full("gpt2-774m", "data=8", 32, 1024, chip="A100-80"),
    *_both("gpt2-1558m", "fsdp=16", 16, 1024),
    _none("gpt2-1558m", "fsdp=8", 16, 1024, accumulation=2),
    _full("llama-1b", "fsdp=16", 16, 2048),
    *_both("llama-1b", "data=16", 16, 2048, packed=True),
    *_both("llama-7b", "fsdp=16", 16, 2048),
    _full("llama-7b", "data=2 fsdp=8", 32, 2048),
    _none("llama-8b", "fsdp=16", 16, 4096),
    _none("llama-8b", "data=2 fsdp=8", 32, 4096),
    _full("llama-8b", "data=2 fsdp=8", 16, 8192, loss_chunks=16),
    _none("llama-13b", "data=2 fsdp=8", 32, 2048),
    _full("llama-13b", "fsdp=16 tensor=4", 32, 2048, packed=True),
    _full("llama-70b", "fsdp=32 tensor=8", 64, 4096),
    *_both("gpt2-124m", "fsdp=32", 64, 1024),
    *_both("gpt2-124m", "data=4", 16, 1024),
    *_both("gpt2-350m", "fsdp=4", 16, 1024, accumulation=2),
    *_both("gpt2-774m", "data=4 fsdp=8", 64, 1024),
    *_both("gpt2-1558m", "data=4 fsdp=8", 64, 1024, chip="A100-80"),
    *_both("llama-1b", "fsdp=8", 8, 4096),
    *_both("llama-1b", "data=2 fsdp=4", 8, 4096),
    *_both("llama-1b", "tensor=8", 4, 2048),
    *_both("llama-7b", "fsdp=32", 32, 2048),
    *_both("llama-7b", "fsdp=16 tensor=2", 16, 4096),
    *_both("llama-7b", "data=2 fsdp=16", 64, 2048, packed=True),
    *_both("llama-8b", "fsdp=32", 32, 8192),
    *_both("llama-8b", "fsdp=16 tensor=4", 16, 4096, chip="A100-80"),
    *_both("llama-8b", "fsdp=64", 64, 4096, loss_chunks=8),
    *_both("llama-13b", "fsdp=16", 16, 4096),
    *_both("llama-13b", "data=4 fsdp=16", 64, 2048, accumulation=4),
    *_both("llama-13b", "fsdp=32 tensor=8", 64, 4096),
    *_both("llama-70b", "fsdp=512", 512, 2048),
    *_both("llama-70b", "data=4 fsdp=16 tensor=8", 128, 2048, chip="A100-80"),
    *_both("llama-70b", "fsdp=128 tensor=4", 128, 4096, accumulation=2),
)

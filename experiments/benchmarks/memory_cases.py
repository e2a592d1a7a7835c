"""The steps whose memory is compiled and predicted: those that the rules were read off, and others to judge them by.

`DEVELOPMENT` are the steps that were looked at while `planners.prices.memory_phases` was written; `CALIBRATION` are two
of them for each model and policy. `JUDGED` were written down before any of them was compiled, and no program of theirs
was looked into. It was known from earlier reports, when rules were changed on 2026-11-27, that the largest errors were
those of GPT-2 under full rematerialisation with fsdp, and later that day that the worst was a step of one GPU whose
loss is in pieces; the new rules were read off development steps, of such steps too. `SMALL` are the layers of the two
compiles that calibrate the plan of one judged step.
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


def _cases(table: str) -> tuple[Case, ...]:
    """One row per step, or two of `both`: preset, mesh, microbatch x sequence, remat, and what differs from the
    default."""
    made = []
    for line in table.strip().splitlines():
        preset, mesh, microbatch, _, sequence, remat, *other = line.split()
        extras = dict(word.split("=") for word in other)
        case = Case(
            preset=preset,
            mesh=mesh.replace(",", " "),
            remat="full",
            microbatch=int(microbatch),
            sequence=int(sequence),
            accumulation=int(extras.pop("accumulation", 1)),
            loss_chunks=int(extras.pop("loss_chunks", 1)),
            packed=extras.pop("packed", "False") == "True",
            chip=extras.pop("chip", "H100"),
        )
        if extras or remat not in ("both", "full", "none"):
            raise ValueError(f"{line!r}: unknown {', '.join(extras) or remat}")
        made += [dataclasses.replace(case, remat=each) for each in ("full", "none") if remat in ("both", each)]
    return tuple(made)


SMALL = (4, 8)

CALIBRATION: tuple[Case, ...] = _cases("""
gpt2-124m   fsdp=8                      8 x 1024  both
gpt2-124m   data=8                     64 x 1024  both
gpt2-350m   data=1                      4 x 1024  both
gpt2-350m   fsdp=8                     32 x 1024  both
gpt2-774m   fsdp=8                      8 x 1024  both  accumulation=4
gpt2-774m   data=2,fsdp=4              16 x 1024  both
gpt2-1558m  fsdp=16                    32 x 1024  both
gpt2-1558m  data=8                      8 x 1024  both  loss_chunks=4 chip=A100-80
llama-1b    data=8                     16 x 2048  both
llama-1b    data=4,tensor=2             8 x 4096  both
llama-7b    fsdp=64                    64 x 4096  both
llama-7b    fsdp=8,tensor=4             8 x 2048  both
llama-8b    fsdp=256                  256 x 8192  both
llama-8b    fsdp=8,tensor=2            16 x 4096  both  loss_chunks=8
llama-13b   fsdp=64                    64 x 2048  both
llama-13b   fsdp=8,tensor=8             8 x 4096  both
llama-70b   fsdp=512                  512 x 4096  both
llama-70b   fsdp=64,tensor=8           64 x 4096  both
""")

DEVELOPMENT: tuple[Case, ...] = (
    *CALIBRATION,
    *_cases("""
gpt2-124m   data=1                      8 x 1024  both
llama-1b    data=1                      1 x 2048  both
llama-1b    fsdp=8                     32 x 2048  both  loss_chunks=8
llama-7b    fsdp=8                      8 x 2048  both
llama-7b    fsdp=8                     16 x 2048  both
llama-7b    fsdp=8                      8 x 2048  both  packed=True
llama-7b    tensor=8                    1 x 2048  both
llama-7b    data=4,fsdp=8              64 x 2048  both  accumulation=2 chip=A100-80
llama-8b    fsdp=8                      8 x 4096  both
llama-8b    fsdp=8                      8 x 4096  both  loss_chunks=8
llama-8b    fsdp=8                      8 x 4096  both  accumulation=4
llama-70b   data=2,fsdp=32,tensor=8   128 x 2048  both  accumulation=4 chip=A100-80
gpt2-124m   data=1                      8 x 1024  full  loss_chunks=4
gpt2-124m   fsdp=8                     64 x 1024  full  loss_chunks=4
gpt2-350m   data=1                      8 x 1024  full  loss_chunks=8
llama-1b    data=1                      4 x 2048  full  loss_chunks=4
"""),
    # Judged by the rules as they first were, then learned from.
    *_cases("""
gpt2-124m   fsdp=16                    16 x 1024  both
gpt2-124m   data=2,fsdp=8              32 x 1024  both
gpt2-124m   data=1                     16 x 1024  none  loss_chunks=4
gpt2-350m   fsdp=16                    16 x 1024  none
gpt2-350m   data=2,fsdp=8              32 x 1024  both
gpt2-350m   data=4,fsdp=4              64 x 1024  none
gpt2-774m   fsdp=16                    16 x 1024  none
gpt2-774m   data=2,fsdp=8              32 x 1024  both
gpt2-774m   data=8                     32 x 1024  none  chip=A100-80
gpt2-1558m  data=2,fsdp=8              32 x 1024  both
gpt2-1558m  fsdp=8                     16 x 1024  full  accumulation=2
llama-1b    fsdp=16                    16 x 2048  none
llama-1b    data=2,fsdp=8              32 x 2048  both
llama-1b    fsdp=4,tensor=2             8 x 4096  both
llama-7b    data=2,fsdp=8              32 x 2048  none
llama-7b    fsdp=16                    16 x 4096  both  accumulation=4
llama-7b    tensor=4                    2 x 2048  both
llama-8b    fsdp=16                    16 x 4096  full
llama-8b    data=2,fsdp=8              32 x 4096  full
llama-8b    data=2,fsdp=8              16 x 8192  none  loss_chunks=16
llama-8b    fsdp=64,tensor=8           64 x 8192  both
llama-13b   fsdp=32                    32 x 2048  both
llama-13b   data=2,fsdp=8              32 x 2048  full
llama-13b   fsdp=16,tensor=4           32 x 2048  none  packed=True
llama-70b   fsdp=256                  256 x 4096  both
llama-70b   fsdp=32,tensor=8           64 x 4096  none
llama-70b   fsdp=64,tensor=8          128 x 4096  both  accumulation=2
"""),
)

JUDGED: tuple[Case, ...] = _cases("""
gpt2-124m   data=1                     16 x 1024  full  loss_chunks=4
gpt2-350m   fsdp=16                    16 x 1024  full
gpt2-350m   data=4,fsdp=4              64 x 1024  full
gpt2-774m   fsdp=16                    16 x 1024  full
gpt2-774m   data=8                     32 x 1024  full  chip=A100-80
gpt2-1558m  fsdp=16                    16 x 1024  both
gpt2-1558m  fsdp=8                     16 x 1024  none  accumulation=2
llama-1b    fsdp=16                    16 x 2048  full
llama-1b    data=16                    16 x 2048  both  packed=True
llama-7b    fsdp=16                    16 x 2048  both
llama-7b    data=2,fsdp=8              32 x 2048  full
llama-8b    fsdp=16                    16 x 4096  none
llama-8b    data=2,fsdp=8              32 x 4096  none
llama-8b    data=2,fsdp=8              16 x 8192  full  loss_chunks=16
llama-13b   data=2,fsdp=8              32 x 2048  none
llama-13b   fsdp=16,tensor=4           32 x 2048  full  packed=True
llama-70b   fsdp=32,tensor=8           64 x 4096  full
gpt2-124m   fsdp=32                    64 x 1024  both
gpt2-124m   data=4                     16 x 1024  both
gpt2-350m   fsdp=4                     16 x 1024  both  accumulation=2
gpt2-774m   data=4,fsdp=8              64 x 1024  both
gpt2-1558m  data=4,fsdp=8              64 x 1024  both  chip=A100-80
llama-1b    fsdp=8                      8 x 4096  both
llama-1b    data=2,fsdp=4               8 x 4096  both
llama-1b    tensor=8                    4 x 2048  both
llama-7b    fsdp=32                    32 x 2048  both
llama-7b    fsdp=16,tensor=2           16 x 4096  both
llama-7b    data=2,fsdp=16             64 x 2048  both  packed=True
llama-8b    fsdp=32                    32 x 8192  both
llama-8b    fsdp=16,tensor=4           16 x 4096  both  chip=A100-80
llama-8b    fsdp=64                    64 x 4096  both  loss_chunks=8
llama-13b   fsdp=16                    16 x 4096  both
llama-13b   data=4,fsdp=16             64 x 2048  both  accumulation=4
llama-13b   fsdp=32,tensor=8           64 x 4096  both
llama-70b   fsdp=512                  512 x 2048  both
llama-70b   data=4,fsdp=16,tensor=8   128 x 2048  both  chip=A100-80
llama-70b   fsdp=128,tensor=4         128 x 4096  both  accumulation=2
""")

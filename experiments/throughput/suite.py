"""The models whose training step is timed beside a torch twin: shapes, tokens per step, how much fits at once.

A to E are the suite of single-GPU steps; `nano` and `small` run on a CPU; `tiny` proves that a benchmark runs at all.
"""

import dataclasses
from typing import Any

from jaxlm.config import Run
from jaxlm.decode import ConfigError, decode
from jaxlm.model.config import PRESETS

PEAK = 989.5e12
"""FLOP/s of an H100 or H200 SXM, dense bfloat16 (not the 1,979 of sparse matrices), by NVIDIA's data sheet."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One training step.

    Attributes:
        name: how it is called on the command line.
        model: overrides of `jaxlm.model.config.ModelConfig`, its preset among them.
        sequence: tokens of a row.
        rows: rows of a step, on one device.
        microbatch: rows that the torch twin holds at once; ours is the planner's choice.
        clip: largest norm of the gradient; 0: none, and the twin applies each gradient as soon as it is there, because
            all of them beside weights and moments fit on no card.
        checkpoint: whether the twin recomputes its blocks in the backward pass.
        alone: whether only one side fits on the card, so that they take turns in fresh processes.
        parity_layers: layers of the model whose loss is compared first; 0: all of them.
        memory: share of the card that our plan may use; where both sides stay on it, they share it.
        target: the least ratio of our tokens/s to the twin's that is asked for; 0: none.
        mfu: the least share of the card's data-sheet FLOP/s that is asked for, attention not halved; 0: none.
    """

    name: str
    model: dict[str, Any]
    sequence: int
    rows: int
    microbatch: int
    clip: float = 1.0
    checkpoint: bool = False
    alone: bool = False
    parity_layers: int = 0
    memory: float = 0.9
    target: float = 1.10
    mfu: float = 0.0

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.rows * self.sequence

    def run(self, *, layers: int = 0, first_moment: str = "float32") -> Run:
        """The configuration of our side. `layers` other than 0 replaces the model's."""
        model = self.model | ({"layers": layers} if layers else {})
        return decode(
            {
                "name": self.name,
                "data": {"sequence": self.sequence, "mode": "truncate", "path": "random tokens"},
                "model": model,
                "optim": {
                    "kind": "adamw",
                    "lr": 1e-4,
                    "warmup": 0,
                    "schedule": "constant",
                    "weight_decay": 0.1,
                    "clip_norm": self.clip,
                    "first_moment": first_moment,
                },
                "plan": {"memory_fraction": self.memory},
                "train": {"steps": 1000, "batch": self.rows},
                "governance": {"enabled": False},
            },
            Run,
        )


def _entry(name: str, preset: str, sequence: int, tokens: int, microbatch: int, **other: Any) -> Entry:
    rows = tokens // sequence
    return Entry(
        name=name,
        model={"preset": preset, **PRESETS[preset]},
        sequence=sequence,
        rows=rows,
        microbatch=microbatch,
        **other,
    )


LARGE = {"clip": 0.0, "checkpoint": True, "alone": True, "parity_layers": 2}
SUITE = (
    _entry("A", "gpt2-124m", 1024, 524_288, 64, memory=0.5, mfu=0.45),
    _entry("B", "gpt2-1558m", 1024, 65_536, 16, memory=0.5, mfu=0.55, parity_layers=12),
    _entry("C", "llama-1b", 8192, 65_536, 2, memory=0.5, mfu=0.50),
    _entry("D", "llama-7b", 4096, 8_192, 2, mfu=0.55, **LARGE),
    _entry("E", "llama-8b", 8192, 8_192, 1, mfu=0.50, target=0.0, **LARGE),
)

_SMALL = {"vocab": 8192, "dtype": "float32", "tied": True}
CPU = (
    Entry(
        name="nano",
        model={"layers": 6, "embed": 320, "heads": 5, "mlp": 864, **_SMALL},
        sequence=256,
        rows=8,
        microbatch=8,
        target=1.0,
    ),
    Entry(
        name="small",
        model={"layers": 12, "embed": 512, "heads": 8, "mlp": 1408, **_SMALL},
        sequence=256,
        rows=4,
        microbatch=4,
        target=0.0,
    ),
)
"""10 and 42 million parameters."""

_TINY = {"layers": 2, "embed": 64, "heads": 2, "vocab": 500, "dtype": "float32"}
TINY = (
    Entry(
        name="tiny-gpt2",
        model={
            **_TINY,
            "mlp": 256,
            "norm": "layer",
            "position": "learned",
            "activation": "gelu",
            "tied": True,
            "bias": True,
        },
        sequence=64,
        rows=4,
        microbatch=2,
        target=0.0,
    ),
    Entry(
        name="tiny-llama",
        model={**_TINY, "kv_heads": 1, "mlp": 160, "tied": False},
        sequence=64,
        rows=2,
        microbatch=2,
        clip=0.0,
        checkpoint=True,
        alone=True,
        target=0.0,
    ),
)


def pick(entries: tuple[Entry, ...], names: str) -> list[Entry]:
    """Those of `entries` that `names` lists, apart by commas; all of them where it is empty. Raises ConfigError for a
    name that none has."""
    known = {entry.name: entry for entry in entries}
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(known)
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(f"entries: no such entry: {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in wanted]

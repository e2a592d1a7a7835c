"""What the compiler hands back for one plan: plain data, whoever compiled it and wherever."""

from dataclasses import dataclass, field
from typing import Protocol

from planners.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """The training step of one plan, compiled for one device of its target.

    Attributes:
        target: what it was compiled for, in words: `64 x H100`.
        arguments: bytes of the state and the batch on one device.
        outputs: bytes of what the step returns.
        aliased: bytes of outputs that take the place of arguments.
        temporaries: bytes that live only during the step.
        constants: bytes of the program and its constants, as far as the compiler tells.
        peak: the compiler's own peak, where it tells one; it may leave out what loops work with.
        hlo: the scheduled program.
        warnings: what the compiler complained of, one sentence each.
        kernel: the attention kernel that the plan was made with.
        seconds: that compilation took.
        versions: of the packages that made it, by name.
    """

    target: str
    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    constants: int = 0
    peak: int | None = None
    hlo: str = ""
    warnings: tuple[str, ...] = ()
    kernel: str = "xla"
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def memory(self) -> dict[str, float]:
        """Bytes per device by part, as the buffer assignment adds them up: arguments + temporaries + new outputs."""
        parts = {
            "arguments": self.arguments,
            "temporaries": self.temporaries,
            "outputs": self.outputs - self.aliased,
            "constants": self.constants,
        }
        return {name: float(size) for name, size in parts.items() if size}

    @property
    def memory_bytes(self) -> float:
        return sum(self.memory.values())


class CompileError(RuntimeError):
    """A plan could not be compiled; the message says why, in the compiler's words where it gave some."""

    fatal = False
    """Whether other plans would fare no better."""


class TooSlow(CompileError):
    """The time that a compilation is given is up."""

    fatal = True


class OutOfMemory(CompileError):
    """The compiler itself refuses the program for want of memory."""


class Compiles(Protocol):
    """Compiles the training step of a plan for the machine it is meant for. Raises CompileError."""

    def __call__(self, plan: Plan, /) -> Compiled: ...

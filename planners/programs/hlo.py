"""Reads the collectives out of the text of a compiled program: what is sent, how often, and beside which work.

The text is the scheduled HLO that `jax.stages.Compiled.as_text()` gives for CPU and GPU targets; its grammar is that of
https://openxla.org/xla/operation_semantics and of xla/hlo/parser. Nothing here needs jax.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
"""Operations that move bytes between devices."""

Beside: TypeAlias = Literal["matrix products", "other work", "nothing"]
"""The heaviest work scheduled between the start of a collective and the wait for it."""

WIDTHS = {
    "pred": 1.0,
    "s4": 0.5,
    "u4": 0.5,
    "s2": 0.25,
    "u2": 0.25,
    "token": 0.0,
    "opaque": 0.0,
    "c64": 8.0,
    "c128": 16.0,
}
"""Bytes per element of the types whose names do not say their bits; f8e4m3fn, bf16, s32, ... do."""

ARRAY = re.compile(r"\b(pred|token|opaque|bf16|[sufc]\d+\w*)\[([\d,<=]*)\]")
HEADER = re.compile(r"^(ENTRY\s+)?%?([\w.$-]+)\s+\(.*\{\s*$")
NAMED = re.compile(r"^\s+(?:ROOT\s+)?%?([\w.$-]+) = ")
CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.$-]+)")
BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'"known_trip_count":\s*\{\s*"n":\s*"(\d+)"')
PRODUCT = re.compile(r'custom_call_target="[^"]*(?:gemm|matmul|dot|cudnn|fmha|conv|triton)[^"]*"', re.IGNORECASE)
LIGHT = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "iota"}
"""Operations that take no time on a device."""


class HloError(ValueError):
    """The text is no compiled program that this module can read; the message quotes the line."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of a computation: `name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    operands: str
    attributes: str

    @property
    def called(self) -> tuple[str, ...]:
        """Computations that run when this instruction does; those that only say how to reduce are left out."""
        if self.opcode not in ("call", "while", "conditional", "fusion", "async-start", "custom-call"):
            return ()
        names = CALLED.findall(self.attributes)
        if branches := BRANCHES.search(self.attributes):
            names += [name.strip().lstrip("%") for name in branches[1].split(",")]
        return tuple(names)


@dataclass(slots=True)
class Computation:
    """Instructions in the order in which they are scheduled."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """One collective of the program.

    Attributes:
        kind: one of KINDS.
        dtype: of most of its bytes.
        size: bytes of the whole tensors on one device: what an all-gather ends with, what a reduction starts from.
        groups: the text of its replica groups, or of its source and target pairs.
        times: how often a step runs it, the trip counts of the loops around it multiplied.
        counted: False where a loop around it does not say how often it runs; it is then taken to run once.
        beside: work between its start and its end; `nothing` where it is not asynchronous.
    """

    kind: str
    dtype: str
    size: float
    groups: str
    times: int
    counted: bool = True
    beside: Beside = "nothing"


def collectives(text: str) -> list[Collective]:
    """Every collective of a compiled program, in the order in which it is met. Raises HloError."""
    entry, found = parse(text)
    heavy = _Heavy(found)
    rows: list[Collective] = []

    def walk(name: str, times: int, counted: bool, beside: Beside | None) -> None:
        if name not in found:
            raise HloError(f"computation {name!r} is called and not in the text")
        order = found[name].instructions
        for at, line in enumerate(order):
            kind = line.opcode.removesuffix("-start")
            between = heavy.beside(order, at) if line.opcode.endswith("-start") else "nothing"
            if kind in KINDS:
                rows.append(_row(kind, line, times, counted, beside or between))
                continue
            trips, known = 1, True
            if line.opcode == "while":
                said = TRIPS.search(line.attributes)
                trips, known = (int(said[1]), True) if said else (1, False)
            inner = between if line.opcode == "async-start" else beside
            for other in line.called:
                walk(other, times * trips, counted and known, inner)

    walk(entry, 1, True, None)
    return rows


def parse(text: str) -> tuple[str, dict[str, Computation]]:
    """The name of the entry computation, and every computation by name. Raises HloError."""
    entry, current = "", None
    found: dict[str, Computation] = {}
    for line in text.split("\n"):
        if header := HEADER.match(line):
            current = found[header[2]] = Computation(header[2])
            entry = header[2] if header[1] else entry
        elif current is not None and (named := NAMED.match(line)):
            current.instructions.append(_instruction(named[1], line[named.end() :]))
    if not entry:
        raise HloError(f"no ENTRY computation in a text that begins {text[:60]!r}")
    return entry, found


def _instruction(name: str, rest: str) -> Instruction:
    end = _closing(rest, 0) if rest.startswith("(") else rest.find(" ") - 1
    shape, rest = rest[: end + 1], rest[end + 1 :].lstrip()
    opening = rest.find("(")
    if opening < 1:
        raise HloError(f"no operation in the line of {name!r}: {rest[:80]!r}")
    closing = _closing(rest, opening)
    return Instruction(name, shape, rest[:opening], rest[opening + 1 : closing], rest[closing + 1 :])


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis that opens at `opening` closes."""
    depth = 0
    for bracket in re.finditer(r"[()]", text[opening:]):
        depth += 1 if bracket[0] == "(" else -1
        if not depth:
            return opening + bracket.start()
    raise HloError(f"a parenthesis does not close: {text[opening : opening + 80]!r}")


def parts(shape: str) -> list[str]:
    """The elements of a tuple's shape; an array is its own only element."""
    if not shape.startswith("("):
        return [shape]
    depth, start, found = 0, 1, []
    for at, letter in enumerate(shape):
        depth += letter in "([{"
        depth -= letter in ")]}"
        if (letter == "," and depth == 1) or depth == 0:
            found.append(shape[start:at])
            start = at + 1
    return [re.sub(r"/\*.*?\*/", "", part).strip() for part in found if part.strip()]


def arrays(shape: str) -> Iterator[tuple[str, float]]:
    """(dtype, bytes) of each array in a shape."""
    for dtype, dims in ARRAY.findall(shape):
        elements = 1
        for dim in dims.split(","):
            elements *= int(dim.lstrip("<=")) if dim else 1
        yield dtype, elements * _width(dtype)


def _width(dtype: str) -> float:
    if dtype in WIDTHS:
        return WIDTHS[dtype]
    bits = re.match(r"[a-z]+(\d+)", dtype)
    if bits is None:
        raise HloError(f"the width of type {dtype!r} is unknown")
    return int(bits[1]) / 8


def size(shape: str) -> float:
    """Bytes of a shape, its tuples added up."""
    return sum(amount for _, amount in arrays(shape))


GROUPS = re.compile(
    r"\b(?:replica_groups|source_target_pairs)="
    r"(mesh\[[^\]]*\](?:, device_ids=\([^)]*(?:\)[^)]*)?\))? ?\{[^}]*\}"
    r"|\{(?:\{[\d,\s]*\},?\s*)*\}"
    r"|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)"
)


def _row(kind: str, line: Instruction, times: int, counted: bool, beside: Beside) -> Collective:
    groups = GROUPS.search(line.attributes)
    if groups is None:
        raise HloError(f"the replica groups of {line.name!r} cannot be read: {line.attributes[:160]!r}")
    shape = line.shape
    if line.opcode.endswith("-start") and shape.startswith("("):
        # What was given and what comes back, then for a permutation two numbers that are no data.
        given, *back = parts(shape)
        shape = {"all-reduce": shape, "reduce-scatter": given}.get(kind, back[0] if back else given)
    whole = size(shape)
    if kind == "reduce-scatter" and line.opcode == kind:
        whole *= members(groups[1])
    sizes: dict[str, float] = {}
    for dtype, amount in arrays(shape):
        sizes[dtype] = sizes.get(dtype, 0.0) + amount
    dtype = max(sizes, key=lambda name: sizes[name], default="")
    return Collective(
        kind=kind,
        dtype=dtype,
        size=whole,
        groups=groups[1],
        times=times,
        counted=counted,
        beside="nothing" if '"is_sync":true' in line.attributes else beside,
    )


def members(groups: str) -> int:
    """Devices of one group, from the text of the groups, without listing them."""
    if groups.startswith("mesh"):
        sizes = dict(re.findall(r"'?([\w.]+)'?=(\d+)", groups[: groups.index("]")]))
        count = 1
        for axis, part in re.findall(r"'?([A-Za-z_][\w.]*)'?(?::\(\d+\)(\d+))?", groups[groups.rindex("{") :]):
            count *= int(part or sizes[axis])
        return count
    if groups.startswith("["):
        return int(groups[1 : groups.index("]")].split(",")[-1])
    first = re.search(r"\{([\d,\s]+)\}", groups)
    return len(first[1].split(",")) if first else 1


class _Heavy:
    """Which instructions hold matrix products, asked of each computation once."""

    def __init__(self, found: dict[str, Computation]):
        self.found = found
        self.known: dict[str, bool] = {}

    def beside(self, order: list[Instruction], start: int) -> Beside:
        """The heaviest work between a start and its done; across the end of the computation counts as nothing."""
        name, opcode = order[start].name, order[start].opcode
        ends = {opcode.replace("-start", "-done"), "async-done"}
        reference = re.compile(rf"%?{re.escape(name)}(?![\w.$-])")
        heaviest: Beside = "nothing"
        for line in order[start + 1 :]:
            if line.opcode in ends and reference.search(line.operands):
                return heaviest
            if self.product(line):
                heaviest = "matrix products"
            elif heaviest == "nothing" and line.opcode in ("fusion", "while", "call", "custom-call", "conditional"):
                heaviest = "other work"
        return "nothing"

    def product(self, line: Instruction) -> bool:
        """Whether the instruction multiplies matrices, itself or in what it calls."""
        if line.opcode in ("dot", "convolution"):
            return True
        if line.opcode == "custom-call" and PRODUCT.search(line.attributes):
            return True
        return any(self._any(name) for name in line.called)

    def _any(self, name: str) -> bool:
        if name not in self.known:
            self.known[name] = False
            self.known[name] = any(self.product(line) for line in self.found[name].instructions)
        return self.known[name]

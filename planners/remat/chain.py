"""The fastest way through a chain of unequal blocks within a budget: rotor's dynamic program, for short chains.

Beaumont, Eyraud-Dubois, Herrmann, Joly and Shilova (ACM TOMS 2024, hal-02352969): a block is passed forwards keeping
all its values, or only its input, or nothing; what was dropped is run again from the last input kept, and then the
choice is open once more. Best among the schedules that keep what they stored until it is used ("persistent"); the
general problem is NP-hard. More than `dynamic`, it may recompute a block several times and choose anew each time;
less, it knows one way only of keeping a block.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from planners.plan import PlanError


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One block of a chain.

    Attributes:
        forward: seconds of its forward pass.
        output: bytes of its output, and of the gradient of that.
        values: bytes of everything that its backward pass reads, its output among them, its input not.
        working: bytes that its forward or its backward pass needs besides.
    """

    forward: float
    output: float
    values: float
    working: float = 0.0


class Step(NamedTuple):
    """One operation: forwards keeping everything (`all`), forwards keeping the input (`input`), forwards keeping
    nothing (`pass`), or backwards."""

    what: Literal["all", "input", "pass", "back"]
    block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """`seconds` are those of the forward passes beyond the first of each block."""

    seconds: float
    steps: tuple[Step, ...]


def solve(blocks: Sequence[Block], budget: float) -> Schedule:
    """The schedule of the fewest extra seconds. `budget`: bytes, the input of the chain not counted.

    Raises PlanError when the chain cannot be run within it.
    """
    chain = tuple(blocks)

    @functools.cache
    def best(first: int, last: int, room: float) -> tuple[float, int]:
        """Seconds of forward passes for blocks first..last, whose input is held and whose output's gradient needs room;
        and how: `last + 1` keeps everything of the first block, otherwise the input of that block is kept next."""
        block, gradient = chain[first], chain[last].output
        if first == last:
            enough = room >= block.output + block.values + block.working
            return (block.forward if enough else math.inf), last + 1
        found, how = math.inf, last + 1
        if room >= block.output + block.values + block.working:
            found = block.forward + best(first + 1, last, room - block.values)[0]
        passed, passing = 0.0, gradient + block.output + block.working
        for after in range(first + 1, last + 1):
            if room < passing:
                break
            passed += chain[after - 1].forward
            held = room - chain[after - 1].output
            seconds = passed + best(after, last, held)[0] + best(first, after - 1, room)[0]
            if seconds < found:
                found, how = seconds, after
            passing = max(passing, gradient + chain[after - 1].output + chain[after].output + chain[after].working)
        return found, how

    def told(first: int, last: int, room: float) -> list[Step]:
        after = best(first, last, room)[1]
        if after > last:
            rest = told(first + 1, last, room - chain[first].values) if first < last else []
            return [Step("all", first), *rest, Step("back", first)]
        passing = [Step("input", first), *(Step("pass", k) for k in range(first + 1, after))]
        return [*passing, *told(after, last, room - chain[after - 1].output), *told(first, after - 1, room)]

    seconds = best(0, len(chain) - 1, budget)[0]
    if math.isinf(seconds):
        raise PlanError(f"remat: a chain of {len(chain)} blocks does not fit in {budget:,.0f} bytes; give it more")
    return Schedule(
        seconds=seconds - sum(block.forward for block in chain),
        steps=tuple(told(0, len(chain) - 1, budget)),
    )

"""Pipeline schedules: forward and backward passes of microbatches over stages, and the order each device runs them in.

GPipe (arXiv:1811.06965) runs all forward passes, then all backward passes. 1F1B (PipeDream-Flush, arXiv:2006.09503)
takes turns, so a device holds few microbatches. The interleaved form (arXiv:2104.04473) gives each device several
chunks of layers that are not neighbours. The zero-bubble form (ZB-H1, arXiv:2401.10241) splits the backward pass into
the gradient of the input, which others wait for, and that of the weights, which fills the gaps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias, get_args

from planners.schedules.dag import Graph, Operation, Order
from planners.schedules.durations import Duration

Pipeline: TypeAlias = Literal["gpipe", "1f1b", "interleaved", "zero_bubble"]
PIPELINES: tuple[Pipeline, ...] = get_args(Pipeline)


@dataclass(frozen=True)
class Shape:
    """A pipeline to be ordered.

    Chunk k of `stages * virtual` runs on device k modulo `stages`. Kinds of its operations: `forward/k`, `backward/k`
    (zero-bubble: `input/k` and `weight/k`), `send/k` from chunk k to k + 1 and `return/k` from k + 1 to k.

    Attributes:
        pipeline: which schedule.
        stages: devices in a row.
        microbatches: that flow through them in one step.
        virtual: chunks of each device.
        tail: kinds that each device runs after its last backward pass, e.g. `reduce` and `update`; device i's are
            called `reduce/i` and `update/i`.
    """

    pipeline: Pipeline
    stages: int
    microbatches: int
    virtual: int = 1
    tail: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pipeline not in PIPELINES:
            raise ValueError(f"unknown pipeline {self.pipeline!r}; known: {', '.join(PIPELINES)}")
        if self.stages < 1 or self.microbatches < 1 or self.virtual < 1:
            raise ValueError("stages, microbatches and virtual must be at least 1")
        if self.virtual > 1 and self.pipeline != "interleaved":
            raise ValueError(f"{self.pipeline} holds one chunk per device, not {self.virtual}; use interleaved")
        if self.pipeline == "interleaved" and self.microbatches % self.stages:
            raise ValueError(
                f"interleaved takes microbatches in groups of {self.stages} stages, "
                f"{self.microbatches} is no multiple of that"
            )

    @property
    def chunks(self) -> int:
        return self.stages * self.virtual

    @cached_property
    def graph(self) -> Graph:
        return Graph(tuple(self._operations()))

    def _operations(self) -> Iterator[Operation]:
        last, split = self.chunks - 1, self.pipeline == "zero_bubble"
        back = "input" if split else "backward"
        for j in range(self.microbatches):
            for k in range(self.chunks):
                device = (f"device {k % self.stages}",)
                before = [f"send/{k - 1}.{j}" if self._crosses(k - 1) else f"forward/{k - 1}.{j}"] if k else []
                yield Operation(f"forward/{k}.{j}", f"forward/{k}", device, tuple(before))
                if k < last and self._crosses(k):
                    yield Operation(f"send/{k}.{j}", f"send/{k}", (self._link(k),), (f"forward/{k}.{j}",))
                    yield Operation(
                        f"return/{k}.{j}", f"return/{k}", (self._link(k) + " back",), (f"{back}/{k + 1}.{j}",)
                    )
                before = [f"forward/{k}.{j}"]
                if k < last:
                    before.append(f"return/{k}.{j}" if self._crosses(k) else f"{back}/{k + 1}.{j}")
                yield Operation(f"{back}/{k}.{j}", f"{back}/{k}", device, tuple(before))
                if split:
                    yield Operation(f"weight/{k}.{j}", f"weight/{k}", device, (f"input/{k}.{j}",))
        finish = "weight" if split else "backward"
        for i in range(self.stages):
            mine = range(i, self.chunks, self.stages)
            after = tuple(f"{finish}/{k}.{j}" for k in mine for j in range(self.microbatches))
            for kind in self.tail:
                yield Operation(f"{kind}/{i}", f"{kind}/{i}", (f"device {i}",), after)
                after = (f"{kind}/{i}",)

    def _crosses(self, chunk: int) -> bool:
        """Whether the next chunk is on another device."""
        return self.stages > 1 and chunk >= 0

    def _link(self, chunk: int) -> str:
        return f"link {chunk % self.stages} to {(chunk + 1) % self.stages}"

    def turns(self, device: int) -> list[tuple[str, int, int]]:
        """(pass, chunk, microbatch) of one device, first to last."""
        m, p, v = self.microbatches, self.stages, self.virtual
        if self.pipeline == "gpipe":
            forward = [("forward", device, j) for j in range(m)]
            return forward + [("backward", device, j) for j in range(m)]
        total = m * v
        if v == 1:
            warmup = min(p - device - 1, m)
        elif m == p:
            warmup = total
        else:
            warmup = min(2 * (p - device - 1) + (v - 1) * p, total)
        forward = [("forward", *self._turn(n, device, False)) for n in range(total)]
        backward = [("backward", *self._turn(n, device, True)) for n in range(total)]
        if self.pipeline == "zero_bubble":
            return [*forward[:warmup], *self._split(forward[warmup:], device)]
        steady = [turn for pair in zip(forward[warmup:], backward, strict=False) for turn in pair]
        return forward[:warmup] + steady + backward[total - warmup :]

    def _split(self, forward: Sequence[tuple[str, int, int]], device: int) -> Iterator[tuple[str, int, int]]:
        """1F1B whose device i puts the weight gradients off by i microbatches, so that all hold `stages` at most."""
        for j in range(self.microbatches):
            yield from forward[j : j + 1]
            yield "input", device, j
            if j >= device:
                yield "weight", device, j - device
        for j in range(max(self.microbatches - device, 0), self.microbatches):
            yield "weight", device, j

    def _turn(self, number: int, device: int, backward: bool) -> tuple[int, int]:
        """Chunk and microbatch of a device's n-th pass: p microbatches of one chunk, then p of its next chunk."""
        p, v = self.stages, self.virtual
        if v == 1:
            return device, number
        group, inside = divmod(number, p * v)
        local = inside // p
        if backward:
            local = v - 1 - local
        return local * p + device, group * p + inside % p

    def order(self) -> Order:
        """The order of every device; of every link that in which messages are made."""
        order: dict[str, list[str]] = {resource: [] for resource in self.graph.resources}
        for i in range(self.stages):
            for what, k, j in self.turns(i):
                order[f"device {i}"].append(f"{what}/{k}.{j}")
                message = {"forward": f"send/{k}.{j}", "weight": ""}.get(what, f"return/{k - 1}.{j}")
                if message in self.graph.index:
                    order[self.graph.operations[self.graph.index[message]].where[0]].append(message)
            order[f"device {i}"] += [f"{kind}/{i}" for kind in self.tail]
        return order

    def in_flight(self, order: Order) -> list[int]:
        """The most activations that each device holds at once, in microbatches of one chunk."""
        peaks = []
        ends = "weight/" if self.pipeline == "zero_bubble" else "backward/"
        for i in range(self.stages):
            held = peak = 0
            for name in order[f"device {i}"]:
                held += name.startswith("forward/") - name.startswith(ends)
                peak = max(peak, held)
            peaks.append(peak)
        return peaks


def stage_durations(
    shape: Shape,
    forward: Sequence[Duration],
    backward: Sequence[Duration],
    *,
    send: Duration = Duration(0.0),
    tail: Sequence[Duration] = (),
    weight_share: float = 0.5,
) -> dict[str, Duration]:
    """Durations of every kind of a pipeline.

    Args:
        forward: of each chunk, first to last (one entry: of all).
        backward: likewise.
        send: one message between neighbours, either way.
        tail: of each of `shape.tail`, on every device.
        weight_share: part of the backward pass that is the gradient of the weights: one of two matrix products.
    """
    spread = lambda given: list(given) * shape.chunks if len(given) == 1 else list(given)
    ahead, back = spread(forward), spread(backward)
    if len(ahead) != shape.chunks or len(back) != shape.chunks:
        raise ValueError(f"{shape.chunks} chunks need as many durations, not {len(forward)} and {len(backward)}")
    found: dict[str, Duration] = {}
    for k in range(shape.chunks):
        found |= {f"forward/{k}": ahead[k], f"backward/{k}": back[k], f"send/{k}": send, f"return/{k}": send}
        found |= {f"input/{k}": back[k].scaled(1 - weight_share), f"weight/{k}": back[k].scaled(weight_share)}
    for i in range(shape.stages):
        found |= {f"{kind}/{i}": seconds for kind, seconds in zip(shape.tail, tail, strict=True)}
    return found

"""One step of data parallelism: passes over the layers, gradients in buckets, and when each bucket is summed.

Many small buckets start early but each pays a latency (40 to 75 us on A100, planners.md 3.5); one large bucket pays it
once and hides behind nothing. Summing once per step moves the fewest bytes; summing after every microbatch spreads
them over the step.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias, get_args

from planners.schedules.dag import Graph, Operation, Order

BucketOrder: TypeAlias = Literal["reverse", "forward", "size"]
BUCKET_ORDERS: tuple[BucketOrder, ...] = get_args(BucketOrder)
NETWORK = "network"


def buckets(layers: Sequence[int], limit: int, order: BucketOrder) -> tuple[tuple[int, ...], ...]:
    """Positions of the layers in each bucket, in the order in which the buckets are sent.

    Args:
        layers: bytes of the gradient of each layer, first to last.
        limit: a bucket is closed when it holds this many bytes; 0 makes one bucket per layer.
        order: `reverse`: last layer first, as gradients are made. `forward`: first layer first, as the next step
            needs them. `size`: buckets made in reverse, largest first.
    """
    walk = range(len(layers)) if order == "forward" else range(len(layers) - 1, -1, -1)
    found: list[tuple[int, ...]] = []
    held: list[int] = []
    for layer in walk:
        held.append(layer)
        if sum(layers[i] for i in held) >= limit:
            found.append(tuple(held))
            held = []
    if held:
        found.append(tuple(held))
    if order == "size":
        found.sort(key=lambda bucket: -sum(layers[i] for i in bucket))
    return tuple(found)


@dataclass(frozen=True)
class Replicas:
    """A data-parallel step on equal shares of the batch.

    Kinds of its operations: `forward/l` and `backward/l` of layer l, `launch` (seconds in which a device starts a
    collective and does nothing else), `all_reduce/BYTES` and `update`.

    Attributes:
        devices: replicas; a collective waits for the slowest.
        layers: bytes of the gradient of each layer, first to last.
        accumulation: microbatches of one step.
        bucket_bytes: see `buckets`.
        bucket_order: see `buckets`.
        reduce_every: microbatches whose gradients are added up before they are summed over the replicas.
        overlap: whether collectives run beside compute. Without, they hold the devices.
    """

    devices: int
    layers: tuple[int, ...]
    accumulation: int = 1
    bucket_bytes: int = 0
    bucket_order: BucketOrder = "reverse"
    reduce_every: int = 1
    overlap: bool = True

    def __post_init__(self) -> None:
        if self.bucket_order not in BUCKET_ORDERS:
            raise ValueError(f"unknown bucket order {self.bucket_order!r}; known: {', '.join(BUCKET_ORDERS)}")
        if self.devices < 1 or not self.layers or self.accumulation < 1 or self.bucket_bytes < 0:
            raise ValueError("devices, layers and accumulation must be at least 1, bucket_bytes not negative")
        if self.reduce_every < 1 or self.accumulation % self.reduce_every:
            raise ValueError(f"reduce_every={self.reduce_every} must divide the {self.accumulation} microbatches")

    @cached_property
    def buckets(self) -> tuple[tuple[int, ...], ...]:
        return buckets(self.layers, self.bucket_bytes, self.bucket_order)

    @cached_property
    def graph(self) -> Graph:
        return Graph(tuple(self._operations()))

    @cached_property
    def order(self) -> Order:
        """As listed: every device goes through its microbatches, and launches a bucket where it is complete."""
        return {resource: tuple(names) for resource, names in self.graph.resources.items()}

    def sizes(self) -> list[int]:
        """Bytes of each bucket, in the order sent."""
        return [sum(self.layers[i] for i in bucket) for bucket in self.buckets]

    def _operations(self) -> Iterator[Operation]:
        devices = [f"device {d}" for d in range(self.devices)]
        depth = range(len(self.layers))
        last: dict[str, tuple[str, ...]] = {device: () for device in devices}
        reductions: list[str] = []

        def run(kind: str, microbatch: int, device: str) -> Operation:
            made = Operation(f"{kind}.{microbatch}@{device}", kind, (device,), last[device])
            last[device] = (made.name,)
            return made

        for a in range(self.accumulation):
            yield from (run(f"forward/{layer}", a, device) for device in devices for layer in depth)
            made: set[int] = set()
            sent = 0
            for layer in reversed(depth):
                yield from (run(f"backward/{layer}", a, device) for device in devices)
                made.add(layer)
                # Buckets go out in their order, so one that is complete early waits for those before it.
                while (a + 1) % self.reduce_every == 0 and sent < len(self.buckets) and made >= {*self.buckets[sent]}:
                    reductions.append(f"all_reduce/{sent}.{a}")
                    yield from self._reduction(sent, a, last)
                    sent += 1
        yield from (Operation(f"update@{d}", "update", (d,), (*last[d], *reductions)) for d in devices)

    def _reduction(self, bucket: int, microbatch: int, after: Mapping[str, tuple[str, ...]]) -> Iterator[Operation]:
        launches = [Operation(f"launch/{bucket}.{microbatch}@{d}", "launch", (d,), names) for d, names in after.items()]
        yield from launches
        where = (NETWORK,) if self.overlap else (NETWORK, *after)
        kind = f"all_reduce/{self.sizes()[bucket]}"
        yield Operation(f"all_reduce/{bucket}.{microbatch}", kind, where, tuple(op.name for op in launches))

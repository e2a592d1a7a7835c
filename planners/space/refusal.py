"""Says why no plan fits, with the memory of the least hungry one, and which smallest change would fit."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from planners.explain import gib, memory_table
from planners.layout import ways
from planners.machines.topology import Cluster, Link
from planners.plan import BATCH_AXES, PlanError, Tensor, Workload
from planners.prices.assumptions import Assumptions
from planners.space.choices import Choice, Choices, priced_choices, summarise
from planners.wishes import Search


def refusal(
    workload: Workload,
    cluster: Cluster,
    search: Search,
    assumptions: Assumptions,
    choices: Choices,
    axes: Sequence[str],
) -> str:
    """Why none of the choices fits: the memory of the least hungry one, and what would fit."""
    least = choices[np.lexsort([choices.prices.step_seconds, choices.prices.memory_bytes])[0]]
    need, memory = least.predicted.memory_bytes, cluster.device.memory
    lines = [
        f"{workload.name} does not fit on {cluster.describe()}: the least hungry plan is predicted to need "
        f"{gib(need)} per device and may use {gib(memory * search.fraction(memory))}.",
        f"That plan: {summarise(least, workload)}",
        "",
        memory_table(least.predicted.memory, memory, search.fraction(memory)),
        "",
    ]
    remedies = _remedies(workload, cluster, search, assumptions, least, axes)
    lines += ["What would fit:", *(f"  - {line}" for line in remedies)] if remedies else ["Nothing tried would fit."]
    return "\n".join(lines)


def _remedies(
    workload: Workload,
    cluster: Cluster,
    search: Search,
    assumptions: Assumptions,
    least: Choice,
    axes: Sequence[str],
) -> list[str]:
    """The smallest single changes after which a plan fits, each tried; and what cannot help any more."""

    def fits(work: Workload = workload, machines: Cluster = cluster, wish: Search = search) -> bool:
        try:
            return bool(priced_choices(work, machines, wish, assumptions, axes).fits.any())
        except PlanError:
            return False

    def halvings(number: int, smallest: int = 1) -> Iterator[int]:
        while number % 2 == 0 and number // 2 >= smallest:
            number //= 2
            yield number

    found: list[str] = []
    freed: list[tuple[str, Search]] = []
    if search.mesh:
        fixed = " ".join(f"{axis}={size}" for axis, size in search.mesh.items())
        freed.append((f"plan.mesh ({fixed}) left to the planner", dataclasses.replace(search, mesh={})))
    if search.microbatch:
        freed.append(
            (
                f"plan.microbatch={search.microbatch} left to the planner",
                dataclasses.replace(search, microbatch=None),
            )
        )
    if search.remat not in ("auto", "dp", "full"):
        freed.append((f"plan.remat=auto instead of {search.remat}", dataclasses.replace(search, remat="auto")))
    if search.loss_chunks:
        freed.append(
            (
                f"plan.loss_chunks={search.loss_chunks} left to the planner",
                dataclasses.replace(search, loss_chunks=0),
            )
        )
    if search.shard_optimizer is False:
        freed.append(
            (
                "plan.shard_optimizer left to the planner",
                dataclasses.replace(search, shard_optimizer=None),
            )
        )
    found += [text for text, wish in freed if fits(wish=wish)]

    share = least.predicted.memory_bytes / cluster.device.memory
    if search.memory_budget is not None:
        found.append(
            f"plan.memory_budget={-(-least.predicted.memory_bytes // 2**20):.0f}MiB instead of {search.memory_budget}"
        )
    elif search.memory_fraction < share <= 0.97:
        up = -(-int(share * 1000) // 10) / 100 + 0.01
        found.append(f"plan.memory_fraction={min(up, 1.0):.2f} instead of {search.memory_fraction:g} (less margin)")

    def first(label: Callable[[int], str], values: Iterator[int], test: Callable[[int], bool]) -> None:
        value = next((value for value in values if test(value)), None)
        if value is not None:
            found.append(label(value))

    if not cluster.shared and not cluster.unequal:
        more = (cluster.count * 2**power for power in range(1, 8))
        first(
            lambda count: f"{count} devices of this kind instead of {cluster.count}",
            more,
            lambda count: fits(machines=_enlarged(cluster, count)),
        )
    first(
        lambda length: f"sequences of {length} tokens instead of {workload.sequence}",
        halvings(workload.sequence, 64),
        lambda length: fits(work=shortened(workload, length)),
    )
    first(
        lambda batch: f"a batch of {batch} sequences instead of {workload.batch}",
        halvings(workload.batch),
        lambda batch: fits(work=dataclasses.replace(workload, batch=batch)),
    )
    if found and least.microbatch == ways(BATCH_AXES, least.mesh):
        found.append("(a smaller microbatch cannot help: it is already 1 sequence per replica)")
    return found


def _enlarged(cluster: Cluster, count: int) -> Cluster:
    """The same machines, more of them; the outermost tier joins them all."""
    nominal = Link(name="unknown link", devices=count, bandwidth=2.0e10)
    return dataclasses.replace(cluster, count=count, tiers=cluster.tiers or (nominal,))


def shortened(workload: Workload, sequence: int) -> Workload:
    """The same work on shorter sequences: activation dimensions as long as the sequence shrink with it."""
    lengths = {workload.sequence} - {workload.carry.shape[-1]}

    def cut(tensor: Tensor) -> Tensor:
        shape = tuple(
            sequence if name == "length" or (name is None and dim in lengths) else dim
            for name, dim in zip(tensor.axes, tensor.shape, strict=True)
        )
        return dataclasses.replace(tensor, shape=shape)

    return dataclasses.replace(
        workload,
        sequence=sequence,
        activations=tuple(map(cut, workload.activations)),
        carry=cut(workload.carry),
        logits=cut(workload.logits),
        attention_flops=workload.attention_flops * sequence / workload.sequence,
    )

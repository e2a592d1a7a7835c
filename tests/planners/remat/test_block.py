"""Inside a block: the sets of values worth keeping, against a slow reading of what must run again."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planners.plan import Operation, PlanError, Tensor, Workload
from planners.remat import block_program, host
from planners.remat.block import Block
from planners.remat.host import Host
from tests.planners.workloads import llama

PLAIN = llama("plain", layers=2, embed=64, heads=4, mlp=128, vocab=256, batch=2, sequence=16)


def value(name: str, size: int) -> Tensor:
    return Tensor(name=name, shape=(size,), dtype="int8", axes=(None,))


def workload(operations: list[Operation], sizes: dict[str, int], read: set[str]) -> Workload:
    values = tuple(value(name, size) for name, size in sizes.items())
    return dataclasses.replace(
        PLAIN,
        carry=value("carry", 10),
        operations=tuple(operations),
        values=values,
        activations=tuple(t for t in values if t.name in read) + ((value("carry", 10),) if "carry" in read else ()),
    )


def random_block(rng: np.random.Generator, names: int) -> Workload:
    """Operations that each read some of what came before; some values have no name, some operations two outputs."""
    made, operations, sizes = ["carry"], [], {}
    for number in range(names):
        inputs = rng.choice(made, size=min(len(made), int(rng.integers(1, 3))), replace=False)
        outputs = [f"residual_{number}" if rng.random() < 0.2 else f"v{number}"]
        outputs += [f"w{number}"] if rng.random() < 0.15 else []
        sizes |= {name: int(rng.integers(1, 20)) for name in outputs}
        operations.append(
            Operation(outputs=tuple(outputs), inputs=tuple(map(str, inputs)), flops=float(rng.integers(0, 50)))
        )
        made += outputs
    read = {name for name in made if rng.random() < 0.5} | {made[-1]}
    return workload(operations, sizes, read)


def size(tensor: Tensor) -> float:
    return float(tensor.bytes)


def seconds(operation: Operation) -> float:
    return operation.flops / 10.0


def again(work: Workload, saved: set[str]) -> set[int]:
    """Numbers of the operations that must run once more, by going back from each value that is read."""
    maker = {name: i for i, operation in enumerate(work.operations) for name in operation.outputs}
    found: set[int] = set()

    def make(name: str) -> None:
        if name != "carry" and name not in saved and maker[name] not in found:
            found.add(maker[name])
            for source in work.operations[maker[name]].inputs:
                make(source)

    for tensor in work.activations:
        make(tensor.name)
    return found


def sets_of(work: Workload) -> list[tuple[set[str], float, float]]:
    """(kept, bytes, seconds) of every set of named values."""
    named = [t for t in work.values if not t.name.startswith("residual_")]
    found = []
    for many in range(len(named) + 1):
        for chosen in itertools.combinations(named, many):
            kept = {tensor.name for tensor in chosen}
            cost = sum(seconds(work.operations[i]) for i in again(work, kept))
            found.append((kept, sum(map(size, chosen)), cost))
    return found


def front_of(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other one beats or equals, as (bytes, tenths of seconds rounded)."""
    best = sorted({(round(x, 6), round(y, 6)) for x, y in points})
    return [(x, y) for i, (x, y) in enumerate(best) if all(y < other for _, other in best[:i])]


def walked(work: Workload) -> list[tuple[tuple[str, ...], float, float]]:
    """(kept, bytes, seconds) of the sets that a block may keep."""
    built = Block.of(work, size, seconds)
    front = built.front()
    names = [tuple(name for name, keeps in zip(built.names, row, strict=True) if keeps) for row in front]
    return list(zip(names, front @ built.sizes, built.reruns(front) @ built.seconds, strict=True))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_front_is_all_that_no_other_set_beats(seed: int):
    work = random_block(np.random.default_rng(seed), 7)
    found = walked(work)
    assert [(held, round(cost, 6)) for _, held, cost in found] == front_of([p[1:] for p in sets_of(work)])
    for kept, _, cost in found:
        assert cost == pytest.approx(sum(seconds(work.operations[i]) for i in again(work, set(kept))))


@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_integer_program_walks_the_same_front(seed: int):
    built = Block.of(random_block(np.random.default_rng(seed), 9), size, seconds)
    tried, walked = built.front(), block_program.front(built)

    def points(sets: np.ndarray) -> np.ndarray:
        return np.stack([sets @ built.sizes, built.reruns(sets) @ built.seconds], axis=1)

    np.testing.assert_allclose(points(walked), points(tried), rtol=1e-9)


def test_a_block_with_many_names_is_left_to_the_integer_program():
    names = [f"v{i}" for i in range(18)]
    chain = [
        Operation(outputs=(name,), inputs=(before,), flops=1.0)
        for before, name in itertools.pairwise(["carry", *names])
    ]
    work = workload(chain, dict.fromkeys(names, 4), set(names[-3:]))
    found = walked(work)
    # Keeping one of the three that are read spares it, and all before it where it is the first of them.
    assert [held for _, held, _ in found] == [0, 4, 8, 12]
    assert found[1][0] == ("v15",)
    assert [round(cost, 6) for _, _, cost in found] == [1.8, 0.2, 0.1, 0.0]


def test_only_the_slice_that_is_needed_runs_again():
    """norm -> q, attention (result and statistics), out; keeping the result alone leaves its statistics to be made."""
    work = workload(
        [
            Operation(outputs=("norm",), inputs=("carry",), flops=10.0),
            Operation(outputs=("q",), inputs=("norm",), flops=100.0),
            Operation(outputs=("context", "statistics"), inputs=("q",), flops=1000.0, attention=True),
            Operation(outputs=("out",), inputs=("context",), flops=100.0),
        ],
        {"norm": 8, "q": 8, "context": 8, "statistics": 1, "out": 8},
        {"carry", "norm", "q", "context", "statistics"},
    )
    built = Block.of(work, size, seconds)
    rerun = lambda *names: [work.operations[i].outputs[0] for i in np.flatnonzero(built.reruns(built.chosen(names))[0])]
    assert built.names == ("norm", "q", "context", "statistics")
    assert rerun() == ["norm", "q", "context"]
    assert rerun("context") == ["norm", "q", "context"]
    assert rerun("context", "statistics") == ["norm", "q"]
    assert rerun("q") == ["norm", "context"]
    with pytest.raises(PlanError, match="remat keeps nrom, which the block does not name; it names norm, q"):
        built.chosen(["nrom"])
    with pytest.raises(PlanError, match="plain does not say what its blocks compute"):
        Block.of(PLAIN, size, seconds)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_other_use_of_the_host_is_better(seed: int):
    rng = np.random.default_rng(seed)
    work = random_block(rng, 5)
    link = Host(bandwidth=float(rng.integers(1, 20)), forward=rng.uniform(0, 1), backward=rng.uniform(0, 2))
    points = []
    sizes = {tensor.name: tensor.bytes for tensor in work.values}
    for kept, held, cost in sets_of(work):
        for many in range(len(kept) + 1):
            for away in itertools.combinations(sorted(kept), many):
                copy = sum(sizes[name] for name in away) / link.bandwidth
                waits = max(copy - link.forward, 0.0) + max(copy - link.backward, 0.0)
                points.append((held - copy * link.bandwidth, cost + waits))
    built = Block.of(work, size, seconds)
    away = host.splits(built, link)
    found = [(held, cost) for _, held, cost in walked(work)]
    found += [(float(s.device @ built.sizes), float(s.again @ built.seconds) + s.waiting) for s in away]
    assert front_of(found) == front_of(points)
    assert not any((s.device & s.away).any() for s in away)


def test_what_the_attention_kernel_gives_stays_on_the_device_or_is_made_again():
    work = workload(
        [
            Operation(outputs=("q",), inputs=("carry",), flops=100.0),
            Operation(outputs=("context", "statistics"), inputs=("q",), flops=1000.0, attention=True),
        ],
        {"q": 8, "context": 8, "statistics": 1},
        {"q", "context", "statistics"},
    )
    built = Block.of(work, size, seconds)
    names = lambda mask: {name for name, chosen in zip(built.names, mask, strict=True) if chosen}
    found = [(names(s.device), names(s.away)) for s in host.splits(built, Host(bandwidth=1e9))]
    assert ({"context", "statistics"}, {"q"}) in found
    assert all({"context", "statistics"} <= device or "statistics" not in device | away for device, away in found)


def test_copies_that_hide_behind_the_layers_cost_nothing():
    link = Host(bandwidth=100.0, forward=1.0, backward=2.0)
    np.testing.assert_allclose(link.waiting(np.array([100.0, 150.0, 300.0])), [0.0, 0.5, 3.0])

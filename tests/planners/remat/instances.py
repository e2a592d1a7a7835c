"""Random rematerialisation problems, and the best mix of each by trying every one there is."""

import functools
import itertools

import numpy as np

from planners.remat.policy import ROUNDING, Layers, Policy, Problem


def random_problem(
    rng: np.random.Generator,
    *,
    classes: int = 1,
    layers: int = 8,
    policies: int = 4,
    most_segments: int = 3,
    freed: bool = False,
    flights: bool = False,
    groups: bool = False,
    whole: bool = True,
) -> Problem:
    """With `whole`, bytes are whole numbers small enough for ties; else they are any."""

    def made(number: int) -> Policy:
        kept, transient = rng.uniform(1, 30), rng.uniform(0, 60)
        group = int(rng.choice([1, 1, 2, 3])) if groups else 1
        return Policy(
            name=f"p{number}",
            save=(),
            group=group,
            kept=round(kept) if whole else kept,
            transient=round(transient) if whole else transient,
            seconds=float(rng.integers(0, 12)) if whole else rng.uniform(0, 12) * (1.0 if rng.random() < 0.9 else 0.0),
        )

    in_flight = int(rng.integers(1, 5)) if flights else 1
    g = float(rng.integers(0, 20)) if freed else 0.0
    kinds = tuple(
        Layers(
            count=int(rng.integers(1, layers + 1)),
            policies=tuple(made(n) for n in range(int(rng.integers(1, policies + 1)))),
            in_flight=in_flight,
            freed=g,
        )
        for _ in range(classes)
    )
    low = sum(kind.count * (in_flight * min(p.kept for p in kind.policies) + g) for kind in kinds)
    high = sum(kind.count * (in_flight * max(p.kept for p in kind.policies) + g) for kind in kinds) + 60
    return Problem(
        classes=kinds,
        budget=float(round(rng.uniform(low, high))),
        most_segments=max(int(rng.integers(1, most_segments + 1)), classes),
        shortest=int(rng.integers(1, 4)),
    )


@functools.cache
def compositions(count: int, parts: int) -> tuple[tuple[int, ...], ...]:
    cuts = itertools.combinations(range(1, count), parts - 1)
    return tuple(tuple(np.diff((0, *cut, count)).tolist()) for cut in cuts)


def sequences(problem: Problem):
    """Every allowed way to run the layers, in any order of the policies: [(class, policy, layers), ...]."""

    def of_class(kind: int, runs: int):
        layers = problem.classes[kind]
        for counts in compositions(layers.count, runs):
            for chosen in itertools.product(layers.policies, repeat=runs):
                if all(_allowed(n, p, layers.count, problem.shortest) for n, p in zip(counts, chosen, strict=True)):
                    yield [(kind, p, n) for n, p in zip(counts, chosen, strict=True)]

    def from_class(kind: int, left: int):
        if kind == len(problem.classes):
            yield []
            return
        for runs in range(1, left - (len(problem.classes) - kind - 1) + 1):
            for first in of_class(kind, runs):
                for rest in from_class(kind + 1, left - runs):
                    yield first + rest

    return from_class(0, problem.most_segments)


def _allowed(layers: int, policy: Policy, count: int, shortest: int) -> bool:
    if layers % policy.group:
        return False
    return layers == count if count < shortest else layers // policy.group >= shortest


def simulated_peak(runs, problem: Problem) -> float:
    """Walks through the forward and the backward pass of one microbatch, layer by layer."""
    waiting = sum((problem.classes[kind].in_flight - 1) * n * p.kept for kind, p, n in runs)
    held = waiting + sum(n * p.kept for _, p, n in runs)
    highest = held
    for kind, policy, layers in reversed(runs):
        held += layers * problem.classes[kind].freed
        for _ in range(layers):
            highest = max(highest, held + policy.transient)
            held -= policy.kept
    return highest


def brute_force(problem: Problem) -> float:
    """Seconds of the best mix that fits; inf where none does."""
    best = np.inf
    for runs in sequences(problem):
        seconds = sum(n * p.seconds for _, p, n in runs)
        if seconds < best and simulated_peak(runs, problem) <= problem.budget * (1 + ROUNDING):
            best = seconds
    return float(best)


def least_bytes(problem: Problem) -> float:
    return min((simulated_peak(runs, problem) for runs in sequences(problem)), default=np.inf)

"""Is the dynamic program for rematerialisation exact, never worse than the other strategies, and fast?

Question: on random stages, does it find the optimum of an integer program; how much of the time between recomputing
          everything and that optimum does each strategy of the paper win back; how long does it take?
How:      stages with several classes of layers, microbatches in flight, gradients that wait, and groups. The integer
          program (HiGHS) assumes nothing of the best order. Times are medians over other random stages, of both sizes
          in turn.
Targets:  equal on all instances; never worse than any other; under 10 ms for 128 layers x 32 policies, under 1 s for
          8 pipeline stages.
Cost:     three minutes on one core, nearly all of it the integer programs; nothing is trained.
Run:      python -m experiments.benchmarks.remat_solvers [--instances 1000] [--timed 200]
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from experiments.entry import main
from experiments.report import Report, Row
from planners.plan import PlanError
from planners.remat import dynamic, exact
from planners.remat.policy import Layers, Policy, Problem, fits
from planners.remat.solvers import SOLVERS
from planners.remat.uniform import uniforms

EQUAL = 1e-7
"""Relative difference below which an optimum counts as that of HiGHS, whose feasibility tolerance this is."""

BYTES = 100.0
"""Bytes of one unit of the random sizes: whole bytes, as real ones are, so that no mix misses a budget by less than the
tolerance of HiGHS."""

ONE_STAGE, PIPELINE = 0.010, 1.0
"""Targets in seconds: 128 layers x 32 policies; 8 pipeline stages."""

RIVALS = ("greedy", "lagrangian", "learned", "static", "threshold", "full", "none")
ANY_UNIFORM = "best uniform"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How much is tried.

    Attributes:
        instances: random stages that are solved by the integer program too.
        layers: of one of them, at most.
        policies: of one class of layers, at most.
        timed: random stages of each size that are timed.
        seed: of all of them.
    """

    instances: int = 1000
    layers: int = 24
    policies: int = 5
    timed: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.instances < 0 or self.timed < 0 or self.layers < 2 or self.policies < 2:
            raise ValueError("instances and timed must not be negative; layers and policies must be at least 2")


@dataclass(slots=True)
class Tally:
    """How one strategy fared: instances that it solved, where it beat the dynamic program, and the share of the time
    between full rematerialisation and the optimum that it won back, where full fits and is not the optimum."""

    solved: int = 0
    better: int = 0
    closed: list[float] = field(default_factory=list)
    refused: int = 0


def class_of(rng: np.random.Generator, count: int, policies: int, *, groups: bool, flying: int, freed: float) -> Layers:
    """Layers that may keep everything, nothing but their input, or some of their values: the more, the fewer seconds,
    but for values that are cheap or dear for their size."""
    between = max(policies - 2 - groups, 0)
    shares = np.sort(rng.uniform(0.05, 0.95, between))
    whole, price = rng.uniform(5.0, 40.0), rng.uniform(0.2, 2.0)
    loss = np.clip((1.0 - shares) * rng.uniform(0.5, 1.5, between), 0.0, 1.0)
    whole_bytes = lambda size: float(round(BYTES * size))
    made = [
        Policy(
            name="none", save=None, kept=whole_bytes(1.0 + whole), transient=whole_bytes(rng.uniform(0, 4)), seconds=0.0
        )
    ]
    made += [
        Policy(name=f"save {i}", save=(f"v{i}",), kept=whole_bytes(1.0 + whole * share),
               transient=whole_bytes(whole * rng.uniform(0, 1)), seconds=price * lost)
        for i, (share, lost) in enumerate(zip(shares, loss, strict=True))
    ]  # fmt: skip
    waits = whole * rng.uniform(0.8, 1.2)
    made.append(Policy(name="full", save=(), kept=whole_bytes(1.0), transient=whole_bytes(waits), seconds=price))
    if groups:
        made.append(
            Policy(name="full by 2", save=(), group=2, kept=whole_bytes(0.5), transient=whole_bytes(waits + 1.0),
                   seconds=2 * price)
        )  # fmt: skip
    return Layers(count=count, policies=tuple(made), in_flight=flying, freed=freed)


def instance(rng: np.random.Generator, layers: int, policies: int) -> Problem:
    """A random stage; its budget may be too small for any mix, or large enough for `none`."""
    kinds = int(rng.integers(1, 4))
    flying = int(rng.integers(1, 5)) if rng.random() < 0.5 else 1
    freed = float(round(BYTES * rng.uniform(0, 5))) if rng.random() < 0.5 else 0.0
    groups = bool(rng.random() < 0.3)
    counts = rng.integers(2, max(layers // kinds, 2) + 1, kinds)
    classes = tuple(
        class_of(rng, int(n), int(rng.integers(2 + groups, policies + 1 + groups)), groups=groups, flying=flying,
                 freed=freed)
        for n in counts
    )  # fmt: skip
    most, least = (sum(k.count * (flying * pick(p.kept for p in k.policies) + freed) for k in classes)
                   for pick in (max, min))  # fmt: skip
    waits = max(p.transient for k in classes for p in k.policies)
    budget = least + waits * rng.uniform(0.3, 1.0) + rng.uniform(-0.05, 1.05) * (most - least)
    return Problem(classes=classes, budget=float(round(budget)), most_segments=int(rng.integers(max(3, kinds), 6)))


def seconds(solve: Callable[[Problem], object], problem: Problem) -> float:
    """Extra seconds of what a strategy finds; infinite where it finds nothing that fits."""
    try:
        found = solve(problem)
    except PlanError:
        return np.inf
    assert fits(found, problem)  # pyright: ignore[reportArgumentType]
    return found.seconds  # pyright: ignore[reportAttributeAccessIssue]


def judged(config: Config) -> tuple[int, int, float, dict[str, Tally]]:
    """Instances where the dynamic program equals the integer program, those that nothing fits, the largest relative
    difference, and how each strategy fared."""
    rng = np.random.default_rng(config.seed)
    tallies = {name: Tally() for name in ("dp", *RIVALS, ANY_UNIFORM)}
    equal, empty, worst = 0, 0, 0.0
    for _ in range(config.instances):
        problem = instance(rng, config.layers, config.policies)
        best, ours = seconds(exact.solve, problem), seconds(dynamic.solve, problem)
        if best == np.inf or ours == np.inf:
            equal, empty = equal + int(best == ours), empty + int(best == ours)
            worst = max(worst, 0.0 if best == ours else np.inf)
            continue
        apart = abs(ours - best) / max(abs(best), 1e-9)
        equal, worst = equal + int(apart <= EQUAL), max(worst, apart)
        full = seconds(SOLVERS["full"], problem)
        one_for_all = [mix.seconds for mix in uniforms(problem).values() if fits(mix, problem)]
        found = {"dp": ours, **{name: seconds(SOLVERS[name], problem) for name in RIVALS}}
        found[ANY_UNIFORM] = min(one_for_all, default=np.inf)
        for name, took in found.items():
            tally = tallies[name]
            tally.solved += int(took < np.inf)
            tally.refused += int(took == np.inf)
            tally.better += int(took < ours * (1 - EQUAL) - 1e-12)
            if full - best > EQUAL * max(full, 1.0) and full < np.inf:
                tally.closed.append(0.0 if took == np.inf else (full - took) / (full - best))
    return equal, empty, worst, tallies


def stage(rng: np.random.Generator, layers: int, policies: int, flying: int = 1) -> Problem:
    """One class of layers, its budget between the leanest and the hungriest."""
    kind = class_of(rng, layers, policies, groups=False, flying=flying, freed=0.0)
    low = layers * flying * min(p.kept for p in kind.policies) + max(p.transient for p in kind.policies)
    high = layers * flying * max(p.kept for p in kind.policies)
    return Problem(classes=(kind,), budget=float(round(low + rng.uniform(0.02, 0.98) * max(high - low, 0.0))))


def timed(config: Config) -> Iterator[tuple[str, float, list[float]]]:
    """What was timed, its target, and the seconds of each; the sizes in turn, so that a busy moment hits all."""
    rng = np.random.default_rng(config.seed + 1)
    sizes: dict[str, tuple[float, Callable[[], list[Problem]]]] = {
        "128 layers x 32 policies": (ONE_STAGE, lambda: [stage(rng, 128, 32)]),
        "128 layers x 32 policies, 8 stages of 16": (
            PIPELINE,
            lambda: [stage(rng, 16, 32, flying=8 - i) for i in range(8)],
        ),
        "8 stages of 128 layers x 32 policies": (
            PIPELINE,
            lambda: [stage(rng, 128, 32, flying=8 - i) for i in range(8)],
        ),
    }
    found: dict[str, list[float]] = {name: [] for name in sizes}
    for turn in range(config.timed + 2):
        for name, (_, make) in sizes.items():
            problems = make()
            began = time.perf_counter()
            for problem in problems:
                dynamic.solve(problem)
            if turn >= 2:  # the first two warm numpy up
                found[name].append(time.perf_counter() - began)
    for name, (target, _) in sizes.items():
        yield name, target, found[name]


def execute(config: Config, out: Path) -> Report:
    """Solves, compares, times."""
    verdict = lambda good: "met" if good else "MISSED"
    rows, details = [], {}
    if config.instances:
        equal, empty, worst, tallies = judged(config)
        rows.append(
            Row(
                what="dp",
                quantity="instances equal to the integer program",
                measured=f"{equal} of {config.instances}",
                note=f"{empty} of them fit nothing, by both; largest relative difference {worst:.1e}; target all: "
                f"{verdict(equal == config.instances)}",
            )
        )
        for name, tally in tallies.items():
            share = 100 * float(np.mean(tally.closed)) if tally.closed else float("nan")
            rows.append(
                Row(
                    what=name,
                    quantity="gap closed, %",
                    measured=share,
                    note=f"mean of {len(tally.closed)}; none found in {tally.refused}"
                    + ("" if name == "dp" else f"; better than dp in {tally.better}: {verdict(not tally.better)}"),
                )
            )
        details["gaps"] = {name: {"closed": t.closed, "refused": t.refused, "better": t.better}
                           for name, t in tallies.items()}  # fmt: skip
    if config.timed:
        for name, target, took in timed(config):
            median = statistics.median(took)
            rows.append(
                Row(
                    what="dp",
                    quantity=f"ms, {name}",
                    measured=1e3 * median,
                    note=f"median of {len(took)} stages; nine in ten below {1e3 * np.quantile(took, 0.9):.3g}, all "
                    f"below {1e3 * max(took):.3g}; target {1e3 * target:g}: {verdict(median < target)}",
                )
            )
            details[name] = took
    remarks = [
        "Gap closed: of the extra time between full rematerialisation and the optimum, the share that a strategy wins "
        "back, averaged over the instances where full fits and is not the best; where a strategy finds nothing that "
        "fits it counts as none."
    ]
    return Report(title="Strategies of rematerialisation on random stages", rows=rows, remarks=remarks, details=details)


if __name__ == "__main__":
    main("benchmarks.remat_solvers", __doc__, Config, execute, default="remat_solvers")

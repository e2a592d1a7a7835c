"""Is the plan that the planner chooses, or the agent finds, the fastest of all feasible ones on this machine?

Question: every feasible plan of a small model is compiled and timed in turns; the best and the chosen one are picked
          from one set of rounds and judged in fresh rounds, in pairs. Is the chosen one within 3% of the best, or does
          the interval of the difference contain 0?
Cost:     some minutes on two cores with eight devices; most of it compiles.
Run:      XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m experiments.benchmarks.measured_plans
          On hosts with a slow link: python -m experiments.benchmarks.measured_plans
          configs/experiments/measured_plans_link.yaml (root; some four minutes).
          Several processes: add --coordinator HOST:PORT --processes N --process I to each; process 0 reports.
"""

import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.shaped_link import Link, over_link
from experiments.entry import main
from experiments.report import Report, Row
from experiments.weight_gradient import RandomTokens
from jaxlm.checkpoints.processes import first_does, meet
from jaxlm.config import Run
from jaxlm.decode import ConfigError
from jaxlm.files import user_cache
from jaxlm.runtime.distributed import Job, start
from jaxlm.session import Session, described_machine, local_machine, numerics, resolve, workload_of
from planners.learning.agent import Agent
from planners.learning.arms import LINKS, arm
from planners.machines.topology import Cluster
from planners.plan import MESH_AXES, Plan, PlanError, Workload
from planners.search import plan as search_plan
from planners.wishes import Search

WITHIN = 3.0
"""Most that the chosen plan may lose against the best one, %."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Which plans are timed, and how often.

    Attributes:
        picking: rounds in which every plan is timed once, from which best and chosen are picked.
        judging: fresh rounds in which best and chosen are timed in pairs.
        steps: of each plan in one round, run one after the other.
        probes: plans that the agent may try.
        plans: most plans that are timed, spread over the predicted order; 0 times them all.
        cluster: file of this job as `jaxlm probe` measured it, for the planner; null takes what JAX reports.
        link: hosts of this machine, joined by a slow link, that the plans are measured on; null: on this one.
        run: the training run whose step is timed, on random tokens; model.vocab must be set.
        coordinator: HOST:PORT of process 0, for a job of several processes.
        processes: processes of the job.
        process: which of them this is, from 0.
    """

    picking: int = 5
    judging: int = 15
    steps: int = 1
    probes: int = 3
    plans: int = 0
    cluster: str | None = None
    link: Link | None = None
    run: Run = dataclasses.field(default_factory=Run)
    coordinator: str | None = None
    processes: int = 1
    process: int = 0


class Timed:
    """One plan, compiled, with its own state; only what runs is on the devices' time."""

    def __init__(self, session: Session):
        self.session = session
        with jax.set_mesh(session.mesh):
            batch = session.plan.batch
            source = RandomTokens(session.model.vocab, session.run.data.sequence)
            self.tokens = session.feed(source, batch.accumulation, batch.microbatch)[0]
            self.step = session.compile_step(self.tokens)
            meet()
            self.state: Any = session.fresh()
        self(1)

    def __call__(self, steps: int) -> float:
        """Seconds per step, on process 0."""
        jax.block_until_ready(self.state)
        began = time.perf_counter()
        for _ in range(steps):
            self.state, _ = self.step(self.state, self.tokens)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - began) / steps


def feasible(workload: Workload, cluster: Cluster, search: Search) -> list[Plan]:
    """Every plan that the trainer executes and that fits: degrees of data, fsdp and tensor, microbatches, remat."""
    count, found = cluster.count, {}
    degrees = [n for n in range(1, count + 1) if count % n == 0]
    for data, fsdp in itertools.product(degrees, degrees):
        if count % (data * fsdp):
            continue
        mesh = dict.fromkeys(MESH_AXES, 1) | {"data": data, "fsdp": fsdp, "tensor": count // (data * fsdp)}
        for microbatch, remat in itertools.product(range(1, workload.batch + 1), ("none", "full")):
            if workload.batch % microbatch or microbatch % (data * fsdp):
                continue
            asked = dataclasses.replace(
                search, mesh=mesh, microbatch=microbatch, remat=remat, loss_chunks=1, shard_optimizer=False
            )
            try:
                plan = search_plan(workload, cluster, asked)
            except PlanError:
                continue
            found[plan.summary()] = plan
    return list(found.values())


def execute(config: Config, out: Path) -> Report:
    """Compiles and times every feasible plan."""
    if config.link is not None:
        return over_link("benchmarks.measured_plans", config, config.link, out)
    job = Job(coordinator=config.coordinator, processes=config.processes, process=config.process)
    start(job, user_cache("xla"))  # a second time only what is timed takes time
    run = config.run
    model, how = resolve(run, run.model.vocab), numerics(run.model, jax.default_backend())
    cluster = local_machine() if config.cluster is None else described_machine(Path(config.cluster))
    workload = workload_of(run, model, how)
    plans = sorted(feasible(workload, cluster, run.plan), key=lambda plan: _predicted(plan))
    chosen = search_plan(workload, cluster, run.plan)
    if chosen.summary() not in {plan.summary() for plan in plans}:
        raise ConfigError(f"the chosen plan is not among the feasible ones: {chosen.summary()}")
    if config.plans and config.plans < len(plans):
        kept = {round(i) for i in np.linspace(0, len(plans) - 1, config.plans)}
        plans = [plan for i, plan in enumerate(plans) if i in kept or plan.summary() == chosen.summary()]
    names = [plan.summary() for plan in plans]
    timed = []
    for number, plan in enumerate(plans, 1):
        print(f"compiling {number} of {len(plans)}: {plan.summary()}", flush=True)
        timed.append(Timed(Session(run, model, how, plan)))
    picking = np.array([_round(timed, config.steps, i) for i in range(config.picking)])
    medians = np.median(picking, axis=0)
    best, planned = int(first_does(lambda: int(np.argmin(medians)))), names.index(chosen.summary())
    tried = first_does(lambda: _probe(plans, workload, picking, planned, cluster, run.plan, config.probes))
    found = min(tried, key=lambda i: medians[i])
    found = int(first_does(lambda: int(found)))
    judged = np.array(
        [_round([timed[i] for i in (best, planned, found)], config.steps, i) for i in range(config.judging)]
    )
    rows = [
        Row(what=name, quantity="seconds per step", measured=float(second), predicted=_predicted(plan), note=_mark(i))
        for i, (name, second, plan) in enumerate(zip(names, medians, plans, strict=True))
        for _mark in [
            lambda i: ", ".join(t for t, j in (("best", best), ("chosen", planned), ("agent", found)) if i == j)
        ]
    ]
    for column, who in ((1, "chosen by the planner"), (2, f"found by the agent in {len(tried)} probes")):
        rows.append(_verdict(who, judged[:, 0], judged[:, column], (best, planned, found)[column] == best))
    spread = 100 * (medians.max() / medians.min() - 1)
    agree = _spearman(medians, np.array([_predicted(plan) for plan in plans]))
    remarks = [
        f"{len(plans)} plans of {cluster.describe()}; the slowest takes {spread:.0f}% longer than the fastest; "
        f"predicted and measured order agree by {agree:.2f} (Spearman). "
        f"Best and chosen were picked in {config.picking} rounds and judged in {config.judging} fresh ones."
    ]
    details = {
        "plans": names,
        "picking": picking.tolist(),
        "judging": judged.tolist(),
        "probed": [names[i] for i in tried],
    }
    return Report(title="Every feasible plan, measured", rows=rows, remarks=remarks, details=details)


def _predicted(plan: Plan) -> float:
    return plan.predicted.step_seconds if plan.predicted else float("nan")


def _round(timed: list[Timed], steps: int, turn: int) -> list[float]:
    """One step time of each, begun at another plan each turn, so that no plan always follows the same one."""
    order = np.random.default_rng(turn).permutation(len(timed))
    seconds = dict(zip(order, (timed[i](steps) for i in order), strict=True))
    return [seconds[i] for i in range(len(timed))]


def _probe(
    plans: list[Plan],
    workload: Workload,
    picking: np.ndarray,
    first: int,
    cluster: Cluster,
    search: Search,
    probes: int,
) -> list[int]:
    """The plans that the agent tries, in order, beginning with the planner's choice."""
    arms = [arm(plan, workload) for plan in plans]
    agent = Agent(arms, cluster.device.memory * search.memory_fraction, links=LINKS)
    current, tried = first, [first]
    agent.observe(first, list(picking[:, first]))
    while len(tried) < probes:
        decision = agent.decide(current, 100_000, [0.0] * len(plans), 0.0, 1)
        agent.begin(decision)
        if decision.kind == "keep":
            break
        current = decision.arm
        if decision.kind == "probe":
            tried.append(current)
            agent.observe(current, list(picking[:, current]))
    return tried


def _verdict(who: str, best: np.ndarray, other: np.ndarray, same: bool) -> Row:
    """The excess over the best plan in paired rounds, with a bootstrap interval of the median."""
    if same:
        return Row(what=who, quantity="excess over the best, %", measured=0.0, note="it is the best: target met")
    excess = 100 * (other / best - 1)
    random = np.random.default_rng(0)
    medians = np.median(excess[random.integers(0, len(excess), (2000, len(excess)))], axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    met = np.median(excess) <= WITHIN or low <= 0 <= high
    note = f"95% {low:.2f} to {high:.2f}, {len(excess)} pairs; target <= {WITHIN:g} or 0 inside: " + (
        "met" if met else "MISSED"
    )
    return Row(what=who, quantity="excess over the best, %", measured=float(np.median(excess)), note=note)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    first, second = (np.argsort(np.argsort(values)) - (len(values) - 1) / 2 for values in (a, b))
    return float(first @ second / np.sqrt((first @ first) * (second @ second)))


if __name__ == "__main__":
    main("benchmarks.measured_plans", __doc__, Config, execute, default="measured_plans")

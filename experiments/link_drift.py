"""A run whose link halves its bandwidth, simulated: when the agent notices, what it does, and whether it ever flaps."""

import math
from dataclasses import dataclass

import numpy as np

from planners.learning.agent import Agent, Arm
from planners.learning.conductor import Conductor, Pace

LINKS = ("tensor_parallel", "gradient_sync", "stage_transfer")
ARMS = (
    {"compute": 0.80, "optimizer": 0.02, "gradient_sync": 0.18},
    {"compute": 0.81, "optimizer": 0.01, "tensor_parallel": 0.06, "gradient_sync": 0.15},
    {"compute": 0.83, "optimizer": 0.01, "tensor_parallel": 0.12, "gradient_sync": 0.09},
    {"compute": 0.80, "optimizer": 0.01, "bubble": 0.16, "stage_transfer": 0.03, "gradient_sync": 0.05},
    {"compute": 0.80, "optimizer": 0.01, "bubble": 0.27, "stage_transfer": 0.02},
)
"""Predicted seconds of five plans of one job on two nodes: from data-parallel over the link to a pipeline over it."""
SIZES = ((1, 16, 1), (2, 8, 1), (4, 4, 1), (2, 4, 2), (4, 1, 4))
"""Their tensor, data and stage degrees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How a machine's step times vary: every step by `noise` (of the logarithm), one in `odd` by `jump` more, and
    slowly by `wander`, correlated from step to step by 0.9."""

    noise: float = 0.02
    odd: float = 0.02
    jump: float = 0.3
    wander: float = 0.0

    def __call__(self, random: np.random.Generator, steps: int) -> np.ndarray:
        """Deviations of the log step time, [steps]."""
        slow = np.zeros(steps)
        for step in range(1, steps):
            slow[step] = 0.9 * slow[step - 1] + math.sqrt(1 - 0.81) * random.standard_normal()
        bumps = self.jump * (random.random(steps) < self.odd)
        return self.noise * random.standard_normal(steps) + bumps + self.wander * slow


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One simulated run.

    Attributes:
        quiet: steps watched before the link changed, and `false` the alarms in them.
        changes_before: changes of plan, probes aside, before the link changed, the first choice not counted.
        delay: steps from the change of the link to the alarm; None where none came.
        planned: steps from the change of the link to the plan that was kept from then on.
        flaps: times a plan was adopted that had been left since the last change of the machine.
        felt: how much slower the change made the plan that ran then.
        regret: what the plan at the end loses against the best one then, and `stayed` what the one before would.
    """

    quiet: int
    false: int
    changes_before: int
    delay: int | None
    planned: int | None
    flaps: int
    felt: float
    regret: float
    stayed: float


def simulate(
    seed: int, weather: Weather, *, steps: int = 2000, change: int | None = 1000, slower: float = 2.0
) -> Outcome:
    """`change` is the step at which bytes over the link between nodes begin to take `slower` times as long; None:
    never. The truth departs from the prediction by random factors on each part and each plan."""
    random = np.random.default_rng(seed)
    names = sorted({name for parts in ARMS for name in parts})
    factors = dict(zip(names, np.exp(0.1 * random.standard_normal(len(names))), strict=True))
    own = np.exp(0.03 * random.standard_normal(len(ARMS)))

    def truth(arm: int, factor: float) -> float:
        after = {"gradient_sync": factor, "stage_transfer": factor}
        return own[arm] * sum(value * factors[name] * after.get(name, 1.0) for name, value in ARMS[arm].items())

    before, after = ([truth(arm, factor) for arm in range(len(ARMS))] for factor in (1.0, slower))
    arms = [
        Arm(key=str(i), summary=str(sizes), parts=dict(parts), sizes=sizes, memory=0.0)
        for i, (parts, sizes) in enumerate(zip(ARMS, SIZES, strict=True))
    ]
    conductor = Conductor(Agent(arms, 1.0, links=LINKS), Pace(compile_seconds=5.0, reshard_seconds=1.0))
    deviations = weather(random, steps)
    limit = steps if change is None else change
    quiet = false = changes_before = flaps = 0
    delay = planned = None
    left_since: set[int] = set()
    steady = plan_before = None
    felt = 0.0
    for step in range(steps):
        if step == change:
            felt = after[conductor.current] / before[conductor.current] - 1.0
        seconds = (before if step < limit else after)[conductor.current] * math.exp(deviations[step])
        watched = not conductor.probing
        quiet += watched and step < limit
        if not conductor.finished(seconds):
            continue
        if watched and step < limit:
            false += 1
        if watched and step >= limit and delay is None:
            delay, left_since = step - limit + 1, set()
            plan_before = conductor.current
        decision = conductor.decide(steps - step - 1)
        if decision.kind == "probe":
            continue
        if steady is not None and decision.arm != steady:
            changes_before += step < limit
            flaps += decision.arm in left_since
            left_since.add(steady)
        steady = decision.arm
        if step >= limit:
            planned = step - limit + 1
    final = after if change is not None else before
    stayed = final[plan_before] / min(final) - 1.0 if plan_before is not None else 0.0
    end = steady if steady is not None else conductor.current
    return Outcome(
        quiet=int(quiet),
        false=false,
        changes_before=changes_before,
        delay=delay,
        planned=planned,
        flaps=flaps,
        felt=felt,
        regret=final[end] / min(final) - 1.0,
        stayed=stayed,
    )

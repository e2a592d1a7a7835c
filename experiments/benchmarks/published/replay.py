"""Choosing among plans whose step times are all published: what each way to probe has lost after so many probes.

The agent's prior is a predictor that never saw the model at hand; what it learnt on other models (`Evidence`) came from
rows of those models alone.
"""

import copy
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from planners.learning.agent import Agent, Arm, Habits
from planners.learning.belief import Evidence

HORIZON = 100_000
"""Steps that are left when the replay begins: enough for every probe worth making to pay."""

EXACT = 1e-3
"""Spread of a published step time that is taken for the truth."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """All measured plans of one job.

    Attributes:
        arms: as the agent sees them; `predicted` orders them.
        seconds: the measured step seconds of each.
        links: parts that are communication.
        evidence: measurements of other models.
    """

    arms: tuple[Arm, ...]
    seconds: np.ndarray
    links: tuple[str, ...]
    evidence: tuple[Evidence, ...] = ()

    @property
    def order(self) -> np.ndarray:
        return np.argsort([arm.predicted for arm in self.arms], kind="stable")


Policy = Callable[[Job, int, int], list[int]]
"""`(job, probes, seed)` -> the arms probed, in order; fewer where the policy has seen enough."""


def in_order(job: Job, probes: int, seed: int) -> list[int]:
    """Best prediction first."""
    return [int(arm) for arm in job.order[:probes]]


def at_random(job: Job, probes: int, seed: int) -> list[int]:
    random = np.random.default_rng(seed)
    return [int(arm) for arm in random.permutation(len(job.arms))[:probes]]


def epsilon_greedy(job: Job, probes: int, seed: int, epsilon: float = 0.1) -> list[int]:
    """The best prediction that was not tried, but with probability epsilon any other."""
    random, left, tried = np.random.default_rng(seed), [int(arm) for arm in job.order], []
    while left and len(tried) < probes:
        tried.append(left.pop(int(random.integers(len(left))) if random.random() < epsilon else 0))
    return tried


def confidence_bound(job: Job, probes: int, seed: int, width: float = 2.0) -> list[int]:
    """UCB on tokens/s: the arm whose log seconds may be lowest, by the same belief as the agent's."""
    belief, tried = copy.deepcopy(_agent(job, True).belief), []
    while len(tried) < min(probes, len(job.arms)):
        mean, spread = belief.log_seconds()
        bound = mean - width * spread
        bound[tried] = np.inf
        tried.append(int(np.argmin(bound)))
        belief.update(tried[-1], float(np.log(job.seconds[tried[-1]])), EXACT**2)
    return tried


def by_agent(
    job: Job, probes: int, seed: int, *, draws: int = 256, learnt: bool = True, worth: float = float("-inf")
) -> list[int]:
    """The agent as it runs in training, with changes of plan that cost nothing; `learnt` gives it the evidence."""
    agent = copy.deepcopy(_agent(job, learnt))
    agent.habits = Habits(draws=draws, seed=seed, noise=EXACT, steady=EXACT, worth=worth)
    current = agent.best()
    tried = [current]
    agent.observe(current, [job.seconds[current]])
    while len(tried) < min(probes, len(job.arms)):
        decision = agent.decide(current, HORIZON, [0.0] * len(job.arms), 0.0, 1)
        agent.begin(decision)
        if decision.kind == "keep":
            break
        current = decision.arm
        if decision.kind == "probe":
            tried.append(current)
            agent.observe(current, [job.seconds[current]])
    return tried


@functools.cache
def _agent(job: Job, learnt: bool) -> Agent:
    """An agent that has tried nothing yet, its spreads as in training; copied for each policy and seed."""
    return Agent(job.arms, float("inf"), links=job.links, evidence=job.evidence if learnt else ())


def thompson(job: Job, probes: int, seed: int) -> list[int]:
    """One draw a decision: Thompson sampling as printed."""
    return by_agent(job, probes, seed, draws=1)


def unlearnt(job: Job, probes: int, seed: int) -> list[int]:
    """The agent with the predictor alone, nothing measured on other models."""
    return by_agent(job, probes, seed, learnt=False)


POLICIES: dict[str, Policy] = {
    "agent": by_agent,
    "agent, no evidence of other models": unlearnt,
    "one Thompson draw": thompson,
    "predicted order": in_order,
    "UCB": confidence_bound,
    "epsilon-greedy": epsilon_greedy,
    "random": at_random,
}
CHANCE = ("one Thompson draw", "epsilon-greedy", "random")
"""Policies whose choices are luck: averaged over seeds."""


def losses(job: Job, policy: Policy, probes: Sequence[int], seeds: Iterable[int]) -> np.ndarray:
    """What the best arm probed loses against the best there is, %, [seeds, probes]."""
    best, rows = float(job.seconds.min()), []
    for seed in seeds:
        tried = policy(job, max(probes), seed)
        rows.append([100.0 * (float(job.seconds[tried[:count]].min()) / best - 1.0) for count in probes])
    return np.array(rows)

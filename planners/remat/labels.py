"""Stretches of runs at the end of a stage, many at once: one array per number that the search needs of each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planners.plan import PlanError
from planners.remat.policy import Layers, Policy, Problem


def worthwhile(policies: Sequence[Policy]) -> tuple[Policy, ...]:
    """The policies that no other one beats or equals in bytes kept, transient, seconds and group at once."""
    found: list[Policy] = []
    for policy in sorted(policies, key=lambda p: (p.seconds, p.kept, p.transient, p.group)):
        if not any(
            other.kept <= policy.kept and other.transient <= policy.transient and policy.group % other.group == 0
            for other in found
        ):
            found.append(policy)
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runs:
    """Every run that a class may have: one entry per (policy, layers)."""

    policies: tuple[Policy, ...]
    policy: np.ndarray
    layers: np.ndarray
    size: np.ndarray
    peak: np.ndarray
    waiting: np.ndarray
    seconds: np.ndarray
    rank: np.ndarray
    closing: np.ndarray
    """[policy, layers] -> entry, or -1."""
    once: bool
    """Whether a policy needs no second run of the class: so unless bytes are freed run by run."""

    @classmethod
    def of(cls, problem: Problem, kind: int) -> "Runs":
        """Raises PlanError when none of the class's policies may run at all."""
        layers = problem.classes[kind]
        policies = worthwhile([p for p in layers.policies if problem.least(kind, p) <= layers.count])
        if not policies:
            raise PlanError(
                f"remat: {layers.count} layers are too few for each of their policies, which recompute groups of "
                f"{sorted({p.group for p in layers.policies})} layers and need {problem.shortest} groups; add one "
                "without groups"
            )
        columns = [np.arange(problem.least(kind, p), layers.count + 1, p.group) for p in policies]
        policy = np.repeat(np.arange(len(policies)), [len(column) for column in columns])
        count = np.concatenate(columns)
        kept, transient, seconds = (
            np.array([getattr(p, name) for p in policies], float)[policy] for name in ("kept", "transient", "seconds")
        )
        closing = np.full((len(policies), layers.count + 1), -1)
        closing[policy, count] = np.arange(len(count))
        size, gradients = layers.in_flight * count * kept, layers.freed * count
        return cls(
            policies=policies,
            policy=policy,
            layers=count,
            size=size,
            peak=size + transient + gradients,
            waiting=(layers.in_flight - 1) * count * kept + gradients,
            seconds=count * seconds,
            rank=_ranks(layers, policy, count, kept, transient),
            closing=closing,
            once=not layers.freed,
        )


def _ranks(layers: Layers, policy: np.ndarray, count: np.ndarray, kept: np.ndarray, transient: np.ndarray):
    """Place of each run in the order that `policy.ordered` proves best. Without freed bytes a policy has one place."""
    if not layers.freed:
        order = np.lexsort([policy, -transient])
        place = np.cumsum(np.concatenate([[0], np.diff(policy[order]) != 0]))
    else:
        falls = kept < layers.freed
        height = np.where(falls, count * kept + transient, -(transient + layers.freed * count))
        order, place = np.lexsort([policy, height, ~falls]), np.arange(len(count))
    ranks = np.empty(len(count), int)
    ranks[order] = place
    return ranks


@dataclass(slots=True, eq=False)
class Labels:
    """Labels of one class after the same number of runs; `path` holds the entries of their runs, last run first."""

    held: np.ndarray
    waiting: np.ndarray
    seconds: np.ndarray
    left: np.ndarray
    rank: np.ndarray
    path: np.ndarray

    def __len__(self) -> int:
        return len(self.held)

    def take(self, rows: np.ndarray) -> "Labels":
        return Labels(*(getattr(self, name)[rows] for name in self.__slots__))

    def before(self, runs: Runs, rows: np.ndarray, entries: np.ndarray, step: int) -> "Labels":
        """Labels `rows`, each with the run of `entries` put in front."""
        path = self.path[rows]
        path[:, step] = entries
        size, waiting = runs.size[entries], self.waiting[rows]
        return Labels(
            np.maximum(self.held[rows] + size, waiting + runs.peak[entries]),
            waiting + runs.waiting[entries],
            self.seconds[rows] + runs.seconds[entries],
            self.left[rows] - runs.layers[entries],
            runs.rank[entries],
            path,
        )


def joined(parts: list[Labels]) -> Labels:
    return Labels(*(np.concatenate([getattr(part, name) for part in parts]) for name in Labels.__slots__))


def below(rows: np.ndarray, room: np.ndarray, excess: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every (row, entry) whose excess is within the room of the row: what each array of `rows` may be joined with."""
    order = np.argsort(excess, kind="stable")
    many = np.searchsorted(excess[order], room, side="right")
    which = np.repeat(rows, many)
    starts = np.repeat(np.cumsum(many) - many, many)
    return which, order[np.arange(len(which)) - starts]

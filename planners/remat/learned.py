"""The paper's learned strategy: a small network that decides layer by layer from memory, cost and depth.

For each layer it scores every policy that leaves room for the leanest choice of the layers to come, and takes the best
one. It never sees the whole stage at once, as the dynamic program does. `training` made its weights, from random stages
only; `facts/learned_remat.yaml` holds them and says how.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from planners.remat.counts import allowed, single
from planners.remat.policy import Mix, Policy, Problem

FACTS = Path(__file__).parents[1] / "facts" / "learned_remat.yaml"

FEATURES = ("kept", "seconds", "spare", "fill", "transient", "depth", "spare x kept", "fill x kept")
"""What the network reads of a policy in a situation; see `features`."""


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """One hidden layer: score = out . tanh(features @ into + bias)."""

    into: np.ndarray
    bias: np.ndarray
    out: np.ndarray

    def scores(self, x: np.ndarray) -> np.ndarray:
        """x: [..., features] -> [...]"""
        return np.tanh(x @ self.into + self.bias) @ self.out


@functools.cache
def network() -> Network:
    """The trained one."""
    raw = yaml.safe_load(FACTS.read_text())
    return Network(*(np.array(raw[name]) for name in ("into", "bias", "out")))


def solve(problem: Problem) -> Mix:
    """Raises PlanError when the leanest policies do not fit."""
    return decide(problem, network())


def decide(problem: Problem, by: Network) -> Mix:
    """The mix that this network chooses."""
    left, counts = problem.budget - sum(kind.freed * kind.count for kind in problem.classes), []
    least = [kind.in_flight * _choices(problem, k)[0].kept for k, kind in enumerate(problem.classes)]
    for k, kind in enumerate(problem.classes):
        choices, chosen = _choices(problem, k), dict[Policy, int]()
        later = sum(each.count * size for each, size in zip(problem.classes[k + 1 :], least[k + 1 :], strict=True))
        for layer in range(kind.count):
            x, fits = features(choices, kind.in_flight, left - later, layer, kind.count, problem.budget)
            scores = np.where(fits, by.scores(x), -np.inf)
            best = choices[int(np.argmax(scores))] if fits.any() else choices[0]
            chosen[best] = chosen.get(best, 0) + 1
            left -= kind.in_flight * best.kept
        counts.append(chosen)
    return allowed(problem, counts, "the leanest choice of every layer")


def features(
    policies: list[Policy], flights: int, spare: float, layer: int, layers: int, budget: float
) -> tuple[np.ndarray, np.ndarray]:
    """What the network reads, [policy, feature], and which policies leave room for the leanest choice of the rest.

    Args:
        policies: the choices.
        flights: microbatches held at once.
        spare: bytes left for this layer, those after it in its class, and transients.
        layer: number of this layer in its class.
        layers: of the class.
        budget: bytes of the stage.
    """
    kept, transient, seconds = (
        np.array([getattr(p, name) for p in policies], float) for name in ("kept", "transient", "seconds")
    )
    kept = flights * kept
    low, high = kept.min(), kept.max()
    # Where there is no choice nothing is compared, and any unit will do.
    span, dear = high - low or 1.0, seconds.max() or 1.0
    rest = layers - layer
    after = spare - kept - (rest - 1) * low
    # Bytes above the least that each layer still to come could have, in units of the widest choice, transients off.
    share = (spare - transient - rest * low) / (rest * span)
    relative = (kept - low) / span
    share = np.clip(share, -2.0, 2.0)
    fill = np.clip((after - transient) / span, -2.0, 2.0)
    x = np.stack(
        [
            relative,
            seconds / dear,
            share,
            fill,
            np.minimum(transient / max(budget, 1e-300), 2.0),
            np.full(len(kept), layer / layers),
            share * relative,
            fill * relative,
        ],
        axis=-1,
    )
    return x, after >= transient.min()


def _choices(problem: Problem, kind: int) -> list[Policy]:
    """Its policies for single layers, leanest first."""
    return sorted(single(problem, kind), key=lambda p: (p.kept, p.seconds))

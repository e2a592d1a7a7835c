"""Trains the learned strategy on random stages to decide as the dynamic program does, layer by layer.

    python -m planners.remat.training [--seed N] [--stages N] [--out FILE]

Writes the weights, and what they cost on other random stages, to FILE (default: planners/facts/learned_remat.yaml).
"""

import argparse
import shlex
from pathlib import Path

import numpy as np
import yaml

from planners.plan import PlanError
from planners.remat import dynamic
from planners.remat.learned import FACTS, FEATURES, Network, decide, features
from planners.remat.policy import Layers, Policy, Problem

HIDDEN = 12
MOST = 10
"""Policies of a random stage, at most."""


def stage(rng: np.random.Generator) -> Problem:
    """A stage of 4 to 64 layers with 2 to 10 policies: the more bytes kept, the fewer seconds and transients."""
    count, many = int(rng.integers(4, 65)), int(rng.integers(2, MOST + 1))
    kept = np.sort(rng.uniform(1.0, rng.uniform(2.0, 30.0), many))
    seconds = np.sort(rng.uniform(0.0, 1.0, many) ** rng.uniform(0.5, 2.0))[::-1].copy()
    seconds[-1] = 0.0
    transient = rng.uniform(0.5, 1.5) * (kept.max() - kept) + rng.uniform(0.0, 5.0)
    policies = tuple(
        Policy(name=str(i), save=(), kept=float(kept[i]), transient=float(transient[i]), seconds=float(seconds[i]))
        for i in range(many)
    )
    low = count * kept.min() + transient.max()
    budget = low + rng.uniform(0.0, 1.0) * max(count * kept.max() - low, 0.0)
    return Problem(classes=(Layers(count=count, policies=policies),), budget=float(budget))


def examples(problem: Problem) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """(features, which choices fit, the dynamic program's choice) of every layer of a stage."""
    (kind,) = problem.classes
    choices, spare, found, layer = list(kind.policies), problem.budget, [], 0
    for run in dynamic.solve(problem).runs:
        for _ in range(run.layers):
            x, fits = features(choices, kind.in_flight, spare, layer, kind.count, problem.budget)
            found.append((x, fits, choices.index(run.policy)))
            spare -= run.policy.kept
            layer += 1
    return [each for each in found if each[1][each[2]]]


def train(rng: np.random.Generator, stages: int, steps: int = 1500) -> Network:
    """Softmax regression through one hidden layer, by Adam."""
    rows = [row for _ in range(stages) for row in examples(stage(rng))]
    x = np.zeros((len(rows), MOST, len(FEATURES)))
    off, chosen = np.full((len(rows), MOST), -1e9), np.array([row[2] for row in rows])
    for i, (table, fits, _) in enumerate(rows):
        x[i, : len(table)] = table
        off[i, : len(table)] = np.where(fits, 0.0, -1e9)
    weights = [rng.normal(0, 0.5, (len(FEATURES), HIDDEN)), np.zeros(HIDDEN), rng.normal(0, 0.5, HIDDEN)]
    first, second = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    for step in range(1, steps + 1):
        batch = rng.integers(0, len(rows), 512)
        rate = 0.02 * (1.0 - step / (steps + 1))
        for w, g, m, v in zip(
            weights, _gradient(weights, x[batch], off[batch], chosen[batch]), first, second, strict=True
        ):
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            w -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return Network(*weights)


def _gradient(weights: list[np.ndarray], x: np.ndarray, off: np.ndarray, chosen: np.ndarray) -> list[np.ndarray]:
    """Of the mean cross-entropy."""
    into, bias, out = weights
    hidden = np.tanh(x @ into + bias)
    scores = hidden @ out + off
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    shares[np.arange(len(chosen)), chosen] -= 1.0
    shares /= len(chosen)
    back = shares[..., None] * out * (1 - hidden**2)
    return [np.einsum("nkf,nkh->fh", x, back), back.sum(axis=(0, 1)), np.einsum("nk,nkh->h", shares, hidden)]


def excess(by: Network, rng: np.random.Generator, stages: int) -> tuple[float, float]:
    """Mean seconds of the network's mixes, and of the dynamic program's, on random stages that both can do."""
    learned, best = [], []
    for _ in range(stages):
        problem = stage(rng)
        try:
            mix = decide(problem, by)
        except PlanError:
            continue
        learned.append(mix.seconds)
        best.append(dynamic.solve(problem).seconds)
    return float(np.mean(learned)), float(np.mean(best))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--stages", type=int, default=400)
    options.add_argument("--out", type=Path, default=FACTS)
    asked = options.parse_args()
    trained = train(np.random.default_rng(asked.seed), asked.stages)
    rounded = Network(*(np.round(getattr(trained, name), 3) for name in ("into", "bias", "out")))
    learned, best = excess(rounded, np.random.default_rng(asked.seed + 1), asked.stages)
    command = shlex.join(["python", "-m", "planners.remat.training", "--seed", str(asked.seed)])
    if asked.stages != 400:
        command += f" --stages {asked.stages}"
    weights = {name: getattr(rounded, name).tolist() for name in ("into", "bias", "out")}
    head = (
        "# Weights of the learned rematerialisation strategy (planners/remat/learned.py), trained on random stages.\n"
        f"# Made by: {command}\n"
        f"# On {asked.stages} other random stages its mixes take {learned / best:.3f} times the extra seconds of the "
        "best ones.\n"
    )
    asked.out.write_text(head + yaml.safe_dump(weights, default_flow_style=None, width=110, sort_keys=False))
    print(head, end="")


if __name__ == "__main__":
    main()

"""The closed form to beat: step seconds from eleven coefficients, fitted to measured step times (planners.md 0.1).

The formula and its starting values are those of `baselines/step_time_closed_form.py` beside the published tables; here
it also says how its seconds split into parts, and fits without a library. It is a baseline, and the cost model with
which the learning agent is replayed; nothing of it ships in the planner.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from experiments.benchmarks.published.tables import Table

START = np.log([0.6, 5.0, 20.0, 3.0, 120.0, 15.0, 20.0, 80.0, 50.0, 10.0, 10.0])
"""Logarithms: share of the peak; GFLOP at half of it; passes over activations and over scores; GB/s of tensor-parallel
all-reduces within and across nodes; us per doubling of their ranks; GB/s of the gradient's all-reduce across nodes; us
per layer; ms per step; GB/s between stages."""
WIDTH = np.array([0.4, 1.5, 0.7, 0.7, 0.5, 0.8, 0.8, 0.8, 1.0, 1.2, 1.0])
"""Standard deviations of the weak prior that keeps coefficients which the rows do not determine where they began."""

PARTS = ("compute", "memory", "tensor_parallel", "layers", "stage_transfer", "bubble", "head", "gradient_sync", "step")
LINKS = ("tensor_parallel", "stage_transfer", "gradient_sync")
VOCABULARY, PEAK, BANDWIDTH = 51200.0, 312e12, 2.0e12


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Rows of a vTrain table as numbers, one entry per row; `seconds` are the measured ones."""

    hidden: np.ndarray
    layers: np.ndarray
    heads: np.ndarray
    sequence: np.ndarray
    tensor: np.ndarray
    data: np.ndarray
    stage: np.ndarray
    microbatch: np.ndarray
    batch: np.ndarray
    devices: np.ndarray
    seconds: np.ndarray

    @classmethod
    def of(cls, table: Table) -> "Runs":
        return cls(
            hidden=table.numbers("hidden"),
            layers=table.numbers("layers"),
            heads=table.numbers("heads"),
            sequence=table.numbers("seq_len"),
            tensor=table.numbers("tp"),
            data=table.numbers("dp"),
            stage=table.numbers("pp"),
            microbatch=table.numbers("micro_batch"),
            batch=table.numbers("global_batch"),
            devices=table.numbers("gpus"),
            seconds=table.numbers("iter_time_ms") / 1e3,
        )

    def __len__(self) -> int:
        return len(self.seconds)

    def take(self, rows: np.ndarray) -> "Runs":
        return Runs(**{item.name: getattr(self, item.name)[rows] for item in dataclasses.fields(self)})


def parts(coefficients: np.ndarray, r: Runs) -> np.ndarray:
    """Predicted seconds [rows, PARTS] at logarithms of the coefficients."""
    peak, half, passes, scores, inside, across, latency, data, layer, step, stage = np.exp(coefficients)
    t, d, p, b, h, s = r.tensor, r.data, r.stage, r.microbatch, r.hidden, r.sequence
    times = r.batch / (d * b)
    product = 2 * b * s * h * h / t / 1e9
    efficiency = np.minimum(peak * product / (product + half), 1.0)
    compute = 8 * b * s * (12 * h * h + 2 * s * h) / t / (PEAK * efficiency)  # forward, recompute, backward
    memory = (passes * b * s * h * 2 + scores * b * r.heads * s * s * 2 / t) / BANDWIDTH
    carry = b * s * h * 2
    ring = 2 * (t - 1) / t * carry / (np.where(t <= 8, inside, across) * 1e9) + latency * 1e-6 * np.log2(t)
    tensor = np.where(t > 1, 6 * ring, 0.0)
    head = 6 * b * s * h * VOCABULARY / t / (PEAK * min(peak, 1.0))
    deep = np.ceil(r.layers / p)
    held = (12 * h * h * r.layers / p + VOCABULARY * h) / t
    far = t * d > 8
    wire = np.where(far, data, inside) * 1e9 / np.where(far, np.minimum(8, t), 1.0)
    sync = np.where(d > 1, 2 * (d - 1) / d * held * 4 / wire, 0.0)
    block = compute + memory + tensor + layer * 1e-6
    columns = (
        times * deep * compute,
        times * deep * memory,
        times * deep * tensor,
        times * deep * layer * 1e-6,
        np.where(p > 1, (times + p - 1) * 2 * carry / (stage * 1e9), 0.0),
        (p - 1) * deep * block,
        (times + 1) * 0.5 * head,
        sync,
        np.full(len(r), step * 1e-3),
    )
    return np.stack(columns, axis=1)


def seconds(coefficients: np.ndarray, runs: Runs) -> np.ndarray:
    """Predicted step seconds [rows]."""
    return parts(coefficients, runs).sum(axis=1)


def fit(runs: Runs, start: np.ndarray = START) -> np.ndarray:
    """Logarithms of the coefficients that fit the rows best: soft-L1 loss at 10 % and the weak prior, by
    Levenberg-Marquardt on reweighted squares."""
    target = np.log(runs.seconds)

    def residuals(at: np.ndarray) -> np.ndarray:
        return np.concatenate([np.log(seconds(at, runs)) - target, (at - START) / WIDTH * 0.03])

    cost = lambda e: float(np.sum(np.sqrt(1.0 + (e / 0.1) ** 2)))
    at, error, damping = start, residuals(start), 1e-3
    for _ in range(200):
        slope = np.stack([(residuals(at + 1e-6 * unit) - error) / 1e-6 for unit in np.eye(len(at))], axis=1)
        weight = 1.0 / np.sqrt(1.0 + (error / 0.1) ** 2)
        square, gradient = slope.T @ (weight[:, None] * slope), slope.T @ (weight * error)
        move = np.linalg.solve(square + damping * np.diag(np.diag(square)), -gradient)
        tried = residuals(at + move)
        if cost(tried) < cost(error):
            done = cost(error) - cost(tried) < 1e-9 * cost(error)
            at, error, damping = at + move, tried, damping / 3.0
            if done:
                break
        else:
            damping *= 4.0
            if damping > 1e9:
                break
    return at

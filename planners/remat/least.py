"""The least hungry mix of a stage, whatever it costs: the least bytes that a budget must hold."""

import numpy as np

from planners.plan import PlanError
from planners.remat.labels import Labels, Runs, joined
from planners.remat.policy import Mix, Problem, Run


def least(problem: Problem) -> Mix:
    """The mix of the lowest peak. Raises PlanError when no allowed runs add up to the layers of each class.

    Built from the last run to the first; of stretches of equal length that leave equally many layers, those remain
    that no other one beats in both kinds of bytes (see `dynamic`).
    """
    last = len(problem.classes) - 1
    runs = [Runs.of(problem, kind) for kind in range(last + 1)]
    kept = [kind.in_flight * min(p.kept for p in kind.policies) for kind in problem.classes]
    steps, best, path = problem.most_segments, np.inf, None
    start = np.zeros(1), np.zeros(1), np.zeros(1), np.full(1, problem.classes[last].count)
    frontier = {last: Labels(*start, np.zeros(1, int), np.full((1, steps), -1))}
    for step in range(steps):
        after: dict[int, list[Labels]] = {}
        for kind, labels in frontier.items():
            before = sum(kept[k] * problem.classes[k].count for k in range(kind))
            rows, entries = (grid.ravel() for grid in np.indices((len(labels), len(runs[kind].layers))))
            good = runs[kind].layers[entries] <= labels.left[rows]
            longer = labels.before(runs[kind], rows[good], entries[good], step)
            longer = longer.take(np.flatnonzero(longer.held + before + kept[kind] * longer.left < best))
            done, open_ = (longer.take(np.flatnonzero(rows)) for rows in (longer.left == 0, longer.left > 0))
            if kind == 0 and len(done):
                first = int(np.argmin(done.held))
                if done.held[first] < best:
                    best, path = float(done.held[first]), done.path[first]
            elif kind and step + kind < steps:
                done.left[:] = problem.classes[kind - 1].count
                after.setdefault(kind - 1, []).append(_leanest(done))
            if step + kind + 1 < steps:
                after.setdefault(kind, []).append(_leanest(open_))
        frontier = {kind: _leanest(joined(parts)) for kind, parts in after.items()}
    if path is None:
        raise PlanError(
            f"remat: no {steps} runs of at least {problem.shortest} layers (or groups of them) add up to the layers of "
            f"each class: {[kind.count for kind in problem.classes]}"
        )
    return Mix.of(told(path, runs, problem), problem.classes)


def told(path: np.ndarray, runs: list[Runs], problem: Problem) -> list[Run]:
    """The runs of a path in the order in which they run."""
    kind, left, found = len(runs) - 1, problem.classes[-1].count, []
    for entry in path[path >= 0]:
        layers = int(runs[kind].layers[entry])
        found.append(Run(kind, runs[kind].policies[runs[kind].policy[entry]], layers))
        left -= layers
        if not left and kind:
            kind -= 1
            left = problem.classes[kind].count
    return found[::-1]


def _leanest(labels: Labels) -> Labels:
    """Those that no other one with as many layers left beats in bytes held and waiting."""
    labels = labels.take(np.lexsort([labels.waiting, labels.held, labels.left]))
    good = np.zeros(len(labels), bool)
    for left in np.unique(labels.left):
        rows = np.flatnonzero(labels.left == left)
        lowest = np.minimum.accumulate(labels.waiting[rows])
        good[rows] = np.append(True, labels.waiting[rows][1:] < lowest[:-1])
    return labels.take(np.flatnonzero(good))

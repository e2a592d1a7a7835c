"""The dynamic program over policy counts: the fewest extra seconds within a budget of exact bytes.

A label is a stretch of runs at the end of a stage, built from the last run to the first, with

    held     most bytes of the stretch above what the layers before it keep: what the label asks of the budget
    waiting  bytes of the stretch that are there while earlier layers go back: gradients, and other microbatches
    seconds  extra seconds
    left     layers of its class that still have no policy

A run of n layers put in front gives held' = max(held + F n m, waiting + F n m + tau + g n), waiting' = waiting +
(F - 1) n m + g n, seconds' = seconds + n t. Nothing is rounded to a grid.

A label is dropped when even the relaxation of what is left of it cannot beat the best mix known (`prices`). A run that
costs e more than the relaxation may follow only where there is still so much to lose, so that with the runs sorted by
e the sums that can matter are found without trying the others. The last two runs are chosen in closed form (`pairs`).
"""

from collections.abc import Iterator

import numpy as np

from planners.plan import PlanError
from planners.remat.labels import Labels, Runs, below, joined
from planners.remat.least import least, told
from planners.remat.pairs import Pairs
from planners.remat.policy import ROUNDING, Mix, Problem, Run
from planners.remat.prices import prices_of
from planners.remat.refusal import refusal

BEAM = 48
"""Labels kept per step in a first pass over several classes, whose mix is what the exact pass has to beat."""

PORTION = 16
"""Labels, the most promising ones, that are completed before the others are looked at."""


def solve(problem: Problem) -> Mix:
    """The mix of the fewest extra seconds that fits, among all orders and all counts.

    Raises PlanError, with the least bytes that would do, when none fits.
    """
    found = _Search(problem).run()
    if found is None:
        raise PlanError(refusal(problem, least(problem)))
    return Mix.of(found, problem.classes)


class _Search:
    """One search: labels by class, longer by one run in each step."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.runs = [Runs.of(problem, kind) for kind in range(len(problem.classes))]
        self.prices = prices_of(problem, [runs.policies for runs in self.runs])
        self.pairs = Pairs.of(problem, self.runs[0])
        self.limit = problem.budget * (1 + ROUNDING)
        self.best, self.path = np.inf, None
        self.counts: list[int] = []
        self.tried = 0

    def run(self) -> list[Run] | None:
        if len(self.runs) > 1:
            self._pass(BEAM)
        self._pass(None)
        return None if self.path is None else told(self.path, self.runs, self.problem)

    def _pass(self, width: int | None) -> None:
        steps, last = self.problem.most_segments, len(self.runs) - 1
        frontier = {last: self._start(last, np.zeros(1), np.zeros(1), np.zeros(1), np.full((1, steps), -1))}
        self.counts, self.tried = [], 0
        for step in range(steps):
            after: dict[int, list[Labels]] = {}
            for kind in sorted(frontier):
                labels, runs_left = frontier[kind], steps - step - 1
                if kind:
                    done = self._closed(kind, labels, step)
                    if runs_left >= kind and len(done):
                        started = self._start(kind - 1, done.held, done.waiting, done.seconds, done.path)
                        after.setdefault(kind - 1, []).append(started)
                    if runs_left >= kind + 1:
                        after.setdefault(kind, []).append(self._longer(kind, labels, step))
                    continue
                fresh = labels.left == self.problem.classes[0].count
                self._finish(self._closed(0, labels.take(np.flatnonzero(fresh)), step))
                if runs_left >= 1:
                    for rows in _portions(len(labels)):
                        self._pair(labels.take(rows), step)
                if runs_left >= 2:
                    after.setdefault(0, []).append(self._longer(0, labels, step))
            frontier = {}
            for kind, parts in after.items():
                labels = self._promising(kind, joined(parts), width)
                if len(labels):
                    frontier[kind] = labels
            self.counts.append(sum(map(len, frontier.values())))

    def _start(self, kind: int, held, waiting, seconds, path) -> Labels:
        left = np.full(len(held), self.problem.classes[kind].count)
        return Labels(held, waiting, seconds, left, np.full(len(held), np.iinfo(int).max), path)

    def _closed(self, kind: int, labels: Labels, step: int) -> Labels:
        """Each label with one run of all the layers that its class has left."""
        runs = self.runs[kind]
        rows = np.repeat(np.arange(len(labels)), len(runs.policies))
        entries = runs.closing[:, labels.left].T.ravel()
        good = (entries >= 0) & (runs.rank[entries] <= labels.rank[rows])
        rows, entries = rows[good], entries[good]
        done = labels.before(runs, rows, entries, step)
        return done.take(np.flatnonzero(done.held <= self.limit))

    def _pair(self, labels: Labels, step: int) -> None:
        """Tries each label with two runs in front of it that take all layers left."""
        runs, pairs = self.runs[0], self.pairs
        for price, rows, bounds in self._by_price(0, labels):
            each = self._excess(0, price)
            least = pairs.least[pairs.back] * each[pairs.back] + pairs.least[pairs.front] * each[pairs.front]
            which, pair = below(rows, self._bar() - bounds, least)
            if runs.once:
                good = pairs.rank[pair] <= labels.rank[which]
                which, pair = which[good], pair[good]
            left = labels.left[which]
            a, b = each[pairs.front[pair]], each[pairs.back[pair]]
            la, lb = pairs.least[pairs.front[pair]], pairs.least[pairs.back[pair]]
            excess = np.minimum(lb * b + (left - lb) * a, (left - la) * b + la * a)
            good = excess < (self._bar() - bounds)[np.searchsorted(rows, which)]
            which, pair, left = which[good], pair[good], left[good]
            self.tried += len(which)
            back, seconds = pairs.best(
                pair, left, labels.held[which], labels.waiting[which], labels.seconds[which], self.limit
            )
            if not len(seconds) or not seconds.min() < self._bar():
                continue
            ties = np.flatnonzero(seconds <= seconds.min() * (1 + ROUNDING))
            which, pair, left, back = which[ties], pair[ties], left[ties], back[ties]
            longer = labels.before(runs, which, runs.closing[pairs.back[pair], back], step)
            done = longer.before(runs, np.arange(len(which)), runs.closing[pairs.front[pair], left - back], step + 1)
            self._finish(done)

    def _finish(self, done: Labels) -> None:
        """Remembers the best of these mixes; of equally good ones that of the lowest peak."""
        if not len(done):
            return
        first = np.lexsort([done.held, done.seconds])[0]
        if done.seconds[first] < self.best:
            self.best, self.path = float(done.seconds[first]), done.path[first].copy()

    def _excess(self, kind: int, price: int) -> np.ndarray:
        """Per policy: what a layer costs at this price above the least that any does."""
        return self.prices.cost[kind][:, price] - self.prices.layer[kind][price]

    def _by_price(self, kind: int, labels: Labels) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """The labels by the price that bounds them best: its index, their rows, their bounds."""
        bounds = self.prices.bounds(kind, labels.left, labels.held, labels.seconds)
        tightest = np.argmax(bounds, axis=0)
        for price in np.unique(tightest):
            rows = np.flatnonzero(tightest == price)
            yield int(price), rows, bounds[price, rows]

    def _longer(self, kind: int, labels: Labels, step: int) -> Labels:
        """Each label with one run that leaves layers of its class: all that the bound allows."""
        runs = self.runs[kind]
        found = []
        for price, rows, bounds in self._by_price(kind, labels):
            excess = runs.layers * self._excess(kind, price)[runs.policy]
            which, entries = below(rows, self._bar() - bounds, excess)
            good = (runs.layers[entries] < labels.left[which]) & (runs.rank[entries] <= labels.rank[which])
            found.append(labels.before(runs, which[good], entries[good], step))
        grown = joined(found)
        if runs.once:
            grown.rank = grown.rank - 1
        return grown

    def _bar(self) -> float:
        """What a bound must stay below."""
        return self.best if self.best == np.inf else self.best - ROUNDING * abs(self.best)

    def _promising(self, kind: int, labels: Labels, width: int | None) -> Labels:
        bounds = self.prices.bounds(kind, labels.left, labels.held, labels.seconds).max(axis=0)
        fits = labels.held + self.prices.least(kind, labels.left) <= self.limit
        rows = np.flatnonzero((bounds < self._bar()) & fits)
        return labels.take(rows[np.argsort(bounds[rows], kind="stable")[:width]])


def _portions(count: int) -> Iterator[np.ndarray]:
    """Rows in portions, small ones first: what the first ones find spares work on the others."""
    start = 0
    while start < count:
        yield np.arange(start, min(count, 4 * start + PORTION))
        start = 4 * start + PORTION

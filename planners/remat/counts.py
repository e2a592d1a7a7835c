"""From how many layers a strategy gave to each policy to runs that a stage may have.

Baselines decide layer by layer. Equal layers under equal policies are interchangeable, so only the counts matter:
those of one class are gathered into one run per policy, in the order of the lowest peak. A run that is too short, or
one too many, gives its layers to the next leaner policy.
"""

from collections.abc import Sequence

from planners.plan import PlanError
from planners.remat.policy import Mix, Policy, Problem, Run, fits
from planners.remat.refusal import refusal

Counts = dict[Policy, int]
"""Layers of one class by policy."""


def stored(problem: Problem, kind: int) -> Policy:
    """What storing a layer means: the policy of the fewest extra seconds, fewest bytes first."""
    return min(single(problem, kind), key=lambda p: (p.seconds, p.kept))


def recomputed(problem: Problem, kind: int) -> Policy:
    """What recomputing a layer means: the policy that keeps the fewest bytes, fewest seconds first."""
    return min(single(problem, kind), key=lambda p: (p.kept, p.seconds))


def split(problem: Problem, kind: int, kept: int) -> Counts:
    """`kept` layers of class `kind` are stored, the others recomputed."""
    counts = {recomputed(problem, kind): problem.classes[kind].count - kept}
    store = stored(problem, kind)
    counts[store] = counts.get(store, 0) + kept
    return counts


def single(problem: Problem, kind: int) -> list[Policy]:
    """The policies of class `kind` that a single layer can have. Raises PlanError when there is none."""
    found = [p for p in problem.classes[kind].policies if p.group == 1]
    if not found:
        raise PlanError("remat: this strategy decides layer by layer and needs a policy without groups; use dp")
    return found


def gathered(problem: Problem, counts: Sequence[Counts]) -> Mix:
    """The mix of these counts as they are, however short its runs."""
    runs = [Run(k, policy, n) for k, each in enumerate(counts) for policy, n in each.items() if n]
    return Mix.of(runs, problem.classes)


def allowed(problem: Problem, counts: Sequence[Counts], who: str) -> Mix:
    """The nearest mix that the stage may have and that fits, by giving layers to leaner policies only.

    Raises PlanError, as `who`, when not even the leanest policies of the counts fit.
    """
    tables = [_lean_first(each) for each in counts]
    for kind, table in enumerate(tables):
        _lengthen(table, problem.shortest, problem.classes[kind].count)
    while sum(map(len, tables)) > problem.most_segments:
        # One class has several runs: there are at least as many segments as classes.
        table = min((t for t in tables if len(t) > 1), key=lambda t: min(n for _, n in t[1:]))
        _merge(table, min(range(1, len(table)), key=lambda i: table[i][1]))
    while True:
        mix = gathered(problem, [dict(table) for table in tables])
        if fits(mix, problem):
            return mix
        several = [kind for kind, table in enumerate(tables) if len(table) > 1]
        leanest = [[(recomputed(problem, k), kind.count)] for k, kind in enumerate(problem.classes)]
        if several:
            kind = max(several, key=lambda k: tables[k][-1][0].kept)
            table = tables[kind]
            table[-1], table[-2] = (table[-1][0], table[-1][1] - 1), (table[-2][0], table[-2][1] + 1)
            _lengthen(table, problem.shortest, problem.classes[kind].count)
        elif tables == leanest:
            raise PlanError(refusal(problem, mix, who))
        else:
            kind = next(k for k, table in enumerate(tables) if table != leanest[k])
            tables[kind] = leanest[kind]


def _lean_first(counts: Counts) -> list[tuple[Policy, int]]:
    return sorted(((p, n) for p, n in counts.items() if n), key=lambda each: (each[0].kept, each[0].seconds))


def _lengthen(table: list[tuple[Policy, int]], shortest: int, count: int) -> None:
    """Merges runs that are too short into the next leaner one; the leanest one takes layers from the next."""
    least = min(shortest, count)
    for i in range(len(table) - 1, 0, -1):
        if table[i][1] < least:
            _merge(table, i)
    while len(table) > 1 and table[0][1] < least:
        (lean, few), (next_, many) = table[0], table[1]
        table[0] = (lean, few + 1)
        if many - 1 < least:
            table[0] = (lean, few + many)
            del table[1]
        else:
            table[1] = (next_, many - 1)


def _merge(table: list[tuple[Policy, int]], row: int) -> None:
    lean, few = table[row - 1]
    table[row - 1] = (lean, few + table[row][1])
    del table[row]

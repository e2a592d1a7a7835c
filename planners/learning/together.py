"""Prices steps of different models on different clusters in as few calls of the cost model as possible."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planners.candidates import Candidates
from planners.machines.topology import Cluster
from planners.plan import Workload
from planners.prices import cost
from planners.prices.assumptions import Assumptions
from planners.prices.footprint import Footprint, footprint
from planners.work import Work


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item:
    """One step: its work, where it runs, and how (a single candidate)."""

    workload: Workload
    cluster: Cluster
    candidates: Candidates


def together(items: Sequence[Item]) -> Callable[[Assumptions], np.ndarray]:
    """A function of the constants alone: seconds of each step. What does not depend on them is worked out once."""
    parts = apart(items)
    return lambda assumptions: np.sum(list(parts(assumptions).values()), axis=0)


def apart(items: Sequence[Item]) -> Callable[[Assumptions], dict[str, np.ndarray]]:
    """Likewise each part of the seconds of each step, by name."""
    groups: dict[tuple[Any, ...], list[tuple[int, Work, Footprint, Candidates]]] = {}
    for row, item in enumerate(items):
        work, where = Work.of(item.workload), footprint(item.workload, item.candidates.sizes)
        key = (repr(item.cluster), *words(work), *words(where), item.candidates.remats)
        groups.setdefault(key, []).append((row, work, where, item.candidates))
    joined = []
    for group in groups.values():
        rows, works, places, candidates = zip(*group, strict=True)
        joined.append((np.array(rows), stack(works), stack(places), items[rows[0]].cluster, join(candidates)))

    def seconds(assumptions: Assumptions) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for rows, work, where, cluster, candidates in joined:
            parts, _ = cost.seconds(work, where, cluster, candidates, assumptions)
            for name, part in parts.items():
                found.setdefault(name, np.zeros(len(items)))[rows] = part
        return found

    return seconds


def words(value: Any) -> tuple[Any, ...]:
    """All that a record holds besides numbers, and how many parts it has: what must be equal to stack two records."""
    if isinstance(value, str | bool):
        return (value,)
    if isinstance(value, tuple):
        return (len(value), *(word for part in value for word in words(part)))
    if dataclasses.is_dataclass(value):
        return tuple(word for item in dataclasses.fields(value) for word in words(getattr(value, item.name)))
    return ()


def stack(values: Sequence[Any]) -> Any:
    """Records of numbers as one record of arrays, however deep they lie."""
    first = values[0]
    if isinstance(first, str | bool):
        return first
    if isinstance(first, tuple):
        return tuple(stack(column) for column in zip(*values, strict=True))
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [item.name for item in dataclasses.fields(first)]
        return dataclasses.replace(first, **{name: stack([getattr(v, name) for v in values]) for name in names})
    return np.array([float(np.ravel(value)[0]) for value in values])


def join(each: Sequence[Candidates]) -> Candidates:
    """Candidates one after the other."""
    first = each[0]
    columns = {
        item.name: np.concatenate([getattr(one, item.name) for one in each])
        for item in dataclasses.fields(first)
        if isinstance(getattr(first, item.name), np.ndarray)
    }
    sizes = {axis: np.concatenate([one.sizes[axis] for one in each]) for axis in first.sizes}
    return dataclasses.replace(first, sizes=sizes, **columns)

"""Which mesh axes a collective crosses, from the groups that a compiled program names."""

import math
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from planners.programs.hlo import HloError

Groups: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
"""[groups, devices of a group] of partition numbers; partition i is the i-th device of the mesh, last axis fastest."""


def groups(text: str, devices: int) -> Groups:
    """Replica groups in any of the forms that XLA prints. Raises HloError for another form.

    {{0,1},{2,3}}                         listed; `{}` is one group of all
    [4,2]<=[2,2,2]T(2,1,0)                0..n-1 reshaped, transposed, reshaped to [groups, devices]
    mesh['a'=4,'b'=2] {'a'}               the axes of a mesh over which a group runs
    mesh['a'=4,'b'=2] {'a':(2)2}          a part of one: sizes before it, and its own
    mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}    a mesh in another order
    """
    if text.startswith("mesh"):
        return _mesh_form(text, devices)
    if text.startswith("["):
        shape, _, order = text.partition("<=")
        return _iota(order).reshape(_numbers(shape))
    if re.fullmatch(r"\{\s*\}", text):
        return np.arange(devices).reshape(1, devices)
    rows = [_numbers(row) for row in re.findall(r"\{([\d,\s]+)\}", text)]
    if not rows or len({len(row) for row in rows}) != 1:
        raise HloError(f"groups of unequal size are not supported: {text[:120]}")
    return np.asarray(rows)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _iota(text: str) -> Groups:
    """`[2,4]T(1,0)`: 0..7 in rows of 4, transposed, flat."""
    dims, _, order = text.partition("T")
    sizes = _numbers(dims)
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return (numbers.transpose(_numbers(order)) if order else numbers).reshape(-1)


def _mesh_form(text: str, devices: int) -> Groups:
    found = re.fullmatch(r"mesh\[([^\]]*)\](?:, device_ids=\((.*)\))? ?\{([^}]*)\}", text)
    if found is None:
        raise HloError(f"replica groups cannot be read: {text[:120]}")
    named = [(name, int(size)) for name, size in re.findall(r"'?([\w.]+)'?=(\d+)", found[1])]
    numbers = np.arange(math.prod(size for _, size in named))
    if found[2]:
        order = _iota(found[2]) if found[2].startswith("[") else np.asarray(_numbers(found[2]))
        numbers = order.reshape(-1)
    if numbers.size != devices:
        raise HloError(f"a mesh of {numbers.size} devices in a program for {devices}: {text[:120]}")
    chosen = {
        name: (int(before or 1), int(part or 0))
        for name, before, part in re.findall(r"'?([A-Za-z_][\w.]*)'?(?::\((\d+)\)(\d+))?", found[3])
    }
    shape: list[int] = []
    inside: list[int] = []
    for name, size in named:
        if name not in chosen:
            shape.append(size)
            continue
        before, part = chosen[name]
        part = part or size
        shape += [before, part, size // (before * part)]
        inside.append(len(shape) - 2)
    outside = [axis for axis in range(len(shape)) if axis not in inside]
    members = math.prod(shape[axis] for axis in inside)
    return numbers.reshape(shape).transpose(outside + inside).reshape(-1, members)


def axes(members: Groups, mesh: Mapping[str, int]) -> dict[str, int]:
    """Ranks of a group along each mesh axis that it crosses, in the order of the mesh; empty for groups of one.

    Ranks are fewer than the axis where a group crosses a part of it. Raises HloError where the groups follow no axes.
    """
    sizes = tuple(mesh.values())
    places = np.stack(np.unravel_index(members, sizes), axis=-1)  # [groups, members, axes]
    ordered = np.sort(places, axis=1)
    distinct = 1 + (np.diff(ordered, axis=1) != 0).sum(axis=1)  # [groups, axes]
    if (distinct != distinct[0]).any() or distinct[0].prod() != members.shape[1]:
        raise HloError(f"groups such as {members[0][:16].tolist()} follow no axes of the mesh {dict(mesh)}")
    return {axis: int(ranks) for axis, ranks in zip(mesh, distinct[0], strict=True) if ranks > 1}


def permuted(text: str, mesh: Mapping[str, int]) -> dict[str, int]:
    """Likewise for the `{{source,target},...}` of a permutation: the axes along which anything moves."""
    pairs = np.asarray([_numbers(row) for row in re.findall(r"\{([\d,\s]+)\}", text)])
    if not pairs.size:
        return {}
    places = np.stack(np.unravel_index(pairs, tuple(mesh.values())), axis=-1)
    moved = (places[:, 0] != places[:, 1]).any(axis=0)
    return {axis: size for axis, size, any_ in zip(mesh, mesh.values(), moved, strict=True) if any_}
